// The chosen head: the text or the pictures themselves coloured by weight, a picture, and the exact numbers.

const detail = { texts: {}, painted: [], drawn: "" };
const MOST_PARTS = 4000; // elements of a text on the page at once
const MOST_ROWS = 40; // rows of the table

function paintDetail(changed) {
  if (changed.has("site") || changed.has("sinks") || !detail.drawn) paintHeading();
  paintControls();
  buildTexts();
  paintTexts(!changed.has("hover"));
  paintReadout();
  paintPicture();
  paintFacts();
  paintTable();
}

function paintHeading() {
  const one = site();
  document.getElementById("detail-title").textContent = `${groupTitle(one)}, ${layerName(one)}`;
}

/** A row of buttons of which one holds: [{name, label, chosen, title, disabled, patch}]. */
function choice(box, label, options) {
  const group = make("div", "choice");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", label);
  for (const option of options) {
    const button = make("button", "", option.label);
    button.type = "button";
    button.setAttribute("aria-pressed", String(option.chosen));
    button.disabled = Boolean(option.disabled);
    if (option.title) button.title = option.title;
    button.dataset.choice = label + ":" + option.label;
    button.addEventListener("click", () => change(option.patch));
    group.append(button);
  }
  box.append(group);
}

/** Draw the controls anew, keeping the keyboard where it was. */
function paintControls() {
  const one = site();
  const box = document.getElementById("controls");
  const shape = JSON.stringify([state, hovered ? 1 : 0]);
  if (detail.controls === shape) return;
  detail.controls = shape;
  const held = document.activeElement && document.activeElement.dataset.choice;
  box.replaceChildren();
  const group = groups.find((candidate) => candidate.sites.includes(state.site));
  const at = group.sites.indexOf(state.site);
  const lines = [make("div", "control-line"), make("div", "control-line"), make("div", "control-line")];
  box.append(...lines);
  const control = (line, label) => {
    const part = make("div", "control");
    part.append(make("span", "control-name", label));
    lines[line].append(part);
    return part;
  };
  if (groups.length > 1) {
    choice(control(0, "kind"), "kind", groups.map((other) => ({
      label: other.title, chosen: other === group, patch: { site: other.sites[Math.min(at, other.sites.length - 1)] },
    })));
  }
  choice(control(1, "layer"), "layer", group.sites.map((index) => ({
    label: String(sites[index].layer ?? sites[index].path), chosen: index === state.site, title: sites[index].path, patch: { site: index },
  })));
  choice(control(1, "head"), "head", [MEAN, ...Array.from({ length: one.heads }, (_, head) => head)].map((head) => ({
    label: String(head), chosen: head === state.head, title: headName(one, head), patch: { head },
  })));
  choice(control(2, "show"), "show", [
    { label: "what it looks at", chosen: state.side === "query", patch: otherSide("query") },
    { label: "what looks at it", chosen: state.side === "key", patch: otherSide("key") },
  ]);
  sinkSwitch(control(2, "sinks"));
  paintPictureChoice();
  const again = held && [...document.querySelectorAll("[data-choice]")].find((node) => node.dataset.choice === held);
  if (again) again.focus({ preventScroll: true });
}

/** The other direction for the same element where both sides are one text, else for its strongest partner. */
function otherSide(side) {
  if (side === state.side) return {};
  if (site().query === site().key) return { side };
  const [best] = linksAt(rowsNow(), state);
  return { side, element: best ? best.index : 0 };
}

function sinkSwitch(row) {
  const name = site().key;
  const found = sinksOf(name).list;
  const label = make("label", "switch");
  const box = make("input");
  box.type = "checkbox";
  box.checked = state.sinks;
  box.disabled = !found.length;
  box.dataset.choice = "sinks";
  box.addEventListener("change", () => change({ sinks: box.checked }));
  label.append(box, found.length ? "take out " + sinkNames(name) : "none found in this " + (hasPictures(sequenceOf(site(), "key")) ? "input" : "text"));
  label.title = SINK_RULE;
  row.append(label);
}

function paintPictureChoice() {
  const rows = rowsNow();
  const fits = linesFit(rows);
  const lines = fits && state.picture === "lines";
  const box = document.getElementById("picture-choice");
  box.replaceChildren();
  choice(box, "picture", [
    {
      label: "lines", chosen: lines, disabled: !fits, patch: { picture: "lines" },
      title: fits ? "" : "lines are drawn up to " + MOST_LINES + " elements",
    },
    { label: "matrix", chosen: !lines, patch: { picture: "matrix" } },
  ]);
}

