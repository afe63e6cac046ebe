// One image over the whole page, with keys; and two compared with a slider.

import { fill, h, icon } from "./dom.js";
import { deleteImages, downloadImage, imageName, images, setFavourite } from "./images.js";
import { selection } from "./selection.js";
import { button, openDialog, showError } from "./ui.js";

const MOST_ENLARGED = 4; // times a small image's own size

/** Open the selected image over the page. 1 shows it at its own size, arrow keys go to the others and select them, f marks a favourite, Delete
 * deletes, Escape closes. */
export function openLightbox(id) {
  selection.choose(id);
  const stage = h("div", { class: "lightbox-stage" });
  const text = h("p", { class: "lightbox-text" });
  const move = step => {
    const next = images.beside(selection.id, step);
    if (next) selection.choose(next);
    if (step > 0 && !images.beside(selection.id, 5)) images.more();
  };
  let isOwnSize = false;
  const fit = () => {
    const { width, height } = images.get(selection.id);
    const own = `${width}px`, room = `calc((100dvh - 100px) * ${width / height})`;
    stage.firstElementChild.style.setProperty("width", isOwnSize ? own : `min(100%, ${MOST_ENLARGED * width}px, ${room})`);
    ownSize.setAttribute("aria-pressed", String(isOwnSize));
    stage.classList.toggle("own-size", isOwnSize);
  };
  const toggleSize = () => { isOwnSize = !isOwnSize; fit(); };
  const ownSize = button("Actual size", { kind: "quiet", small: true, busyWhile: false, title: "One pixel of the image is one of the page (key 1)", onclick: toggleSize });
  const favourite = button("Favourite", { iconName: "star", kind: "quiet", iconOnly: true, onclick: () => act.favourite() });
  const act = {
    favourite: () => setFavourite([selection.id], !images.get(selection.id).favourite).then(show),
    remove: () => deleteImages([selection.id]),
  };
  const bar = h("div", { class: "lightbox-bar" }, text, ownSize,
    button("Previous image", { iconName: "left", iconOnly: true, kind: "quiet", onclick: () => move(-1) }),
    button("Next image", { iconName: "right", iconOnly: true, kind: "quiet", onclick: () => move(1) }),
    favourite,
    button("Download", { iconName: "download", iconOnly: true, kind: "quiet", onclick: () => downloadImage(images.get(selection.id), false) }),
    button("Delete", { iconName: "trash", iconOnly: true, kind: "quiet", onclick: () => act.remove() }),
    button("Close", { iconName: "close", iconOnly: true, kind: "quiet", onclick: () => dialog.close() }));
  const dialog = h("dialog", { class: "lightbox", "aria-label": "Image" }, stage, bar);

  function show() {
    const entry = images.get(selection.id);
    if (!entry) return dialog.close();
    if (stage.dataset.id !== entry.id) fill(stage, h("img", { src: entry.url, alt: imageName(entry), width: entry.width, height: entry.height }));
    stage.dataset.id = entry.id;
    fit();
    text.textContent = entry.prompt;
    favourite.setAttribute("aria-pressed", String(Boolean(entry.favourite)));
    return favourite.firstElementChild.replaceWith(icon("star", { filled: Boolean(entry.favourite) }));
  }
  const stopListening = selection.onChange(show);
  dialog.addEventListener("keydown", event => {
    const work = { ArrowLeft: () => move(-1), ArrowRight: () => move(1), 1: toggleSize, f: act.favourite, Delete: act.remove }[event.key];
    if (!work || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    Promise.resolve(work()).catch(showError);
  });
  dialog.addEventListener("click", event => { if (event.target === dialog || event.target === stage) dialog.close(); });
  dialog.addEventListener("close", () => { stopListening(); dialog.remove(); });
  swipe(stage, move);
  document.body.append(dialog);
  show();
  dialog.showModal();
}

/** Let a finger go to the image beside this one. */
function swipe(element, move) {
  let from = null;
  element.addEventListener("touchstart", event => { from = event.touches.length === 1 ? event.touches[0].clientX : null; }, { passive: true });
  element.addEventListener("touchend", event => {
    const way = from === null ? 0 : event.changedTouches[0].clientX - from;
    if (Math.abs(way) > 60) move(way < 0 ? 1 : -1);
  });
}

/** Compare two images: a slider, also by the arrow keys, moves the border between them. */
export function openCompare(leftId, rightId) {
  const [left, right] = [images.get(leftId), images.get(rightId)];
  const width = Math.max(left.width, right.width), height = Math.max(left.height, right.height);
  const range = h("input", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": "Border between the two images", autofocus: true });
  const over = h("img", { class: "compare-over", src: right.url, alt: `Right: ${imageName(right)}` });
  const line = h("span", { class: "compare-line", "aria-hidden": "true" });
  const show = () => {
    range.style.setProperty("--share", `${range.value}%`);
    over.style.setProperty("clip-path", `inset(0 0 0 ${range.value}%)`);
    line.style.setProperty("left", `${range.value}%`);
  };
  const area = h("div", { class: "compare-area" }, h("img", { src: left.url, alt: `Left: ${imageName(left)}` }), over, line);
  area.style.setProperty("aspect-ratio", `${width} / ${height}`);
  area.style.setProperty("max-width", `min(100%, ${Math.max(width, 512)}px, calc((100dvh - 260px) * ${width / height}))`);
  range.addEventListener("input", show);
  const drag = event => { if (event.buttons) { range.value = (100 * event.offsetX) / area.clientWidth; show(); } };
  for (const name of ["pointerdown", "pointermove"]) area.addEventListener(name, drag);
  show();
  return openDialog({
    title: "Compare", wide: true, className: "compare",
    content: () => [area, range, h("div", { class: "row spread compare-names" }, h("p", { class: "clamp" }, left.prompt), h("p", { class: "clamp" }, right.prompt))],
  });
}
