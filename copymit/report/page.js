"use strict";
// Sorts and filters the gallery, copies the metrics card, and says where tables go on. The page is complete
// without it: then the controls stay hidden and the most similar comes first.

function setUpGallery(controls) {
  const list = document.getElementById("cards");
  const cards = [...list.children];
  const status = document.getElementById("shown");
  const nothing = document.getElementById("nothing");
  const collator = new Intl.Collator("en", { numeric: true });
  const similarity = (card) => Number(card.dataset.similarity);
  const byName = (a, b) => collator.compare(a.dataset.name, b.dataset.name);
  const grades = [...(controls.elements.grade?.options ?? [])].map((o) => o.value);
  const rank = (card) => grades.indexOf(card.dataset.grade);
  const orders = {
    surest: (a, b) => rank(a) - rank(b) || orders["most-similar"](a, b),
    "most-similar": (a, b) => similarity(b) - similarity(a) || byName(a, b),
    "least-similar": (a, b) => similarity(a) - similarity(b) || byName(a, b),
    name: byName,
    prompt: (a, b) => collator.compare(a.dataset.prompt, b.dataset.prompt) || byName(a, b),
  };
  const value = (name) => controls.elements[name]?.value ?? "";

  function fits(card) {
    const words = value("text").toLowerCase().split(/\s+/).filter(Boolean);
    const duplicated = value("duplicated");
    const reason = value("reason");
    const grade = value("grade");
    return (
      words.every((word) => card.dataset.search.includes(word)) &&
      (!duplicated || card.dataset.duplicated === duplicated) &&
      (!grade || card.dataset.grade === grade) &&
      (!reason || card.dataset.reasons.split(" ").includes(reason)) &&
      similarity(card) >= Number(value("least"))
    );
  }

  function update() {
    let shown = 0;
    for (const card of cards) {
      card.hidden = !fits(card);
      shown += card.hidden ? 0 : 1;
    }
    status.textContent = `${shown} of ${cards.length} shown`;
    nothing.hidden = shown > 0;
    controls.elements.least_value.value = Number(value("least")).toFixed(2);
  }

  function sort() {
    list.append(...cards.sort(orders[value("sort")]));
  }

  controls.addEventListener("input", update);
  controls.elements.sort.addEventListener("change", sort);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () =>
    // The values are reset only after this event.
    setTimeout(() => { sort(); update(); }));
  controls.hidden = false;
  sort();
  update();
}

function setUpCopying(button) {
  const card = document.getElementById("metrics-card");
  const status = document.getElementById("copied");
  button.addEventListener("click", async () => {
    card.select();
    let copied = false;
    try {
      await navigator.clipboard.writeText(card.value);
      copied = true;
    } catch {
      copied = document.execCommand("copy"); // where the page may not use the clipboard
    }
    status.textContent = copied ? "Copied." : "Selected: press Ctrl+C or ⌘C.";
  });
  button.hidden = false;
}

function setUpHints(tables) {
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries)
      target.classList.toggle("wider", target.scrollWidth > target.clientWidth + 1);
  });
  for (const table of tables) observer.observe(table);
}

const controls = document.getElementById("controls");
const button = document.getElementById("copy");
if (controls) setUpGallery(controls);
if (button) setUpCopying(button);
setUpHints(document.querySelectorAll(".scroll"));
