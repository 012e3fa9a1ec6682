// What the page says in words of the chosen points.

const position = (x, y) => (Number.isFinite(x + y) ? `${x.toFixed(1)}, ${y.toFixed(1)}` : "–");
const decimals = (value) => (Number.isFinite(value) ? value.toFixed(3) : "–");
const pixels = (value) => (Number.isFinite(value) ? `${value.toFixed(2)} px` : "–");

/** One line on how many points are chosen, for eyes and for screen readers. */
function chosenLine(data, chosen) {
  if (!data.points) return "There are no tracks in this file.";
  if (!chosen.length) return `None of ${data.points}. Click a point, or drag a box around some.`;
  if (chosen.length === 1) return pointName(data, chosen[0]);
  const some = chosen.slice(0, 12).join(", ");
  return `${chosen.length} of ${data.points}: ${some}${chosen.length > 12 ? ", …" : ""}`;
}

/** A point's number in its files, and its object. */
function pointName(data, n) {
  const [a, b] = data.sets, object = data.objects.names[data.objects.of[n]];
  const rows = [a, b].filter((set) => set?.has(n)).map((set) => (b ? `${"AB"[set.number]} ${set.rows[n]}` : set.rows[n]));
  return `Point ${rows.join(" · ")}${object === undefined ? "" : `, object ${object}`}`;
}

/** Rows [name, a text for each file or one for both] on the chosen points at frame t; `apart` is what `differences` found. */
function detailRows(data, chosen, t, apart) {
  if (!chosen.length) return [];
  const rows = chosen.length === 1 ? oneRows(data, chosen[0], t) : manyRows(data, chosen, t);
  if (data.sets.length < 2) return rows;
  return [["", "A", "B"], ...rows, ["apart now", pixels(apartNow(data, chosen, t))], ...apart];
}

function oneRows(data, n, t) {
  const [frame, x, y] = data.queries.subarray(3 * n, 3 * n + 3);
  const each = (say) => data.sets.map((set) => (set.has(n) ? say(set) : "–"));
  return [
    ["query", `frame ${frame} at ${position(x, y)}`],
    ["position", ...each((set) => position(set.x(n, t), set.y(n, t)))],
    ["now", ...each((set) => (set.seen(n, t) ? "visible" : "occluded"))],
    ["confidence", ...each((set) => decimals(set.sure(n, t)))],
    ["visible in", ...each((set) => `${framesSeen(set, n)} of ${set.frames}${data.sets.length > 1 ? "" : " frames"}`)],
  ];
}

function framesSeen(set, n) {
  let seen = 0;
  for (let t = 0; t < set.frames; t++) seen += set.seen(n, t);
  return seen;
}

function manyRows(data, chosen, t) {
  const texts = data.sets.map((set) => {
    const there = chosen.filter((n) => set.has(n));
    return `${there.filter((n) => set.seen(n, t)).length} of ${there.length}`;
  });
  return [["visible now", ...texts]];
}

const between = ([a, b], n, t) => Math.hypot(a.x(n, t) - b.x(n, t), a.y(n, t) - b.y(n, t));

/** Mean distance of A and B at a frame. */
function apartNow(data, chosen, t) {
  const found = chosen.map((n) => between(data.sets, n, t)).filter(Number.isFinite);
  return found.reduce((sum, value) => sum + value, 0) / found.length;
}

/** Rows on how far A and B are apart over the frames where both see a point. */
function differences(data, chosen) {
  const [a, b] = data.sets, both = b ? chosen.filter((n) => a.has(n) && b.has(n)) : [];
  const apart = [];
  let agreed = 0;
  for (const n of both) {
    for (let t = 0; t < data.frames; t++) {
      agreed += a.seen(n, t) === b.seen(n, t);
      if (a.seen(n, t) && b.seen(n, t)) apart.push(between(data.sets, n, t));
    }
  }
  const found = apart.filter(Number.isFinite).sort((p, q) => p - q);
  const share = (100 * agreed) / (both.length * data.frames);
  return [
    ["median apart", pixels(found[Math.floor((found.length - 1) / 2)])],
    ["most apart", pixels(found[found.length - 1])],
    ["same visibility", both.length ? `in ${share.toFixed(0)} % of frames` : "–"],
  ];
}

/** Write rows into a table that is `wide` texts wide; only texts change while a film plays. */
function showRows(table, rows, wide) {
  while (table.rows.length > rows.length) table.deleteRow(-1);
  rows.forEach((texts, k) => {
    const row = table.rows[k] ?? table.insertRow();
    while (row.cells.length > texts.length) row.deleteCell(-1);
    while (row.cells.length < texts.length) row.insertCell();
    texts.forEach((text, column) => row.cells[column].textContent !== text && (row.cells[column].textContent = text));
    row.cells[1].colSpan = texts.length === 2 ? wide : 1;
    row.className = texts[0] ? "" : "heads";
  });
}
