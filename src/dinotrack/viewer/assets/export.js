// The chosen tracks as the CSV that dinotrack writes: point,t,x,y,visible,confidence; `point` is the row in the file of tracks.

const fixed = (value) => (Number.isFinite(value) ? value.toFixed(4) : "nan");

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
