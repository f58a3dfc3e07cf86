// Every head of the model at a glance: one small picture a head, in the model's order or sorted by what heads do.

const overview = { cells: [], watcher: null };

function buildOverview() {
  const order = document.getElementById("order");
  order.addEventListener("change", () => change({ order: order.value }));
  document.getElementById("reverse").addEventListener("click", () => change({ reversed: !state.reversed }));
  overview.watcher = new IntersectionObserver(
    (seen) => {
      for (const { target, isIntersecting } of seen) {
        target.cell.inView = isIntersecting;
        if (isIntersecting) paintCell(target.cell);
      }
    },
    { rootMargin: "200px" },
  );
  const drawn = document.getElementById("thumbnails");
  drawn.parentElement.hidden = !sites.some((one) => hasMap(one, "query") || hasMap(one, "key"));
  drawn.addEventListener("change", () => change({ thumbnails: drawn.value }));
  const roles = Object.entries(report.roles || {});
  document.getElementById("roles").hidden = !roles.length;
  document.getElementById("role-list").append(
    ...roles.flatMap(([name, meaning]) => [make("dt", "", name), make("dd", "quiet", meaning)]),
  );
  listenToHeads();
  layOutHeads();
}

/** Put the cells in the order that is asked for, kind by kind. */
function layOutHeads() {
  const box = document.getElementById("heads");
  overview.watcher.disconnect();
  overview.cells = [];
  box.replaceChildren();
  for (const group of groups) {
    const first = sites[group.sites[0]];
    const title = make("h3", "", group.title);
    const [query, key] = [sequenceOf(first, "query").title, sequenceOf(first, "key").title];
    title.append(make("span", "quiet small", query === key ? " " + query : " " + query + " looks at " + key));
    box.append(title);
    for (const [name, cells] of linesOfHeads(group)) {
      const line = make("div", "head-line");
      if (name) line.append(make("div", "layer-name", name));
      const grid = make("div", "head-grid");
      grid.append(...cells.map(({ site: index, head }) => makeCell(index, head, !name)));
      line.append(grid);
      box.append(line);
    }
  }
  document.getElementById("order").value = state.order;
  document.getElementById("reverse").setAttribute("aria-pressed", String(state.reversed));
  const number = { entropy: "mean entropy of a row, in nats", distance: "mean distance of what a row looks at, in elements", largest: "largest weight of a row, mean over rows" }[state.order];
  overview.below = " Below each: " + (number || "its role, and how well it fits") + ".";
  describeOverview();
  markHead();
}

/** Whether the other side of a site's links is drawn in pictures, for an element of this side. */
function hasMap(one, side) {
  return hasPictures(sequenceOf(one, side === "query" ? "key" : "query"));
}

/** What the small pictures show. */
function describeOverview() {
  document.getElementById("thumbnails").value = state.thumbnails;
  const maps = state.thumbnails === "map" && hasMap(site(), state.side);
  const name = nameOf(sequenceOf(site(), state.side).elements, state.element);
  const what = state.side === "query" ? `What ${name} looks at` : `What looks at ${name}`;
  document.getElementById("overview-note").textContent =
    (maps ? what + ", as on the picture; colour by the square root of the share of the strongest in each head." : "Queries down, keys across; colour by the square root of the weight.") + overview.below;
}

/** The heads of a group, as named lines: a line a layer in the model's order, else one line that is sorted. */
function linesOfHeads(group) {
  const layers = group.sites.map((index) => [
    layerName(sites[index]),
    Array.from({ length: sites[index].heads }, (_, head) => ({ site: index, head })),
  ]);
  if (state.order === "model") return state.reversed ? layers.reverse() : layers;
  const cells = layers.flatMap(([, heads]) => heads);
  const value = new Map(cells.map((cell) => [cell, summaryOf(sites[cell.site], cell.head)]));
  const number = (cell) => value.get(cell)[state.order] ?? Infinity;
  cells.sort((a, b) => {
    if (state.order !== "role") return number(a) - number(b);
    const [one, two] = [value.get(a).role, value.get(b).role];
    if (!one || !two) return (one ? 0 : 1) - (two ? 0 : 1);
    return one.name.localeCompare(two.name) || two.score - one.score;
  });
  if (state.reversed) cells.reverse();
  return [["", cells]];
}

