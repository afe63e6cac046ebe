const AT_ONCE = 60;  // cards made when the end of the page comes into sight
const main = document.querySelector("main"), words = find("words"), which = find("which"), count = find("count");
const all = JSON.parse(find("pictures").textContent);
for (const each of all) {
  each.found = [each.prompt, each.negative, ...each.facts.flat()].join("\n").toLowerCase();
}
let shown = all, made = 0, head = "";

function element(name, text, css) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (css) made.className = css;
  return made;
}

function card(each) {
  const article = element("article"), link = element("a"), image = element("img");
  link.href = each.path;
  Object.assign(image, { loading: "lazy", decoding: "async", alt: each.prompt || "A picture without a recipe" });
  if (each.width && each.height) Object.assign(image, { width: each.width, height: each.height });
  image.src = each.path;
  link.append(image);
  article.append(link);
  if (each.star) {
    const star = element("span", "★", "star");
    star.title = "Favourite";
    article.append(star);
  }
  const hasFacts = each.facts.length > 0;
  article.append(element("p", each.prompt || (hasFacts ? "No prompt" : "No recipe in it"), each.prompt ? "prompt" : "no-prompt"));
  if (hasFacts) article.append(more(each));
  return article;
}

function more(each) {
  const details = element("details"), list = element("dl");
  const seed = each.facts.find(([name]) => name === "Seed");
  details.append(element("summary", seed ? seed.join(" ") : "More"));
  details.addEventListener("toggle", () => {  // filled when it is opened: most never are
    if (list.childElementCount) return;
    const rows = [["Prompt", each.prompt], ["Negative", each.negative], ...each.facts, ["File", each.path]];
    for (const [name, text] of rows) if (text) list.append(element("dt", name), element("dd", text));
    const button = element("button", "Copy the prompt");
    button.type = "button";
    button.addEventListener("click", async () => {
      await copy(each.prompt);
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
  for (const each of shown.slice(made, made + AT_ONCE)) {
    const heading = each.star ? "Favourites" : each.day;
    if (heading !== head) part.append(element("h2", head = heading));
    part.append(card(each));
  }
  made = Math.min(shown.length, made + AT_ONCE);
  main.append(part);
}

function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = all.filter((each) => (!which.value || (which.value === "*" ? each.star : each.day === which.value))
    && wanted.every((word) => each.found.includes(word)));
  main.replaceChildren();
  made = 0;
  head = "";
  extend();
  showCount();
  find("none").hidden = shown.length > 0 || all.length === 0;
}

if (all.some((each) => each.star)) which.append(new Option("Favourites", "*"));
for (const day of [...new Set(all.map((each) => each.day))].sort().reverse()) which.append(new Option(day));
for (const each of [words, which]) each.addEventListener("input", filter);
new IntersectionObserver((seen) => {
  // Once more after each layout, as long as the end is in sight.
  if (seen[0].isIntersecting && made < shown.length) { extend(); again(); }
}, { rootMargin: "1200px" }).observe(find("end"));
function again() {
  requestAnimationFrame(() => {
    if (made < shown.length && find("end").getBoundingClientRect().top < innerHeight + 1200) { extend(); again(); }
  });
}
filter();  // a browser that comes back keeps what was typed
again();
