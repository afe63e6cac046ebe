const AT_ONCE = 60;  // cards made when the end of the page comes into sight
const main = document.querySelector("main"), words = find("words"), which = find("which"), count = find("count");
const all = JSON.parse(find("pictures").textContent);
for (const item of all) {
  item.words = [item.prompt, item.negative, ...item.facts.flat()].join("\n").toLowerCase();
}
let shown = all, made = 0, head = "";

function element(name, text, css) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (css) made.className = css;
  return made;
}

function card(item) {
  const article = element("article"), link = element("a"), image = element("img");
  link.href = item.path;
  Object.assign(image, { loading: "lazy", decoding: "async", alt: item.prompt || "A picture without a recipe" });
  if (item.width && item.height) Object.assign(image, { width: item.width, height: item.height });
  image.src = item.path;
  link.append(image);
  article.append(link);
  if (item.star) {
    const star = element("span", "★", "star");
    star.title = "Favourite";
    article.append(star);
  }
  const hasFacts = item.facts.length > 0;
  article.append(element("p", item.prompt || (hasFacts ? "No prompt" : "No recipe in it"), item.prompt ? "prompt" : "no-prompt"));
  if (hasFacts) article.append(more(item));
  return article;
}

function more(item) {
  const details = element("details"), list = element("dl");
  const seed = item.facts.find(([name]) => name === "Seed");
  details.append(element("summary", seed ? seed.join(" ") : "More"));
  details.addEventListener("toggle", () => {  // filled when it is opened: most never are
    if (list.childElementCount) return;
    const rows = [["Prompt", item.prompt], ["Negative", item.negative], ...item.facts, ["File", item.path]];
    for (const [name, text] of rows) if (text) list.append(element("dt", name), element("dd", text));
    const button = element("button", "Copy the prompt");
    button.type = "button";
    button.addEventListener("click", async () => {
      await copy(item.prompt);
      count.textContent = "Copied";
      setTimeout(showCount, 1200);
    });
    details.append(list, button);
  });
  return details;
}

function showCount() {
  count.textContent = shown.length === all.length ? `${all.length} pictures` : `${shown.length} of ${all.length}`;
}

function extend() {
  const part = document.createDocumentFragment();
  for (const item of shown.slice(made, made + AT_ONCE)) {
    const heading = item.star ? "Favourites" : item.day;
    if (heading !== head) part.append(element("h2", head = heading));
    part.append(card(item));
  }
  made = Math.min(shown.length, made + AT_ONCE);
  main.append(part);
}

function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = all.filter((item) => (!which.value || (which.value === "*" ? item.star : item.day === which.value))
    && wanted.every((word) => item.words.includes(word)));
  main.replaceChildren();
  made = 0;
  head = "";
  extend();
  showCount();
  find("none").hidden = shown.length > 0 || all.length === 0;
}

if (all.some((item) => item.star)) which.append(new Option("Favourites", "*"));
for (const day of [...new Set(all.map((item) => item.day))].sort().reverse()) which.append(new Option(day));
for (const input of [words, which]) input.addEventListener("input", filter);
new IntersectionObserver((seen) => {
  // Once more after every layout, as long as the end is in sight.
  if (seen[0].isIntersecting && made < shown.length) { extend(); again(); }
}, { rootMargin: "1200px" }).observe(find("end"));
function again() {
  requestAnimationFrame(() => {
    if (made < shown.length && find("end").getBoundingClientRect().top < innerHeight + 1200) { extend(); again(); }
  });
}
filter();  // a browser that comes back keeps what was typed
again();
