// Colour and canvas: one scale for every weight on the page, and pictures of weights at the screen's own resolution.

const palette = {};

/** Read the colours of the current scheme from the style sheet, and lay out the scale of weights. */
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["panel", "ink", "muted", "rule", "chosen", "w0", "w1", "w2"]) {
    palette[name] = style.getPropertyValue("--" + name).trim();
  }
  const stops = [palette.w0, palette.w1, palette.w2].map(channels);
  palette.scale = new Uint32Array(256);
  palette.css = [];
  palette.text = [];
  for (let step = 0; step < 256; step++) {
    const t = (step / 255) * 2;
    const [from, to] = t < 1 ? [stops[0], stops[1]] : [stops[1], stops[2]];
    const [r, g, b] = from.map((value, at) => Math.round(value + (to[at] - value) * (t < 1 ? t : t - 1)));
    palette.scale[step] = (255 << 24) | (b << 16) | (g << 8) | r;
    palette.css.push(`rgb(${r} ${g} ${b})`);
    palette.text.push(readableOn([r, g, b]));
  }
  palette.font = getComputedStyle(document.body).fontFamily;
}

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => (value <= 10 ? value / 3294 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** How far two colours stand apart, from 1 to 21 (WCAG contrast). */
function contrast(one, other) {
  const [a, b] = [luminance(one) + 0.05, luminance(other) + 0.05];
  return Math.max(a, b) / Math.min(a, b);
}

/** The text colour for a background: the usual ink where it stands out well, else black or white. */
function readableOn(rgb) {
  if (contrast(rgb, channels(palette.ink)) >= 7) return palette.ink;
  return contrast(rgb, [0, 0, 0]) >= contrast(rgb, [255, 255, 255]) ? "#000000" : "#ffffff";
}

/** The place of a weight on the scale: its square root, so that small weights can be told apart. */
function step(weight) {
  return weight <= 0 ? 0 : Math.min(255, Math.round(Math.sqrt(weight) * 255));
}

/** Colour an element of the page by a weight; null takes the colour away. */
function tint(node, weight) {
  node.style.backgroundColor = weight === null ? "" : palette.css[step(weight)];
  node.style.color = weight === null ? "" : palette.text[step(weight)];
}

/** Give a canvas a size in CSS pixels at the screen's own resolution; the drawing context counts in CSS pixels. */
function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

/**
 * The weights of rows [q0, q1) and keys [k0, k1) as an image of width × height pixels. Where several links fall on
 * one pixel, the largest is seen.
 */
function weightImage(rows, { q0, q1, k0, k1 }, width, height) {
  const largest = new Uint8Array(width * height);
  const across = width / (k1 - k0);
  const down = height / (q1 - q0);
  for (let i = q0; i < q1; i++) {
    const top = Math.floor((i - q0) * down);
    const bottom = Math.max(top + 1, Math.floor((i - q0 + 1) * down));
    for (let at = i * rows.k; at < (i + 1) * rows.k; at++) {
      const j = rows.key[at];
      if (j < k0 || j >= k1) continue;
      const left = Math.floor((j - k0) * across);
      const right = Math.max(left + 1, Math.floor((j - k0 + 1) * across));
      const value = step(rows.weight[at]);
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) {
          if (value > largest[y * width + x]) largest[y * width + x] = value;
        }
      }
    }
  }
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let at = 0; at < pixels.length; at++) pixels[at] = palette.scale[largest[at]];
  return image;
}

/** A head as a small picture: queries down, keys across. */
function drawThumbnail(canvas, rows, size) {
  const ratio = window.devicePixelRatio || 1;
  const pixels = Math.round(size * ratio);
  canvas.width = canvas.height = pixels;
  const all = { q0: 0, q1: rows.queries, k0: 0, k1: rows.keys };
  canvas.getContext("2d").putImageData(weightImage(rows, all, pixels, pixels), 0, 0);
}

/** The scale of weights as a bar, with the places of a few weights under it. */
function drawScale(canvas, ticks) {
  const width = 160;
  const context = sized(canvas, width, 10);
  for (let x = 0; x < width; x++) {
    context.fillStyle = palette.css[Math.round((x / (width - 1)) * 255)];
    context.fillRect(x, 0, 1, 10);
  }
  ticks.replaceChildren(...[0, 0.05, 0.25, 0.5, 1].map((weight) => {
    const tick = document.createElement("span");
    tick.textContent = weight;
    tick.style.left = Math.sqrt(weight) * width + "px";
    return tick;
  }));
}

/** `text` shortened to fit `width` pixels of a drawing context. */
function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const characters = Array.from(text);
  while (characters.length && context.measureText(characters.join("") + "…").width > width) characters.pop();
  return characters.join("") + "…";
}
