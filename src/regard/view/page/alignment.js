// Input and answer, and which word renders which.

const alignment = { sides: {}, hovered: null };

function buildAlignment() {
  const given = report.alignment;
  for (const side of ["source", "target"]) {
    const text = side === "source" ? report.input : report.answer;
    const sequence = given ? report.sequences[side] : null;
    const box = document.getElementById(side + "-words");
    const plain = side === "source" ? "Input" : "Answer";
    document.getElementById(side + "-title").textContent = sequence ? sequence.title : plain;
    if (!given) {
      box.textContent = text === null || text === undefined ? "" : String(text);
      const drawn = side === "source" ? Object.values(report.sequences).filter(hasPictures) : [];
      const figures = drawn.flatMap((shown) => figuresOf(shown));
      if (figures.length) box.append(make("span", "strip"));
      if (figures.length) box.lastChild.append(...figures);
      if (side === "target" && report.labels) box.replaceChildren(labelList(report.labels));
      box.parentElement.hidden = !box.firstChild;
      continue;
    }
    alignment.sides[side] = selectableText(box, {
      text: sequence && typeof sequence.text === "string" ? sequence.text : text,
      parts: given[side],
      label: (sequence ? sequence.title : plain) + ": words",
      onHover: (index) => hoverWord(index === null ? null : { side, index }),
      onChoose: (index) => chooseWord({ side, index }),
    });
  }
  document.getElementById("alignment-lines").hidden = !given;
  document.getElementById("alignment-readout").hidden = !given;
  document.getElementById("alignment").classList.toggle("plain-text", !given);
  document.getElementById("alignment-method").textContent = given ? "Word alignment: " + given.method + "." : "";
  document.getElementById("alignment").addEventListener("keydown", (event) => {
    if (event.key === "Escape") change({ word: null });
  });
}

/** Classes with their scores, and bars where the scores are shares. */
function labelList(labels) {
  const list = make("ol", "labels");
  for (const { label, score } of labels) {
    const item = make("li");
    const bar = make("span", "bar");
    bar.style.width = Math.max(0, Math.min(100, score * 100)) + "%";
    const frame = make("span", "bar-frame");
    frame.append(bar);
    item.append(make("span", "label", label), frame, make("span", "numbers", exactly(score)));
    list.append(item);
  }
  return list;
}

function hoverWord(word) {
  const before = alignment.hovered;
  if (word && before && word.side === before.side && word.index === before.index) return;
  alignment.hovered = word;
  paintAlignment();
}

/** Pin a word; the pinned word, chosen once more, is let go. */
function chooseWord(word) {
  const same = state.word && state.word.side === word.side && state.word.index === word.index;
  change({ word: same ? null : word });
}

/** The weights between a word and the words of the other side, strongest first. */
function partnersOf({ side, index }) {
  const { weights } = report.alignment;
  const values = side === "target" ? weights[index] : weights.map((row) => row[index]);
  return values.map((weight, other) => ({ index: other, weight })).sort((a, b) => b.weight - a.weight || a.index - b.index);
}

function paintAlignment() {
  const given = report.alignment;
  if (!given) return;
  const now = alignment.hovered || state.word;
  const partners = now ? partnersOf(now) : [];
  const other = now && (now.side === "target" ? "source" : "target");
  for (const side of ["source", "target"]) {
    const pinned = state.word && state.word.side === side ? state.word.index : -1;
    alignment.sides[side].markChosen(pinned, false);
    given[side].forEach((_, index) => {
      const node = alignment.sides[side].node(index);
      tint(node, null);
      node.classList.toggle("chosen", Boolean(now) && now.side === side && now.index === index);
      delete node.dataset.weight;
    });
  }
  for (const { index, weight } of partners) {
    if (weight < 0.005) break;
    const node = alignment.sides[other].node(index);
    tint(node, weight);
    if (weight >= 0.05) node.dataset.weight = weight.toFixed(2);
  }
  readWord(now, partners, other);
  drawAlignmentLines(now, partners);
}

function readWord(now, partners, other) {
  const given = report.alignment;
  const readout = document.getElementById("alignment-readout");
  if (!now) {
    readout.textContent = "Point at a word, tap it, or move with the arrow keys, to see its partners.";
    return;
  }
  const arrow = now.side === "target" ? " ← " : " → ";
  const strong = partners.filter((link) => link.weight >= 0.005).slice(0, 5);
  const parts = strong.map((link) => nameOf(given[other], link.index) + " " + exactly(link.weight));
  readout.replaceChildren(
    make("strong", "", nameOf(given[now.side], now.index)),
    arrow + (parts.length ? parts.join(" · ") : "no word with a weight of 0.005 or more"),
  );
}

/** Curves between the two lines of words, where each fits on one line; elsewhere the colours say it alone. */
function drawAlignmentLines(now, partners) {
  const canvas = document.getElementById("alignment-lines");
  const [top, bottom] = ["source", "target"].map((side) => report.alignment[side].map((_, i) => alignment.sides[side].node(i)));
  const oneLine = (nodes) => nodes.every((node) => Math.abs(node.offsetTop - nodes[0].offsetTop) < 8);
  const fits = top.length > 0 && bottom.length > 0 && oneLine(top) && oneLine(bottom);
  canvas.hidden = !fits;
  document.getElementById("alignment").classList.toggle("with-lines", fits);
  if (!fits) return;
  const frame = canvas.parentElement.getBoundingClientRect();
  const height = 56;
  const context = sized(canvas, Math.floor(frame.width), height);
  const middle = (node) => {
    const box = node.getBoundingClientRect();
    return (box.left + box.right) / 2 - frame.left;
  };
  const curve = (source, target, weight, faint) => {
    context.globalAlpha = faint ? (now ? 0.25 : 0.6) : 1;
    context.strokeStyle = faint ? (now ? palette.muted : palette.w1) : palette.css[step(weight)];
    context.lineWidth = faint ? 0.5 + 2 * weight : 1 + 4 * weight;
    const [from, to] = [middle(top[source]), middle(bottom[target])];
    context.beginPath();
    context.moveTo(from, 0);
    context.bezierCurveTo(from, height * 0.5, to, height * 0.5, to, height);
    context.stroke();
  };
  for (const link of report.alignment.links) {
    curve(link.source, link.target, link.weight, true);
  }
  for (const { index, weight } of [...partners].reverse()) {
    if (weight < 0.02) continue;
    if (now.side === "target") curve(index, now.index, weight, false);
    else curve(now.index, index, weight, false);
  }
}
