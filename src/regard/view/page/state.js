// What the person has chosen, what the pointer is on meanwhile, and the address that says the same.

const state = {
  site: 0, // index among the report's sites
  head: 0, // or MEAN
  side: "query", // the chosen element is a query (what does it look at?) or a key (who looks at it?)
  element: 0,
  sinks: false, // whether sinks are taken out
  order: "model",
  reversed: false,
  picture: "lines",
  thumbnails: "map", // of pictures: what the element looks at, for every head; or "matrix"
  word: null, // a word of the alignment: {side: "target", index: 3}
};
let hovered = null; // {side, element}: shown while the pointer rests there; the choice stays
const ORDERS = ["model", "role", "entropy", "distance", "largest"];
const listeners = [];

/** Call `listener(changed)`, a set of the names in `state`, after every change; "hover" is one of them. */
function onChange(listener) {
  listeners.push(listener);
}

function change(patch) {
  const before = { ...state };
  Object.assign(state, patch);
  settle();
  const changed = new Set(Object.keys(state).filter((name) => state[name] !== before[name]));
  if (!changed.size) return;
  if (!changed.has("word")) hovered = null;
  announce(changed);
  writeAddress();
}

let pendingHover = false;

/** Show an element while the pointer rests on it; null goes back to the choice. Drawn once a frame at most. */
function hover(next) {
  if (next && hovered && next.side === hovered.side && next.element === hovered.element) return;
  if (!next && !hovered) return;
  hovered = next;
  if (pendingHover) return;
  pendingHover = true;
  requestAnimationFrame(() => {
    pendingHover = false;
    announce(new Set(["hover"]));
  });
}

function announce(changed) {
  for (const listener of listeners) listener(changed);
}

/** What is looked at now: the hovered element, or the chosen one. */
function current() {
  return hovered || { side: state.side, element: state.element };
}

function site() {
  return sites[state.site];
}

function rowsNow() {
  return headRows(site(), state.head, state.sinks);
}

/** Bring a choice that does not fit the site back within it. */
function settle() {
  if (!sites[state.site]) state.site = 0;
  const here = site();
  if (!here) return;
  if (state.head !== MEAN && !(state.head >= 0 && state.head < here.heads)) state.head = 0;
  const sequence = sequenceOf(here, state.side);
  if (!(state.element >= 0 && state.element < sequence.elements.length)) state.element = firstElement(sequence);
  if (state.sinks && !sinksOf(here.key).list.length) state.sinks = false;
}

function firstElement(sequence) {
  // Of pictures the token that the answer is read from, or else the middle.
  if (hasPictures(sequence)) return sequence.places[0] ? Math.floor(sequence.elements.length / 2) : 0;
  const found = sequence.elements.find((element) => !isSpecial(element));
  return found ? found.index : 0;
}

/** The head to begin with: it fits its role well and looks at words, in cross-attention where there is any. */
function beginning() {
  let best = { score: -Infinity, site: 0, head: 0 };
  sites.forEach((one, index) => {
    for (let head = 0; head < one.heads; head++) {
      const { role } = summaryOf(one, head);
      // what is mixed or broad says least about a text
      const vague = !role || role.name === "mixed" || role.name === "broad";
      const score = (vague ? 0.1 : role.score) * (1 - idleShare(one, head)) + (one.kind === "cross" ? 10 : 0);
      if (score > best.score) best = { score, site: index, head };
    }
  });
  const sequence = sites.length ? sequenceOf(sites[best.site], "query") : null;
  return { site: best.site, head: best.head, side: "query", element: sequence ? firstElement(sequence) : 0 };
}

/** The share of a head's weight that rests on special tokens and sinks. */
function idleShare(one, head) {
  const { elements } = sequenceOf(one, "key");
  const sinks = sinksOf(one.key).members;
  let [idle, all] = [0, 0];
  valuesOf(one, "received", head).forEach((received, j) => {
    all += received;
    if (sinks.has(j) || isSpecial(elements[j])) idle += received;
  });
  return all > 0 ? idle / all : 1;
}

/** The choice as the part of the address after "#", so that a link leads back to it. */
function address() {
  const parts = new URLSearchParams();
  if (sites.length) {
    parts.set("site", site().path);
    parts.set("head", state.head);
    parts.set("element", state.element);
    if (state.side === "key") parts.set("side", "key");
    if (state.sinks) parts.set("sinks", "out");
    if (state.picture !== "lines") parts.set("picture", state.picture);
    if (state.thumbnails !== "map") parts.set("thumbnails", state.thumbnails);
  }
  if (state.order !== "model") parts.set("order", state.order);
  if (state.reversed) parts.set("reversed", "1");
  if (state.word) parts.set("word", state.word.side + ":" + state.word.index);
  return "#" + parts;
}

function writeAddress() {
  history.replaceState(null, "", address());
}

/** Take over what an address says; what it does not say, or says wrongly, stays as it is. */
function readAddress(hash) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const patch = {};
  const found = sites.findIndex((one) => one.path === parts.get("site"));
  if (found >= 0) patch.site = found;
  const head = parts.get("head");
  if (head === MEAN) patch.head = MEAN;
  else if (/^\d+$/.test(head || "")) patch.head = Number(head);
  if (/^\d+$/.test(parts.get("element") || "")) patch.element = Number(parts.get("element"));
  if (parts.has("site")) {
    patch.side = parts.get("side") === "key" ? "key" : "query";
    patch.sinks = parts.get("sinks") === "out";
    patch.picture = parts.get("picture") === "matrix" ? "matrix" : "lines";
    patch.thumbnails = parts.get("thumbnails") === "matrix" ? "matrix" : "map";
    patch.reversed = parts.get("reversed") === "1";
    patch.order = ORDERS.includes(parts.get("order")) ? parts.get("order") : "model";
  }
  const word = /^(source|target):(\d+)$/.exec(parts.get("word") || "");
  const words = word && report.alignment ? report.alignment[word[1]] : [];
  if (word && Number(word[2]) < words.length) patch.word = { side: word[1], index: Number(word[2]) };
  return patch;
}
