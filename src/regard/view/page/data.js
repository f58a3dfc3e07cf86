// The report, and a head read as rows of links. "Raw" is what the model gave; nothing here touches the page.

const report = JSON.parse(document.getElementById("report").textContent);
const sites = report.sites;
const MEAN = "mean"; // stands for a head: the mean over the heads of a layer
const NOTHING = 5e-5; // a weight that would print as 0.0000
const NOISE = 1e-6; // what adding up rounded weights may leave over

/** Sites that belong side by side: one kind of attention, layer after layer. */
const groups = (() => {
  const found = new Map();
  sites.forEach((site, index) => {
    const name = groupTitle(site);
    if (!found.has(name)) found.set(name, { title: name, sites: [] });
    found.get(name).sites.push(index);
  });
  return [...found.values()];
})();

function groupTitle(site) {
  if (site.kind === "cross") return "Cross-attention";
  const part = site.part ? site.part[0].toUpperCase() + site.part.slice(1) + " self" : "Self";
  return part + "-attention";
}

function sequenceOf(site, side) {
  return report.sequences[site[side]];
}

function layerName(site) {
  return site.layer === null || site.layer === undefined ? site.path : "layer " + site.layer;
}

function headName(site, head) {
  return head === MEAN ? "mean of " + site.heads + " heads" : "head " + head;
}

/** A label as a person should see it: no marks of word beginnings, white space made visible. */
function visible(label) {
  const text = String(label).replace(/^[\u2581\u0120]+/u, "").trim();
  if (text) return text.replace(/\s+/gu, " ");
  return String(label).replace(/\n/gu, "⏎").replace(/\t/gu, "⇥").replace(/[ \u00a0\u2581\u0120]/gu, "␣") || "∅";
}

function labelOf(sequence, index) {
  return visible(sequence.elements[index].label);
}

const nameCache = new Map();

