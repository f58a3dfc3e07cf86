// The picture of the chosen head: lines or matrix, what the pointer reads in it, and its keyboard.

const picture = { hit: null, lensHit: null, mark: null, wantsMatrix: false };

/** The cell a matrix reads when the pointer is elsewhere: the strongest link of what is looked at. */
function cellNow(rows) {
  const now = current();
  const [best] = linksAt(rows, now);
  const other = best ? best.index : 0;
  return now.side === "query" ? { query: now.element, key: other } : { query: other, key: now.element };
}

function paintPicture() {
  const canvas = document.getElementById("picture-canvas");
  const rows = rowsNow();
  const lines = state.picture === "lines" && linesFit(rows);
  const width = Math.floor(document.getElementById("picture").clientWidth);
  const lens = document.getElementById("lens");
  if (!width) return;
  if (picture.rows !== rows) picture.mark = null;
  picture.rows = rows;
  const [query, key] = [sequenceOf(site(), "query").title, sequenceOf(site(), "key").title];
  const axes = lines ? "left: query, " + query + " · right: key, " + key : "down: query, " + query + " · across: key, " + key;
  const barred = !lines && linesFit(rows) && headRows(site(), state.head, false).key.includes(-1);
  document.getElementById("picture-axes").textContent = axes + (barred ? " · grey: not allowed" : "");
  canvas.setAttribute(
    "aria-label",
    `${lines ? "Lines" : "Matrix"} of ${rows.queries} queries and ${rows.keys} keys. Arrow keys move; the table has the numbers.`,
  );
  lens.hidden = true;
  if (lines) {
    picture.hit = drawLines(canvas, rows, width);
    document.getElementById("picture-readout").textContent = "";
    return;
  }
  const cell = picture.mark || cellNow(rows);
  const all = { q0: 0, q1: rows.queries, k0: 0, k1: rows.keys };
  const part = matrixLayout(rows, all, width).labelled ? null : lensAround(rows, cell, width);
  picture.hit = drawMatrix(canvas, rows, all, width, { mark: picture.mark, lens: part, keep: true });
  readCell(rows, cell);
  if (part) {
    lens.hidden = false;
    document.getElementById("lens-title").textContent =
      `enlarged: queries ${part.q0}–${part.q1 - 1}, keys ${part.k0}–${part.k1 - 1}`;
    picture.lensHit = drawMatrix(document.getElementById("lens-canvas"), rows, part, width, { mark: cell });
  }
}

function readCell(rows, { query, key }) {
  const found = weightAt(rows, query, key);
  const number = found.below === undefined ? exactly(found.weight) : "not among the links shown, at most " + exactly(found.below);
  const queries = sequenceOf(site(), "query");
  const { reads, writes } = pictureLabel(queries, query, "query");
  document.getElementById("picture-readout").textContent =
    `query ${query} ${reads}${writes} · key ${key} ${labelOf(sequenceOf(site(), "key"), key)}: ${number}`;
}

function preparePicture() {
  const canvas = document.getElementById("picture-canvas");
  listenToPicture(canvas, () => picture.hit);
  listenToPicture(document.getElementById("lens-canvas"), () => picture.lensHit);
  canvas.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (movePicture(event.key)) event.preventDefault();
  });
}

function listenToPicture(canvas, hit) {
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return hit() ? hit()(event.clientX - box.left, event.clientY - box.top) : null;
  };
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const found = at(event);
    canvas.style.cursor = found ? "pointer" : "";
    if (found && found.side) hover(found);
    else if (found) markCell(found);
  });
  canvas.addEventListener("pointerleave", () => {
    hover(null);
    if (picture.mark) markCell(null);
  });
  canvas.addEventListener("click", (event) => {
    const found = at(event);
    if (!found) return;
    picture.mark = null;
    if (found.side) change(found);
    else change({ side: state.side, element: state.side === "query" ? found.query : found.key });
    if (!found.side) markCell(found);
  });
}

/** Read another cell: redraws the picture alone, once a frame at most. */
function markCell(cell) {
  const same = cell && picture.mark && cell.query === picture.mark.query && cell.key === picture.mark.key;
  if (same) return;
  picture.mark = cell;
  if (picture.waiting) return;
  picture.waiting = true;
  requestAnimationFrame(() => {
    picture.waiting = false;
    paintPicture();
  });
}

/** Move by an arrow key: along the column and across the lines, or from cell to cell; Enter chooses the cell's row. */
function movePicture(key) {
  const rows = rowsNow();
  const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] }[key];
  if (!way) return false;
  const within = (value, all) => Math.max(0, Math.min(all - 1, value));
  if (state.picture === "lines" && linesFit(rows)) {
    const side = way[1] < 0 ? "query" : way[1] > 0 ? "key" : state.side;
    const all = side === "query" ? rows.queries : rows.keys;
    change({ side, element: within(state.element + way[0], all) });
    return true;
  }
  const from = picture.mark || cellNow(rows);
  const cell = { query: within(from.query + way[0], rows.queries), key: within(from.key + way[1], rows.keys) };
  if (key === "Enter") change({ element: state.side === "query" ? cell.query : cell.key });
  markCell(cell);
  return true;
}
