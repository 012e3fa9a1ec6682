// The chosen tracks as the CSV that dinotrack writes: point,t,x,y,visible,confidence; `point` is the row in the file of tracks.

/** Four decimals, halves to even, as Python writes them; of 32-bit numbers, so that a product with 10 000 is exact. */
function fixed(value) {
  if (!Number.isFinite(value)) return "nan";
  const scaled = Math.abs(value) * 1e4;
  const whole = scaled % 1 === 0.5 ? 2 * Math.round(scaled / 2) : Math.round(scaled);
  return (value < 0 || Object.is(value, -0) ? "-" : "") + (whole / 1e4).toFixed(4);
}

function csvOf(set, chosen) {
  const lines = ["point,t,x,y,visible,confidence"];
  const there = chosen.filter((n) => set.has(n)).sort((a, b) => set.rows[a] - set.rows[b]);
  for (const n of there) {
    for (let t = 0; t < set.frames; t++) {
      const values = [set.x(n, t), set.y(n, t)].map(fixed);
      lines.push([set.rows[n], t, ...values, Number(set.seen(n, t)), fixed(set.sure(n, t))].join(","));
    }
  }
  return lines.join("\n") + "\n";
}

function save(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
