// The chosen head in words and numbers: what a row is, the sentence about the element, the facts and the table.

function paintReadout() {
  const one = site();
  const now = current();
  const rows = rowsNow();
  const sequence = sequenceOf(one, now.side);
  const other = sequenceOf(one, now.side === "query" ? "key" : "query");
  const least = hasPictures(other) ? NOTHING : 0.005; // of hundreds of patches none has much
  const links = linksAt(rows, now).filter((link) => link.weight >= least).slice(0, 4);
  const box = document.getElementById("readout");
  const writes = now.side === "query" && sequence.writes ? ` (then writes ${visible(sequence.writes[now.element])})` : "";
  const verb = now.side === "query" ? " looks at " : " is looked at by ";
  box.replaceChildren(make("strong", "", nameOf(sequence.elements, now.element)), writes + verb);
  if (rows.emptied && now.side === "query" && rows.emptied[now.element]) box.append("nothing but sinks.");
  else if (!links.length) box.append(!linksAt(rows, now).length ? "nothing." : `nothing with a weight of ${least} or more.`);
  links.forEach((link, place) => {
    if (place) box.append(" · ");
    box.append(nameOf(other.elements, link.index) + " ", make("span", "numbers quiet", exactly(link.weight)));
  });
  document.getElementById("explanation").textContent = explanation(one);
  const { role } = summaryOf(one, state.head);
  const named = role ? `: ${role.name} ${briefly(role.score)}` : "";
  document.getElementById("detail-roles").textContent = headName(one, state.head) + named;
}

/** The weight of a row or a column that is not among its links. */
function unlisted(rows, now) {
  if (now.side === "query") return rows.rest[now.element];
  if (rows.complete || state.sinks) return 0;
  const shown = linksAt(rows, now).reduce((sum, link) => sum + link.weight, 0);
  const received = receivedBy(site(), state.head, now.element);
  // Both numbers are rounded to 5 digits: what differs by less is no weight.
  return received - shown < 2e-5 * received ? 0 : received - shown;
}

/** One sentence on what a row is, one on the decoder, one on what has been taken out. */
function explanation(one) {
  const [query, key] = [sequenceOf(one, "query"), sequenceOf(one, "key")];
  const named = (sequence) => (hasPictures(sequence) ? "the " : "") + sequence.title;
  const same = "the same " + (hasPictures(query) ? query.title : "text");
  const parts = [`A row is one position of ${named(query)}: its weights over ${one.query === one.key ? same : named(key)} add up to 1.`];
  for (const sequence of new Set([query, key])) if (sequence.about) parts.unshift(sequence.about[0].toUpperCase() + sequence.about.slice(1) + ".");
  if (query.writes) {
    const at = state.side === "query" ? state.element : Math.min(1, query.elements.length - 1);
    parts.push(
      `A decoder position knows what has been written so far: position ${at} reads “${labelOf(query, at)}” and writes “${visible(query.writes[at])}”.`,
    );
  }
  if (state.head === MEAN && !rowsNow().complete) {
    parts.push("The mean counts the links that each head shows, so a mean may be larger than it reads here.");
  }
  if (state.sinks) {
    parts.push(`Sinks (${sinkNames(one.key)}) are taken out and each row is scaled to add up to 1 again: these are no longer ${report.note || "the model's own weights"}.`);
  }
  return parts.join(" ");
}

/** The numbers of one row or one column, as the model gave them. */
function paintFacts() {
  const one = site();
  const now = current();
  const rows = rowsNow();
  const facts = [];
  if (now.side === "query") {
    const counted = state.sinks && rows.complete;
    const raw = state.sinks && !rows.complete ? " with sinks" : "";
    const { entropy, largest, distance } = counted ? recounted(rows, now.element) : numbersOf(one, state.head, now.element);
    const mean = state.head === MEAN && !counted ? ", mean over heads" : "";
    facts.push(["entropy" + raw + mean, entropy === null ? "–" : `${exactly(entropy)} nats`, "0 is one key alone; ln of the number of keys is all of them alike"]);
    facts.push(["as many as", entropy === null ? "–" : `${Math.exp(entropy).toFixed(2)} keys`, "e to the entropy: so many keys, looked at alike, have the same entropy"]);
    facts.push(["largest weight" + raw + mean, exactly(largest), ""]);
    facts.push(["mean distance" + raw, distance === null ? "–" : exactly(distance), "in elements"]);
    facts.push(["not shown", exactly(rows.rest[now.element]), "the weight on keys that the table does not list"]);
  } else {
    const links = linksAt(rows, now);
    const shown = links.reduce((sum, link) => sum + link.weight, 0);
    const received = state.sinks ? null : receivedBy(one, state.head, now.element);
    facts.push(["received, all queries" + (state.sinks ? ", shown" : ""), exactly(received === null ? shown : received), "the sum of the column"]);
    facts.push(["mean of a query", exactly((received === null ? shown : received) / rows.queries), ""]);
    if (received !== null) facts.push(["not shown", exactly(unlisted(rows, now)), "the weight of queries that the table does not list"]);
    else if (!rows.complete) facts.push(["not shown", "not known", "without sinks, only the links shown can be added up"]);
  }
  document.getElementById("facts").replaceChildren(
    ...facts.map(([name, value, meaning]) => {
      const pair = make("div");
      pair.title = meaning;
      pair.append(make("dt", "", name), make("dd", "numbers", value));
      return pair;
    }),
  );
}

function paintTable() {
  const one = site();
  const now = current();
  const links = linksAt(rowsNow(), now);
  const side = now.side === "query" ? "key" : "query";
  const sequence = sequenceOf(one, side);
  document.getElementById("table-who").textContent = (side === "key" ? "key" : "query") + ", " + sequence.title;
  const shown = links.slice(0, MOST_ROWS);
  const body = document.querySelector("#table tbody");
  body.replaceChildren(...shown.map((link) => tableRow(sequence, side, link)));
  const more = links.slice(MOST_ROWS);
  const sum = more.reduce((total, link) => total + link.weight, 0);
  const notes = [];
  if (more.length) notes.push(`${more.length} more, ${exactly(sum)} together.`);
  if (!rowsNow().complete && now.side === "query") notes.push(`Of each row the ${headRows(one, 0, false).k} largest weights are known.`);
  if (!rowsNow().complete && now.side === "key") notes.push("Queries for which this key is not among their largest weights are not listed.");
  document.getElementById("table-note").textContent = notes.join(" ");
}

function tableRow(sequence, side, link) {
  const row = make("tr");
  const who = make("td", "who");
  const button = make("button", "plain", labelOf(sequence, link.index));
  button.type = "button";
  button.title = "choose this element";
  // The same text goes on in the same direction; the other text is asked the other way round.
  button.addEventListener("click", () => change({ side: site().query === site().key ? state.side : side, element: link.index }));
  who.append(button);
  if (side === "query" && sequence.writes) who.append(make("span", "quiet small", " → " + visible(sequence.writes[link.index])));
  const bar = make("td", "bar-cell");
  const length = make("span", "bar");
  length.style.width = Math.min(100, link.weight * 100) + "%";
  bar.append(length);
  row.append(make("td", "place numbers quiet", String(link.index)), who, bar, make("td", "number numbers", exactly(link.weight)));
  return row;
}
