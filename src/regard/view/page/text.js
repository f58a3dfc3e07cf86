// Text whose parts can be chosen: with the pointer, by touch, and with the keyboard, as one stop of the tab key.

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

/**
 * A text carved into its parts, in order: [{text, index}], index null between parts. `parts` hold spans [first, stop)
 * in characters (code points, not the 16-bit units that strings are indexed by here); parts without a span, and parts
 * that share their characters with the part before, stand for themselves by their label. Only the parts from `from`
 * up to `stop` are carved, with the text between them.
 */
function carve(text, parts, from, stop) {
  const characters = Array.from(text || "");
  const pieces = [];
  const before = parts.slice(0, from).reverse().find((part) => part.span);
  let at = before ? before.span[1] : 0;
  parts.slice(from, stop).forEach((part, place) => {
    const index = from + place;
    const inText = Array.isArray(part.span) && typeof part.span[0] === "number" && part.span.length === 2;
    const first = inText ? Math.max(part.span[0], at) : 0;
    const own = inText ? characters.slice(first, part.span[1]).join("") : "";
    if (!own) {
      pieces.push({ text: visible(part.label), index, special: true });
      return;
    }
    const spaces = own.trim() ? own.length - own.trimStart().length : 0;
    const between = characters.slice(at, first).join("") + own.slice(0, spaces);
    if (between) pieces.push({ text: between, index: null });
    pieces.push({ text: own.slice(spaces), index });
    at = part.span[1];
  });
  const rest = stop < parts.length ? "" : characters.slice(at).join("");
  if (rest) pieces.push({ text: rest, index: null });
  return pieces;
}

/**
 * Fill a container with a text's parts as options. `onHover(index or null)`, `onChoose(index)`.
 * Of `parts` those in `range` = [from, stop) are drawn. Returns {node(index), markChosen(index or -1, scroll),
 * tint(links), clear(node)}; links are [{index, weight}], largest first.
 */
function selectableText(container, { text, parts, range, writes, label, onHover, onChoose }) {
  const options = [];
  const [from, stop] = range || [0, parts.length];
  container.replaceChildren();
  container.setAttribute("role", "listbox");
  container.setAttribute("aria-orientation", "horizontal");
  container.setAttribute("aria-label", label);
  container.dir = "auto";
  container.classList.toggle("two-lines", Boolean(writes));
  for (const piece of carve(text, parts, from, stop)) {
    if (piece.index === null) {
      container.append(piece.text);
      continue;
    }
    const option = make("span", piece.special ? "part special" : "part", writes ? undefined : piece.text);
    if (writes) option.append(make("span", "reads", piece.text), make("span", "writes", visible(writes[piece.index])));
    option.dataset.index = piece.index;
    option.setAttribute("role", "option");
    option.setAttribute("aria-selected", "false");
    option.tabIndex = -1;
    if (piece.special && container.lastChild) container.append(" ");
    container.append(option);
    if (piece.special) container.append(" ");
    options[piece.index] = option;
  }
  if (options[from]) options[from].tabIndex = 0;
  listen(container, options, onHover, onChoose);
  let chosen = -1;
  const markChosen = (index, scroll) => {
    if (options[chosen]) options[chosen].setAttribute("aria-selected", "false");
    chosen = index;
    if (!options[index]) return;
    options[index].setAttribute("aria-selected", "true");
    makeStop(options, index);
    if (scroll) scrollWithin(container, options[index]);
  };
  const tintParts = (links) => {
    for (const { index, weight } of links) {
      if (!options[index] || weight < 0.001) continue;
      tint(options[index], weight);
      options[index].title = exactly(weight);
    }
  };
  return { node: (index) => options[index], markChosen, tint: tintParts, clear: (node) => tint(node, null) };
}

/** Let an element hear which of its options the pointer is on, is pressed on, or the keyboard moves to. */
function listen(container, options, onHover, onChoose) {
  const indexOf = (event) => {
    const option = event.target instanceof Element ? event.target.closest("[data-index]") : null;
    return option ? Number(option.dataset.index) : null;
  };
  container.onpointerover = (event) => {
    // A finger does not hover: its tap chooses, below.
    if (event.pointerType !== "touch") onHover(indexOf(event));
  };
  container.onpointerleave = () => onHover(null);
  container.onclick = (event) => {
    const index = indexOf(event);
    if (index !== null) onChoose(index);
  };
  container.onkeydown = (event) => {
    const from = indexOf(event);
    if (from === null || event.altKey || event.ctrlKey || event.metaKey) return;
    const to = event.key === "Enter" || event.key === " " ? from : destination(options, from, event.key, container);
    if (to === null) return;
    event.preventDefault();
    onChoose(to);
    if (!options[to] || !options[to].isConnected) return; // the choice has drawn this text anew
    makeStop(options, to);
    options[to].focus({ preventScroll: true });
    scrollWithin(container, options[to]);
  };
}

/** Where a key leads from an option: along the text, or to the line above or below; null for other keys. */
function destination(options, from, key, container) {
  const first = options.findIndex(Boolean);
  const last = options.length - 1;
  const onward = getComputedStyle(container).direction === "rtl" ? -1 : 1;
  if (key === "ArrowRight") return Math.max(first, Math.min(last, from + onward));
  if (key === "ArrowLeft") return Math.max(first, Math.min(last, from - onward));
  if (key === "Home") return first;
  if (key === "End") return last;
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  const here = options[from].getBoundingClientRect();
  const way = key === "ArrowUp" ? -1 : 1;
  let best = from;
  let least = Infinity;
  for (let index = from + way; index >= first && index <= last; index += way) {
    const box = options[index].getBoundingClientRect();
    const lines = ((box.top - here.top) * way) / here.height;
    if (lines < 0.5) continue;
    // The nearest line counts for more than the nearest place in it.
    const far = lines * 10000 + Math.abs((box.left + box.right - here.left - here.right) / 2);
    if (far < least) [least, best] = [far, index];
    else if (lines * 10000 > least + 5000) break;
  }
  return best;
}

/** Make one option the place where the tab key enters. */
function makeStop(options, index) {
  for (const option of options) if (option && option.tabIndex === 0) option.tabIndex = -1;
  options[index].tabIndex = 0;
}

/** Bring a part into view by scrolling its own frame, never the page. */
function scrollWithin(frame, part) {
  if (frame.scrollHeight <= frame.clientHeight + 1) return;
  const inner = part.getBoundingClientRect();
  const outer = frame.getBoundingClientRect();
  if (inner.top < outer.top || inner.bottom > outer.bottom) {
    frame.scrollTop += inner.top - outer.top - (outer.height - inner.height) / 2;
  }
}
