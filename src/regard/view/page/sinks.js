// Attention sinks: elements that take weight in most heads whatever the text says, and rows without them.

const sinkCache = new Map();

/**
 * The sinks of a sequence: special tokens, punctuation and the first element, where they are given much weight in
 * more than half of the heads that read the sequence.
 */
function sinksOf(name) {
  if (sinkCache.has(name)) return sinkCache.get(name);
  const elements = report.sequences[name].elements;
  const candidates = elements.filter((element) => mayBeSink(element)).map((element) => element.index);
  const votes = new Int32Array(elements.length);
  let heads = 0;
  for (const site of sites) {
    if (site.key !== name) continue;
    const much = muchWeight(site, elements.length);
    for (const received of site.received || []) {
      const all = received.reduce((sum, value) => sum + value, 0);
      for (const j of candidates) if (all > 0 && received[j] / all >= much(j)) votes[j]++;
      heads++;
    }
  }
  const list = candidates.filter((j) => votes[j] * 2 > heads);
  const found = { list, members: new Set(list) };
  sinkCache.set(name, found);
  return found;
}

function mayBeSink(element) {
  return isSpecial(element) || element.index === 0 || /^[\p{P}\p{S}]+$/u.test(visible(element.label));
}

const SINK_RULE =
  "A sink is a special token, a punctuation mark or the first element that, in more than half of the heads reading " +
  "this input, is given at least twice the weight of an average element, and 1.5 times what rows that spread their " +
  "weight evenly would give it.";

/** The share of all weight from which key j is given much, by the rule above. */
function muchWeight(site, keys) {
  const rows = headRows(site, 0, false);
  let causal = site.query === site.key;
  for (let at = 0; causal && at < rows.key.length; at++) causal = rows.key[at] <= Math.floor(at / rows.k);
  if (!causal) return () => 2 / keys;
  const even = new Float64Array(keys + 1); // key j is seen by the rows i >= j, each giving it 1 / (i + 1)
  for (let j = keys - 1; j >= 0; j--) even[j] = even[j + 1] + 1 / (j + 1) / keys;
  return (j) => Math.max(2 / keys, 1.5 * even[j]);
}

/** The rows without the links to sinks, each scaled so that it adds up to 1 again. */
function dropSinks(raw, sinks) {
  const rows = newRows(raw.queries, raw.keys, raw.k);
  rows.emptied = new Uint8Array(raw.queries);
  for (let i = 0; i < raw.queries; i++) {
    let shown = raw.rest[i];
    let taken = 0;
    for (let at = i * raw.k; at < (i + 1) * raw.k; at++) {
      if (raw.key[at] < 0) continue;
      shown += raw.weight[at];
      if (sinks.has(raw.key[at])) taken += raw.weight[at];
    }
    const left = shown - taken;
    if (left < 1e-4) {
      rows.emptied[i] = shown > 0 ? 1 : 0; // too little is left to say where it went
      continue;
    }
    let place = i * raw.k;
    for (let at = i * raw.k; at < (i + 1) * raw.k; at++) {
      if (raw.key[at] < 0 || sinks.has(raw.key[at])) continue;
      rows.key[place] = raw.key[at];
      rows.weight[place++] = raw.weight[at] / left;
    }
    rows.rest[i] = raw.rest[i] / left;
    rows.least[i] = raw.least[i] / left;
  }
  rows.complete = raw.complete;
  return rows;
}

/** Names of sinks for a sentence: the distinct labels, at most five. */
function sinkNames(name) {
  const sequence = report.sequences[name];
  const labels = [...new Set(sinksOf(name).list.map((j) => labelOf(sequence, j)))];
  return labels.slice(0, 5).join(" ") + (labels.length > 5 ? " and " + (labels.length - 5) + " more" : "");
}
