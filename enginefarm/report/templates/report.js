// The page is whole without this: it opens the model that a link leads to, filters, compares two
// engines and enlarges a history.
const reveal = () => {
  let name = "";
  try { name = decodeURIComponent(location.hash.slice(1)); } catch { return; }  // a link cut short
  const target = name && document.getElementById(name);
  if (!target) return;
  if (target.tagName === "DETAILS") target.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();

// Every word has to be in the text of an engine; a model is shown for its name, or an engine of it.
const filter = document.getElementById("filter");
const shown = (text, words) => words.every(word => text.includes(word));
if (filter) filter.addEventListener("input", () => {
  const words = filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const models = new Set();
  for (const row of document.querySelectorAll("[data-engine]")) {
    row.hidden = !shown(row.dataset.engine, words);
    const why = row.nextElementSibling;
    if (why && why.classList.contains("why")) why.hidden = row.hidden;
    if (!row.hidden) models.add(row.closest("[data-model]").dataset.model);
  }
  for (const part of document.querySelectorAll("[data-model]"))
    part.hidden = !models.has(part.dataset.model) && !shown(part.dataset.model.toLowerCase(), words);
});

// Compares what the pages of two engines say.
const sides = ["a", "b"].map(side => document.getElementById(`compare-${side}`));
const told = (slug, kind) => new Map([...document.getElementById(slug).querySelectorAll(`.${kind} dt`)]
  .map(label => [label.textContent, label.nextElementSibling]));
const cell = (tag, text, label, tone) => {
  const made = document.createElement(tag);
  made.textContent = text;
  made.dataset.l = label;
  if (tone) made.className = tone;
  return made;
};
const ratio = (a, b) => {
  if (!a || !b || !("value" in a.dataset) || !("value" in b.dataset) || +a.dataset.value === 0) return ["–", ""];
  const times = b.dataset.value / a.dataset.value;
  const shown = times.toPrecision(3);
  const better = +shown === 1 ? null : (times < 1) === (a.dataset.lower === "true");
  return [`× ${shown}`, better === null ? "" : better ? "better" : "worse"];
};
const compare = () => {
  const table = document.createElement("table");
  table.className = "engines";
  const head = table.createTHead().insertRow();
  for (const name of ["", "A", "B", "B against A"]) head.append(cell("th", name, name));
  const body = table.createTBody();
  for (const kind of ["figures", "lineage"]) {
    const [a, b] = sides.map(side => told(side.value, kind));
    for (const label of new Set([...a.keys(), ...b.keys()])) {
      const texts = [a, b].map(facts => facts.get(label)?.textContent ?? "–");
      if (kind === "lineage" && texts[0] === texts[1]) continue;
      const row = body.insertRow();
      row.append(cell("th", label, ""), cell("td", texts[0], "A"), cell("td", texts[1], "B"));
      const [times, tone] = kind === "figures" ? ratio(a.get(label), b.get(label)) : ["", ""];
      row.append(cell("td", times, "B against A", tone));
    }
  }
  document.getElementById("compared").replaceChildren(table);
};
if (sides[0]) {
  document.getElementById("compare").hidden = false;
  for (const side of sides) side.addEventListener("change", compare);
  compare();
}

for (const night of document.querySelectorAll(".night"))
  night.addEventListener("click", () => night.classList.toggle("zoomed"));
