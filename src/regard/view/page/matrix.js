// A head as a matrix: queries down, keys across. Short sequences carry their labels; of long ones the whole is drawn
// with the strongest link in each pixel, and a lens beside it shows a part with labels.

const LENS = 20; // queries and keys in the lens
const LEAST_CELL = 11; // pixels: a smaller cell has no room for a label beside it
const MOST_CELL = 26;
let base = { rows: null }; // the picture without marks, kept while only the marks change

/** How the whole of a head fits into a width: where it begins, the size of a cell, and whether labels fit. */
function matrixLayout(rows, range, width) {
  const [down, across] = [range.q1 - range.q0, range.k1 - range.k0];
  const measure = document.createElement("canvas").getContext("2d");
  measure.font = "12px " + palette.font;
  const widest = (side, from, stop, most) => {
    const sequence = sequenceOf(site(), side);
    let found = 0;
    for (let index = from; index < stop; index++) {
      const { reads, writes } = pictureLabel(sequence, index, side);
      found = Math.max(found, measure.measureText(reads + writes).width);
    }
    return Math.min(most, Math.ceil(found) + 8);
  };
  const few = across <= 64 && down <= 64;
  const left = few ? widest("query", range.q0, range.q1, Math.min(150, width * 0.36)) : 0;
  const cell = Math.min(MOST_CELL, Math.floor((width - left) / across));
  if (few && cell >= LEAST_CELL) {
    return { left, top: widest("key", range.k0, range.k1, 110), across: cell, down: cell, labelled: true };
  }
  const side = Math.min(width, 460);
  return { left: 0, top: 0, across: side / across, down: Math.min(side, (side * down) / across, 460) / down, labelled: false };
}

/** Draw rows and keys of `range`; `mark` is a cell {query, key} under the pointer. Returns hit(x, y). */
function drawMatrix(canvas, rows, range, width, { mark, lens, keep }) {
  const { left, top, across, down, labelled } = matrixLayout(rows, range, width);
  const columns = range.k1 - range.k0;
  const lines = range.q1 - range.q0;
  const context = sized(canvas, labelled ? left + columns * across + 1 : columns * across, top + lines * down + (labelled ? 1 : 0));
  const ratio = window.devicePixelRatio || 1;
  const [pixelsAcross, pixelsDown] = [Math.round(columns * across * ratio), Math.round(lines * down * ratio)];
  let image = keep && base.rows === rows && base.across === pixelsAcross && base.scale === palette.scale ? base.image : null;
  if (!image) image = weightImage(rows, range, pixelsAcross, pixelsDown);
  if (keep) base = { rows, across: pixelsAcross, scale: palette.scale, image };
  context.putImageData(image, Math.round(left * ratio), Math.round(top * ratio));
  const at = { range, left, top, across, down, labelled };
  if (labelled) {
    drawForbidden(context, at);
    drawGrid(context, at);
    drawAxisLabels(context, at, mark);
  }
  drawMarks(context, at, mark, lens);
  return (x, y) => {
    const query = range.q0 + Math.floor((y - top) / down);
    const key = range.k0 + Math.floor((x - left) / across);
    const inside = query >= range.q0 && query < range.q1 && key < range.k1;
    if (!inside || key < range.k0) return null;
    // A pixel of a long text stands for many cells: the one meant is the strongest nearby.
    return across >= 4 && down >= 4 ? { query, key } : strongestNear(rows, query, key, Math.ceil(2 / across), Math.ceil(2 / down));
  };
}

function strongestNear(rows, query, key, across, down) {
  let best = { query, key, weight: 0 };
  for (let i = Math.max(0, query - down); i <= Math.min(rows.queries - 1, query + down); i++) {
    for (let at = i * rows.k; at < (i + 1) * rows.k; at++) {
      const near = rows.key[at] >= 0 && Math.abs(rows.key[at] - key) <= across;
      if (near && rows.weight[at] > best.weight) best = { query: i, key: rows.key[at], weight: rows.weight[at] };
    }
  }
  return { query: best.query, key: best.key };
}

