// Start: draw everything once, then whatever a change asks for.

function buildMasthead() {
  const { name, task, description } = report.model;
  document.getElementById("model-name").textContent = name;
  document.getElementById("model-about").textContent = [task, description].filter(Boolean).join(" · ");
  document.getElementById("note").textContent = report.note || "";
  document.getElementById("note").hidden = !report.note;
  const text = document.getElementById("report").textContent;
  const button = document.getElementById("download");
  const size = text.length < 1e6 ? Math.ceil(text.length / 1e3) + " kB" : (text.length / 1e6).toFixed(1) + " MB";
  button.textContent = `Download data, JSON, ${size}`;
  button.title = "All numbers of this page, with 5 significant digits";
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `regard-${String(name).replace(/[^\w.-]+/gu, "-")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

function onStateChange(changed) {
  if (changed.has("word")) paintAlignment();
  if (changed.has("order") || changed.has("reversed")) layOutHeads();
  else if (changed.has("site") || changed.has("head")) markHead();
  if (["sinks", "thumbnails", "element", "side", "site"].some((name) => changed.has(name))) {
    describeOverview();
    paintOverview();
  }
  const others = [...changed].filter((name) => !["word", "order", "reversed", "thumbnails"].includes(name));
  if (others.length && sites.length) paintDetail(changed);
  describeState();
}

/** The choice, where scripts and tests can read it. */
function describeState() {
  const { dataset } = document.documentElement;
  if (sites.length) dataset.site = site().path;
  dataset.head = String(state.head);
  dataset.side = current().side;
  dataset.element = String(current().element);
}

/** Draw again what depends on colours or on the width of the page. */
function redraw() {
  readPalette();
  drawScale(document.getElementById("scale"), document.getElementById("scale-ticks"));
  paintAlignment();
  paintOverview();
  if (sites.length) paintDetail(new Set(["hover"]));
}

function start() {
  readPalette();
  buildMasthead();
  document.getElementById("main").hidden = false;
  buildAlignment();
  Object.assign(state, beginning(), readAddress(location.hash));
  settle();
  document.querySelector(".panes").hidden = !sites.length;
  if (sites.length) {
    buildOverview();
    preparePicture();
    onChange(onStateChange);
    paintDetail(new Set(["site"]));
  } else onChange(onStateChange);
  redraw();
  describeState();
  window.addEventListener("hashchange", () => {
    if (location.hash.includes("=")) change(readAddress(location.hash));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return; // a phone's address bar changes the height alone
    width = window.innerWidth;
    redraw();
  });
  document.getElementById("back").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("overview").scrollIntoView();
  });
  document.documentElement.dataset.ready = "true";
}

start();
