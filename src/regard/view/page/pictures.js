// Pictures whose parts can be chosen: an image, a spectrogram, frames of a video, with a cell over each element.

const VEIL = 0.84; // how much of a part is covered that is not looked at

function hasPictures(sequence) {
  return Boolean(sequence.pictures && sequence.pictures.length);
}

/** The pictures of a sequence as figures; `cells(index)` fills the frame over picture `index`. */
function figuresOf(sequence, cells) {
  return sequence.pictures.map((drawn, index) => {
    const figure = make("figure", "drawn" + (drawn.stretch ? " stretched" : ""));
    const frame = make("div", "frame");
    if (!drawn.stretch) frame.style.aspectRatio = `${drawn.width} / ${drawn.height}`;
    const image = make("img");
    image.src = drawn.uri;
    image.alt = sequence.title + (drawn.title ? ", " + drawn.title : "");
    frame.append(image);
    figure.append(frame);
    if (cells) cells(index, frame);
    if (drawn.title) figure.append(make("figcaption", "quiet small", drawn.title));
    // A picture is as wide as its frame, but not higher than fits a window together with what is said of it.
    figure.style.maxWidth = drawn.stretch ? "" : `min(100%, ${Math.round((460 * drawn.width) / drawn.height)}px)`;
    return figure;
  });
}

/**
 * Fill a container with the pictures of a sequence, a cell over each element that has a place, and the others before
 * them by their labels. Returns what `selectableText` does, and tint(links): bright is what has weight.
 */
function selectablePictures(container, { sequence, label, onHover, onChoose }) {
  const options = [];
  const option = (index, name, text) => {
    const node = make("span", name, text);
    node.dataset.index = index;
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", "false");
    node.setAttribute("aria-label", labelOf(sequence, index));
    node.tabIndex = -1;
    options[index] = node;
    return node;
  };
  container.replaceChildren();
  container.setAttribute("role", "listbox");
  container.setAttribute("aria-label", label);
  const beside = make("div", "beside");
  const cells = sequence.pictures.map(() => []);
  sequence.elements.forEach(({ index }) => {
    const place = sequence.places[index];
    if (!place) {
      beside.append(option(index, "part special", labelOf(sequence, index)), " ");
      return;
    }
    const [picture, left, top, right, bottom] = place;
    const { width, height } = sequence.pictures[picture];
    const node = option(index, isSpecial(sequence.elements[index]) ? "cell special" : "cell");
    node.style.left = (100 * left) / width + "%";
    node.style.top = (100 * top) / height + "%";
    node.style.width = (100 * (right - left)) / width + "%";
    node.style.height = (100 * (bottom - top)) / height + "%";
    cells[picture].push(node);
  });
  const strip = make("div", "strip");
  const veils = sequence.pictures.map(() => make("canvas", "veil"));
  strip.append(...figuresOf(sequence, (picture, frame) => {
    veils[picture].setAttribute("aria-hidden", "true");
    frame.append(veils[picture], ...cells[picture], ...outsideOf(sequence, picture));
  }));
  if (beside.firstChild) container.append(beside);
  container.append(strip);
  if (options[0]) options[0].tabIndex = 0;
  listen(container, options, onHover, onChoose);
  let chosen = -1;
  const markChosen = (index) => {
    if (options[chosen]) options[chosen].setAttribute("aria-selected", "false");
    chosen = index;
    if (!options[index]) return;
    options[index].setAttribute("aria-selected", "true");
    makeStop(options, index);
  };
  const isCell = (index) => options[index] && options[index].classList.contains("cell");
  const tintParts = (links) => {
    for (const { index, weight } of links) {
      if (!isCell(index)) tint(options[index], weight);
      options[index].title = `${labelOf(sequence, index)}: ${exactly(weight)}`;
    }
    const placed = links.filter((link) => isCell(link.index));
    drawVeils(veils, sequence, placed);
    return placed[0];
  };
  const clear = (node) => {
    if (!node.classList.contains("cell")) tint(node, null);
  };
  return { node: (index) => options[index], markChosen, tint: tintParts, clear };
}

const extentCache = new Map();

/** Left, top, right and bottom of all elements of a picture together, in its own units. */
function extentOf(sequence, picture) {
  if (!extentCache.has(sequence)) {
    const found = sequence.pictures.map(() => [Infinity, Infinity, -Infinity, -Infinity]);
    for (const place of sequence.places) {
      if (!place) continue;
      const extent = found[place[0]];
      for (const at of [0, 1]) extent[at] = Math.min(extent[at], place[at + 1]);
      for (const at of [2, 3]) extent[at] = Math.max(extent[at], place[at + 1]);
    }
    extentCache.set(sequence, found);
  }
  return extentCache.get(sequence)[picture];
}

