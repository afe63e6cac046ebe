const words = find("words"), kind = find("kind"), base = find("base"), count = find("count"), none = find("none");
const all = Array.from(document.querySelectorAll("article"));

function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const article of all) {
    const { words: has, kind: k, base: b } = article.dataset;
    const fits = (!kind.value || k === kind.value) && (!base.value || b === base.value) && wanted.every((w) => has.includes(w));
    article.hidden = !fits;
    shown += fits;
  }
  count.textContent = shown === all.length ? `${shown} concepts` : `${shown} of ${all.length}`;
  none.hidden = shown > 0;
}

document.querySelector("main").addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-token]");
  if (!button) return;
  await copy(button.dataset.token);
  button.classList.add("done");
  count.textContent = `Copied ${button.dataset.token}`;
  setTimeout(() => { button.classList.remove("done"); filter(); }, 1200);
});
for (const input of [words, kind, base]) input.addEventListener("input", filter);
filter();  // a browser that comes back keeps what was typed
