// A head as lines between two columns of labels: queries on the left, keys on the right.

const MOST_LINES = 48; // elements on a side; beyond that lines cannot be told apart and the matrix serves
const LINE_HEIGHT = 24;

function linesFit(rows) {
  return rows.queries <= MOST_LINES && rows.keys <= MOST_LINES;
}

/** What a query or key is called in a picture: for a decoder's query, what it has read and what it writes. */
function pictureLabel(sequence, index, side) {
  const writes = side === "query" && sequence.writes ? sequence.writes[index] : undefined;
  return { reads: labelOf(sequence, index), writes: writes === undefined ? "" : " → " + visible(writes) };
}

/** Draw the lines; returns hit(x, y), the {side, element} at a place. */
function drawLines(canvas, rows, width) {
  const height = Math.max(rows.queries, rows.keys) * LINE_HEIGHT + 4;
  const context = sized(canvas, width, height);
  const column = Math.min(190, Math.floor(width * 0.36));
  const middle = (index) => index * LINE_HEIGHT + LINE_HEIGHT / 2 + 2;
  const now = current();
  const partners = new Map(linksAt(rows, now).filter((link) => link.weight > 0).map((link) => [link.index, link.weight]));
  const [left, right] = [column + 6, width - column - 6];
  const curve = (query, key) => {
    context.beginPath();
    context.moveTo(left, middle(query));
    const bend = (right - left) * 0.45;
    context.bezierCurveTo(left + bend, middle(query), right - bend, middle(key), right, middle(key));
    context.stroke();
  };
  context.strokeStyle = palette.muted;
  context.lineWidth = 1;
  for (let at = 0; at < rows.key.length; at++) {
    if (rows.key[at] < 0 || rows.weight[at] < 0.04) continue;
    context.globalAlpha = 0.35 * rows.weight[at];
    curve(Math.floor(at / rows.k), rows.key[at]);
  }
  context.globalAlpha = 1;
  // The strongest last, so that it lies on top.
  for (const [index, weight] of [...partners].reverse()) {
    context.strokeStyle = palette.css[step(weight)];
    context.lineWidth = 0.75 + 4 * weight;
    if (now.side === "query") curve(now.element, index);
    else curve(index, now.element);
  }
  for (const side of ["query", "key"]) {
    const sequence = sequenceOf(site(), side);
    const count = side === "query" ? rows.queries : rows.keys;
    for (let index = 0; index < count; index++) {
      const weight = side === now.side ? undefined : partners.get(index);
      drawLabel(context, {
        label: pictureLabel(sequence, index, side),
        x: side === "query" ? 0 : width - column,
        y: middle(index),
        width: column,
        left: side === "key",
        weight,
        chosen: side === now.side && index === now.element,
        special: isSpecial(sequence.elements[index]),
      });
    }
  }
  return (x, y) => {
    const side = x < width / 2 ? "query" : "key";
    const element = Math.floor((y - 2) / LINE_HEIGHT);
    return element >= 0 && element < (side === "query" ? rows.queries : rows.keys) ? { side, element } : null;
  };
}

/** The links of an element, or none where it is not among this head's queries or keys. */
function linksAt(rows, now) {
  return now.element < (now.side === "query" ? rows.queries : rows.keys) ? linksOf(rows, now.side, now.element) : [];
}

/** One label in its column, next to the lines; a partner's weight stands at the outer edge. */
function drawLabel(context, { label, x, y, width, left, weight, chosen, special }) {
  const half = LINE_HEIGHT / 2 - 1.5;
  const shown = weight !== undefined && weight >= 0.005;
  if (chosen) {
    context.strokeStyle = palette.chosen;
    context.lineWidth = 1.5;
    context.strokeRect(x + 1, y - half, width - 2, half * 2);
  } else if (shown) {
    context.fillStyle = palette.css[step(weight)];
    context.fillRect(x, y - half, width, half * 2);
  }
  const ink = shown ? palette.text[step(weight)] : chosen ? palette.chosen : special ? palette.muted : palette.ink;
  context.textBaseline = "middle";
  context.font = "12px " + palette.font;
  let room = width - 14;
  if (shown) {
    const number = weight.toFixed(2);
    context.fillStyle = ink;
    context.textAlign = left ? "right" : "left";
    context.fillText(number, left ? x + width - 6 : x + 6, y);
    room -= context.measureText(number).width + 8;
  }
  context.textAlign = left ? "left" : "right";
  const edge = left ? x + 7 : x + width - 7;
  context.font = "14px " + palette.font;
  const reads = fitted(context, label.reads, room);
  const own = context.measureText(reads).width;
  context.font = "12px " + palette.font;
  const writes = label.writes && room - own > 24 ? fitted(context, label.writes, room - own) : "";
  const added = writes ? context.measureText(writes).width : 0;
  context.fillStyle = shown || chosen ? ink : palette.muted;
  if (writes) context.fillText(writes, left ? edge + own : edge, y);
  context.font = "14px " + palette.font;
  context.fillStyle = ink;
  context.fillText(reads, left ? edge : edge - added, y);
}