/** A label that names one element: with its position, where the text has the same label elsewhere. */
function nameOf(parts, index) {
  const label = visible(parts[index].label);
  if (!nameCache.has(parts)) {
    const counts = new Map();
    for (const part of parts) counts.set(visible(part.label), (counts.get(visible(part.label)) || 0) + 1);
    nameCache.set(parts, counts);
  }
  const quoted = /[\p{L}\p{N}<[]/u.test(label) ? label : `“${label}”`;
  return nameCache.get(parts).get(label) > 1 ? `${quoted} (${index})` : quoted;
}

/** Whether an element stands for no part of the input: a beginning, an end, a class token. */
function isSpecial(element) {
  return element.span === null || element.span === undefined;
}

const rowCache = new Map();

/**
 * A head as rows of links: row i holds k keys (-1: none) and weights from i * k on, largest first, and `rest[i]`, the
 * weight that is not shown, spread over keys of at most `least[i]` each. `complete`: nothing is left out.
 * `emptied[i]`: a row that looked at sinks alone.
 */
function headRows(site, head, withoutSinks) {
  const name = [site.path, head, withoutSinks].join("\u0000");
  let rows = rowCache.get(name);
  if (!rows) {
    if (rowCache.size > 400) rowCache.clear();
    if (withoutSinks) rows = dropSinks(headRows(site, head, false), sinksOf(site.key).members);
    else rows = head === MEAN ? meanRows(site) : rawRows(site, head);
    rowCache.set(name, rows);
  }
  return rows;
}

function newRows(queries, keys, k) {
  const key = new Int32Array(queries * k).fill(-1);
  const weight = new Float32Array(queries * k);
  const [rest, least] = [new Float32Array(queries), new Float32Array(queries)];
  return { queries, keys, k, key, weight, rest, least, emptied: null, complete: true };
}

function rawRows(site, head) {
  const keys = site.top_keys[head];
  const weights = site.top_weights[head];
  const k = keys.length ? keys[0].length : 0;
  const rows = newRows(keys.length, sequenceOf(site, "key").elements.length, k);
  for (let i = 0; i < keys.length; i++) {
    rows.key.set(keys[i], i * k);
    rows.weight.set(weights[i], i * k);
  }
  site.rest[head].forEach((rest, i) => (rows.rest[i] = rest < NOISE ? 0 : rest));
  // A row with room left has shown every key that it may see at all; else no other key exceeds the last one shown.
  if (k > 0 && k < rows.keys) {
    for (let i = 0; i < keys.length; i++) {
      if (keys[i][k - 1] >= 0) rows.least[i] = Math.min(weights[i][k - 1], Math.max(rows.rest[i], 0));
    }
  }
  rows.complete = rows.rest.every((rest) => rest < NOTHING);
  return rows;
}

/** The mean over heads of what is shown; what some heads show and others do not is in `rest` for the others. */
function meanRows(site) {
  const heads = Array.from({ length: site.heads }, (_, head) => headRows(site, head, false));
  const { queries, keys, k } = heads[0];
  const rows = newRows(queries, keys, Math.min(keys, k * site.heads));
  const sum = new Float64Array(keys);
  for (let i = 0; i < queries; i++) {
    const touched = [];
    for (const one of heads) {
      for (let at = i * k; at < (i + 1) * k; at++) {
        const j = one.key[at];
        if (j < 0) continue;
        if (sum[j] === 0) touched.push(j);
        sum[j] += one.weight[at] / site.heads || Number.MIN_VALUE; // a zero weight is still a link that is known
      }
      rows.rest[i] += one.rest[i] / site.heads;
      rows.least[i] += one.least[i] / site.heads;
    }
    touched.sort((a, b) => sum[b] - sum[a] || a - b);
    touched.forEach((j, place) => {
      rows.key[i * rows.k + place] = j;
      rows.weight[i * rows.k + place] = sum[j];
      sum[j] = 0;
    });
  }
  rows.complete = heads.every((one) => one.complete);
  return rows;
}

/** The links of every key, as slices [start[j], start[j + 1]) of `query` and `weight`. */
function columnsOf(rows) {
  if (rows.columns) return rows.columns;
  const start = new Int32Array(rows.keys + 1);
  for (const j of rows.key) if (j >= 0) start[j + 1]++;
  for (let j = 0; j < rows.keys; j++) start[j + 1] += start[j];
  const next = start.slice();
  const query = new Int32Array(start[rows.keys]);
  const weight = new Float32Array(start[rows.keys]);
  for (let at = 0; at < rows.key.length; at++) {
    const j = rows.key[at];
    if (j < 0) continue;
    query[next[j]] = Math.floor(at / rows.k);
    weight[next[j]++] = rows.weight[at];
  }
  rows.columns = { start, query, weight };
  return rows.columns;
}

/** What a query looks at (side "query"), or who looks at a key (side "key"): [{index, weight}], largest first. */
function linksOf(rows, side, index) {
  const links = [];
  if (side === "query") {
    for (let at = index * rows.k; at < (index + 1) * rows.k; at++) {
      if (rows.key[at] >= 0) links.push({ index: rows.key[at], weight: rows.weight[at] });
    }
  } else {
    const { start, query, weight } = columnsOf(rows);
    for (let at = start[index]; at < start[index + 1]; at++) links.push({ index: query[at], weight: weight[at] });
  }
  return links.sort((a, b) => b.weight - a.weight || a.index - b.index);
}

/** One weight: {weight} where it is known, {below} where it is only known to be at most that. */
function weightAt(rows, query, key) {
  for (let at = query * rows.k; at < (query + 1) * rows.k; at++) {
    if (rows.key[at] === key) return { weight: rows.weight[at] };
  }
  return rows.least[query] > 0 ? { below: rows.least[query] } : { weight: 0 };
}

/** The weight a key receives from all queries together, as the model counted it. */
function receivedBy(site, head, key) {
  const heads = chosenHeads(site, head).map((one) => valuesOf(site, "received", one)[key]);
  return average(heads);
}

/** The numbers of a row without sinks, from its links, which must be all there are. */
function recounted(rows, query) {
  const links = linksOf(rows, "query", query);
  if (!links.length) return { entropy: null, largest: null, distance: null };
  const numbers = { entropy: 0, largest: links[0].weight, distance: 0 };
  for (const { index, weight } of links) {
    if (weight > 0) numbers.entropy -= weight * Math.log(weight);
    numbers.distance += weight * Math.abs(query - index);
  }
  return numbers;
}

/** The model's own numbers of one row, over all keys: null where nothing is allowed. */
function numbersOf(site, head, query) {
  const one = (field) => average(chosenHeads(site, head).map((h) => valuesOf(site, field, h)[query]));
  return { entropy: one("entropy"), largest: one("max_weight"), distance: one("mean_distance") };
}

/** What a head is like as a whole: means over its rows, and its role, if it has one. */
function summaryOf(site, head) {
  const one = (field) => average(chosenHeads(site, head).map((h) => average(valuesOf(site, field, h))));
  const role = (head !== MEAN && site.roles && site.roles[head]) || null;
  return { entropy: one("entropy"), largest: one("max_weight"), distance: one("mean_distance"), role };
}

function chosenHeads(site, head) {
  return head === MEAN ? Array.from({ length: site.heads }, (_, one) => one) : [head];
}

/** A statistic of one head, a number a row or a key; none where the report goes without it. */
function valuesOf(site, field, head) {
  return site[field] ? site[field][head] : [];
}

/** The mean of the numbers in a list; null when there are none. */
function average(values) {
  let sum = 0;
  let count = 0;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    sum += value;
    count++;
  }
  return count ? sum / count : null;
}

/** A weight to 4 decimals; one that is not zero never reads as zero. */
function exactly(value) {
  if (value === null || value === undefined) return "–";
  if (value > 0 && value < NOTHING) return "<0.0001";
  return value.toFixed(4);
}

function briefly(value) {
  return value === null || value === undefined ? "–" : value.toFixed(2);
}