/** The part of a long text that is on the page: the pages of MOST_PARTS elements that hold the chosen one. */
function partOf(sequence, element) {
  const from = Math.floor(element / MOST_PARTS) * MOST_PARTS;
  return [from, Math.min(sequence.elements.length, from + MOST_PARTS)];
}

/** Lay out the texts of the site: one where a text looks at itself, else queries and keys. */
function buildTexts() {
  const one = site();
  const same = one.query === one.key;
  const sides = same ? ["query"] : ["query", "key"];
  const [link] = same ? [] : linksAt(rowsNow(), state);
  const ranges = sides.map((side) => {
    const shown = side === state.side || same ? state.element : link ? link.index : 0;
    return hasPictures(sequenceOf(one, side)) ? [0, sequenceOf(one, side).elements.length] : partOf(sequenceOf(one, side), shown);
  });
  const drawn = JSON.stringify([one.query, one.key, ranges]);
  if (detail.drawn === drawn) return;
  detail.drawn = drawn;
  detail.texts = {};
  detail.painted = [];
  const box = document.getElementById("texts");
  box.replaceChildren();
  sides.forEach((side, at) => {
    const sequence = sequenceOf(one, side);
    const frame = make("div", "text-frame");
    const title = make("h3", "", sequence.title);
    const role = same ? (sequence.writes ? "each position reads the upper word and writes the lower" : "") :
      side === "key" ? "keys: what is looked at" : "queries" + (sequence.writes ? ": each position reads the upper word and writes the lower" : "");
    title.append(make("span", "quiet small", role ? " " + role : ""));
    frame.append(title);
    const [from, stop] = ranges[at];
    if (stop - from < sequence.elements.length) frame.append(pager(sequence, side, from, stop));
    const body = make("div", hasPictures(sequence) ? "pictures" : "text");
    const own = (index) => ({ side: same ? state.side : side, element: index });
    frame.append(body, make("p", "key quiet small"));
    box.append(frame);
    const shared = {
      label: sequence.title + ": elements",
      onHover: (index) => hover(index === null ? null : own(index)),
      onChoose: (index) => change(own(index)),
    };
    const written = { text: sequence.text, parts: sequence.elements, range: ranges[at], writes: side === "query" ? sequence.writes : undefined };
    detail.texts[side] = hasPictures(sequence) ? selectablePictures(body, { sequence, ...shared }) : selectableText(body, { ...written, ...shared });
    detail.texts[side].key = frame.lastChild;
  });
  if (same) detail.texts.key = detail.texts.query;
}

/** Steps from one part of a long text to the next. */
function pager(sequence, side, from, stop) {
  const box = make("p", "small numbers pager");
  const go = (label, element, name) => {
    const button = make("button", "plain", label);
    button.type = "button";
    button.setAttribute("aria-label", name);
    button.disabled = element < 0 || element >= sequence.elements.length;
    button.addEventListener("click", () => change({ side: site().query === site().key ? state.side : side, element }));
    return button;
  };
  box.append(
    go("‹", from - MOST_PARTS, "the part before"),
    ` elements ${from}–${stop - 1} of ${sequence.elements.length} `,
    go("›", stop, "the next part"),
  );
  return box;
}

/** Colour the other side of every link by its weight, and frame the element that is looked at. */
function paintTexts(scroll) {
  const now = current();
  const other = now.side === "query" ? "key" : "query";
  for (const [clear, node] of detail.painted) {
    clear(node);
    node.classList.remove("chosen");
    node.removeAttribute("title");
  }
  detail.painted = [];
  const keep = (drawn, index) => {
    const node = drawn.node(index);
    if (node) detail.painted.push([drawn.clear, node]);
    return node;
  };
  const drawn = detail.texts[other];
  const links = linksAt(rowsNow(), now);
  for (const { index } of links) keep(drawn, index);
  const strongest = drawn.tint(links);
  drawn.key.textContent = pictureKey(sequenceOf(site(), other), strongest, unlisted(rowsNow(), now));
  const node = keep(detail.texts[now.side], now.element);
  if (node) node.classList.add("chosen");
  for (const side of new Set([other, now.side])) {
    if (detail.texts[side] === detail.texts[now.side] && side !== now.side) continue;
    detail.texts[side].markChosen(side === state.side || site().query === site().key ? state.element : -1, scroll);
  }
}