/** Grey where a query is not allowed to look: its row has room left and does not list the key. */
function drawForbidden(context, { range, left, top, across, down }) {
  const raw = headRows(site(), state.head, false);
  context.fillStyle = palette.rule;
  context.globalAlpha = 0.55;
  for (let i = range.q0; i < range.q1; i++) {
    const listed = raw.key.subarray(i * raw.k, (i + 1) * raw.k);
    if (raw.k < raw.keys && listed[raw.k - 1] >= 0) continue;
    const allowed = new Set(listed);
    for (let j = range.k0; j < range.k1; j++) {
      if (!allowed.has(j)) context.fillRect(left + (j - range.k0) * across, top + (i - range.q0) * down, across, down);
    }
  }
  context.globalAlpha = 1;
}

function drawGrid(context, { range, left, top, across, down }) {
  context.fillStyle = palette.panel;
  for (let j = range.k0; j <= range.k1; j++) {
    context.fillRect(left + (j - range.k0) * across - 0.5, top, 1, (range.q1 - range.q0) * down);
  }
  for (let i = range.q0; i <= range.q1; i++) {
    context.fillRect(left, top + (i - range.q0) * down - 0.5, (range.k1 - range.k0) * across, 1);
  }
}

function drawAxisLabels(context, { range, left, top, across, down }, mark) {
  const now = current();
  context.font = "12px " + palette.font;
  context.textBaseline = "middle";
  const sinks = state.sinks ? sinksOf(site().key).members : new Set();
  const ink = (side, index) => {
    if (mark ? mark[side] === index : now.side === side && now.element === index) return palette.chosen;
    return isSpecial(sequenceOf(site(), side).elements[index]) || (side === "key" && sinks.has(index)) ? palette.muted : palette.ink;
  };
  context.textAlign = "right";
  for (let i = range.q0; i < range.q1; i++) {
    const { reads, writes } = pictureLabel(sequenceOf(site(), "query"), i, "query");
    const y = top + (i - range.q0 + 0.5) * down;
    const text = fitted(context, reads + writes, left - 6);
    context.fillStyle = ink("query", i);
    context.fillText(text, left - 5, y);
  }
  context.textAlign = "left";
  for (let j = range.k0; j < range.k1; j++) {
    context.save();
    context.translate(left + (j - range.k0 + 0.5) * across, top - 5);
    context.rotate(-Math.PI / 2);
    context.fillStyle = ink("key", j);
    const text = fitted(context, labelOf(sequenceOf(site(), "key"), j), top - 6);
    context.fillText(text, 0, 0);
    if (sinks.has(j)) context.fillRect(0, -0.5, context.measureText(text).width, 1);
    context.restore();
  }
}

/** Frame the row or column that is looked at, the cell under the pointer, and the part that the lens shows. */
function drawMarks(context, { range, left, top, across, down, labelled }, mark, lens) {
  const box = (q0, q1, k0, k1, colour) => {
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    const pad = labelled ? 0 : 1.5;
    context.strokeRect(
      left + (k0 - range.k0) * across - pad, top + (q0 - range.q0) * down - pad,
      (k1 - k0) * across + 2 * pad, (q1 - q0) * down + 2 * pad,
    );
  };
  const now = current();
  const [first, stop] = now.side === "query" ? [range.q0, range.q1] : [range.k0, range.k1];
  if (now.element >= first && now.element < stop) {
    if (now.side === "query") box(now.element, now.element + 1, range.k0, range.k1, palette.chosen);
    else box(range.q0, range.q1, now.element, now.element + 1, palette.chosen);
  }
  if (lens) box(lens.q0, lens.q1, lens.k0, lens.k1, palette.ink);
  if (mark && labelled) box(mark.query, mark.query + 1, mark.key, mark.key + 1, palette.ink);
}

/** The part of a long head around a cell. */
function lensAround(rows, { query, key }, width) {
  const wide = Math.max(8, Math.min(LENS, Math.floor((width * 0.64) / 14)));
  const from = (at, all) => Math.max(0, Math.min(all - wide, at - Math.floor(wide / 2)));
  const [q0, k0] = [from(query, rows.queries), from(key, rows.keys)];
  return { q0, q1: Math.min(rows.queries, q0 + wide), k0, k1: Math.min(rows.keys, k0 + wide) };
}