/** Covers for what lies around all elements of a picture: the model was not shown it. */
function outsideOf(sequence, picture) {
  const { width, height } = sequence.pictures[picture];
  const [left, top, right, bottom] = extentOf(sequence, picture).map((value, at) => value / (at % 2 ? height : width));
  const sides = [[0, 0, 1, top], [0, bottom, 1, 1], [0, top, left, bottom], [right, top, 1, bottom]];
  return sides.filter(([x0, y0, x1, y1]) => x1 - x0 > 1e-3 && y1 - y0 > 1e-3).map(([x0, y0, x1, y1]) => {
    const node = make("span", "outside");
    node.title = "not among the elements";
    Object.assign(node.style, { left: 100 * x0 + "%", top: 100 * y0 + "%", width: 100 * (x1 - x0) + "%", height: 100 * (y1 - y0) + "%" });
    return node;
  });
}

/** Cover every picture but for the places of `links`, largest first: of the first nothing is covered. */
function drawVeils(veils, sequence, links) {
  const ratio = window.devicePixelRatio || 1;
  const contexts = veils.map((canvas) => {
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    const context = canvas.getContext("2d");
    context.fillStyle = `rgb(12 14 18 / ${VEIL})`;
    context.fillRect(0, 0, canvas.width, canvas.height);
    return context;
  });
  for (const { index, weight } of links) {
    const [picture, ...box] = sequence.places[index];
    const { width, height } = sequence.pictures[picture];
    const canvas = veils[picture];
    // Both sides of an edge are rounded alike: cells neither overlap nor leave a gap.
    const [x0, x1] = [box[0], box[2]].map((x) => Math.round((x / width) * canvas.width));
    const [y0, y1] = [box[1], box[3]].map((y) => Math.round((y / height) * canvas.height));
    contexts[picture].clearRect(x0, y0, x1 - x0, y1 - y0);
    contexts[picture].fillStyle = `rgb(12 14 18 / ${VEIL * (1 - Math.sqrt(weight / (links[0].weight || 1)))})`;
    contexts[picture].fillRect(x0, y0, x1 - x0, y1 - y0);
  }
}

/** What the brightness of pictures means here, `rest` being the weight that is not listed; nothing for texts. */
function pictureKey(sequence, strongest, rest) {
  if (!hasPictures(sequence)) return "";
  if (!strongest) return "No part of the picture has a weight that is listed.";
  const shown = `Bright has weight: brightest ${labelOf(sequence, strongest.index)} with ${exactly(strongest.weight)}, others by the square root of their share of that.`;
  return shown + (rest >= NOTHING ? ` A weight of ${exactly(rest)} is spread over other parts, which are left dark.` : "");
}

/**
 * What an element looks at, or what looks at it, as a small picture: each link at its place, the strongest in full
 * colour. Several pictures lie beside each other.
 */
function drawMap(canvas, sequence, links, size) {
  const ratio = window.devicePixelRatio || 1;
  const pixels = Math.round(size * ratio);
  canvas.width = canvas.height = pixels;
  const context = canvas.getContext("2d");
  context.fillStyle = palette.css[0];
  context.fillRect(0, 0, pixels, pixels);
  const count = sequence.pictures.length;
  const columns = Math.ceil(Math.sqrt(count));
  const gap = count > 1 ? 2 * ratio : 0;
  const across = (pixels + gap) / columns;
  const placed = links.filter((link) => sequence.places[link.index]);
  const strongest = placed.length ? placed[0].weight : 0;
  const outer = sequence.pictures.map((_, picture) => extentOf(sequence, picture));
  if (count > 1) {
    context.fillStyle = palette.rule;
    for (let at = 1; at < columns; at++) {
      context.fillRect(Math.round(at * across - gap), 0, gap, pixels);
      context.fillRect(0, Math.round(at * across - gap), pixels, gap);
    }
  }
  for (const { index, weight } of placed.reverse()) {
    const [picture, ...box] = sequence.places[index];
    const [left, top, right, bottom] = outer[picture];
    const [x, y] = [(picture % columns) * across, Math.floor(picture / columns) * across];
    const at = (value, from, to) => ((value - from) / (to - from)) * (across - gap);
    const [x0, x1] = [at(box[0], left, right), at(box[2], left, right)].map(Math.round);
    const [y0, y1] = [at(box[1], top, bottom), at(box[3], top, bottom)].map(Math.round);
    context.fillStyle = palette.css[step(weight / (strongest || 1))];
    context.fillRect(Math.round(x) + x0, Math.round(y) + y0, Math.max(1, x1 - x0), Math.max(1, y1 - y0));
  }
}