function makeCell(index, head, withLayer) {
  const one = sites[index];
  const summary = summaryOf(one, head);
  const node = make("button", "head");
  node.type = "button";
  node.tabIndex = -1;
  const canvas = make("canvas");
  canvas.setAttribute("aria-hidden", "true");
  const name = make("span", "head-name", summary.role ? summary.role.name : "no clear role");
  const measured = state.order === "model" || state.order === "role" ? summary.role && summary.role.score : summary[state.order];
  const place = withLayer ? "L" + (one.layer ?? "?") + " H" + head : "H" + head;
  const line = make("span", "head-number");
  line.append(make("span", "", place), make("span", "", briefly(measured)));
  node.append(canvas, name, line);
  node.title =
    `${layerName(one)}, head ${head}: ${summary.role ? summary.role.name + " " + briefly(summary.role.score) : "no clear role"}\n` +
    `entropy ${briefly(summary.entropy)} nats, distance ${briefly(summary.distance)}, largest weight ${briefly(summary.largest)}\n${one.path}`;
  node.setAttribute("aria-label", `${groupTitle(one)}, ${node.title.split("\n").slice(0, 2).join("; ")}`);
  const cell = { node, canvas, site: index, head, painted: null, inView: false };
  node.cell = cell;
  overview.cells.push(cell);
  overview.watcher.observe(node);
  return node;
}

/** Draw a cell's picture, unless it stands there already. */
function paintCell(cell) {
  const one = sites[cell.site];
  const rows = headRows(one, cell.head, state.sinks && sinksOf(one.key).list.length > 0);
  const width = cell.canvas.clientWidth;
  const map = state.thumbnails === "map" && hasMap(one, state.side);
  const wanted = [rows, width, palette.scale, map && state.side, map && state.element];
  if (!width || (cell.painted && wanted.every((value, at) => value === cell.painted[at]))) return;
  cell.painted = wanted;
  if (map) drawMap(cell.canvas, sequenceOf(one, state.side === "query" ? "key" : "query"), linksAt(rows, state), width);
  else drawThumbnail(cell.canvas, rows, width);
}

function paintOverview() {
  for (const cell of overview.cells) if (cell.inView) paintCell(cell);
}

/** Mark the chosen head; with the mean, all heads of its layer. */
function markHead() {
  let stop = null;
  for (const cell of overview.cells) {
    const chosen = cell.site === state.site && (state.head === MEAN || cell.head === state.head);
    cell.node.setAttribute("aria-pressed", String(chosen));
    cell.node.tabIndex = -1;
    if (chosen && !stop) stop = cell;
  }
  stop = stop || overview.cells[0];
  if (!stop) return;
  stop.node.tabIndex = 0;
  scrollWithin(document.getElementById("heads"), stop.node);
}

/** One stop of the tab key for all heads; arrows move among them as they lie on the page. */
function listenToHeads() {
  const box = document.getElementById("heads");
  box.addEventListener("click", (event) => {
    const node = event.target.closest("button.head");
    if (!node) return;
    change({ site: node.cell.site, head: node.cell.head });
    const [pictures, detail] = ["overview", "detail"].map((id) => document.getElementById(id));
    // On a narrow page the chosen head is not beside the pictures: go there.
    if (detail.offsetLeft === pictures.offsetLeft) detail.scrollIntoView();
  });
  box.addEventListener("keydown", (event) => {
    const nodes = overview.cells.map((cell) => cell.node);
    const from = nodes.indexOf(event.target.closest("button.head"));
    const to = from < 0 || event.key === "Enter" || event.key === " " ? null : destination(nodes, from, event.key, box);
    if (to === null) return;
    event.preventDefault();
    nodes[from].tabIndex = -1;
    nodes[to].tabIndex = 0;
    nodes[to].focus();
  });
}
