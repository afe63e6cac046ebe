"use strict";
const find = (id) => document.getElementById(id);
const view = find("view"), large = find("large"), where = find("where"), facts = find("facts"), size = find("size");
const all = Array.from(document.querySelectorAll("td > button"));
let shown = 0;

function show(i) {
  shown = (i + all.length) % all.length;
  const picture = all[shown].firstElementChild;
  large.src = picture.src;
  large.alt = where.textContent = picture.alt;
  facts.replaceChildren(...all[shown].nextElementSibling.cloneNode(true).children);
  if (!view.open) view.showModal();
}

all.forEach((button, i) => button.addEventListener("click", () => show(i)));
find("before").addEventListener("click", () => show(shown - 1));
find("after").addEventListener("click", () => show(shown + 1));
find("close").addEventListener("click", () => view.close());
view.addEventListener("click", (event) => { if (event.target === view) view.close(); });
view.addEventListener("close", () => all[shown].focus());
view.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(shown - 1);
  if (event.key === "ArrowRight") show(shown + 1);
});
const resize = () => document.documentElement.style.setProperty("--tile", `${size.value}px`);
size.addEventListener("input", resize);
size.value = parseInt(getComputedStyle(document.documentElement).getPropertyValue("--tile"));
