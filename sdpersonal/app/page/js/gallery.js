// The gallery: images under way first, then the newest, loaded as one scrolls; filters, search, selecting many.

import { concepts } from "./concepts.js";
import { debounce, h, updateList } from "./dom.js";
import { segmented } from "./fields.js";
import { makeJobCell, underWay, updateJobCell } from "./job_cells.js";
import { DRAGGED } from "./init_image.js";
import { deleteImages, imageName, images, setFavourite } from "./images.js";
import { jobs } from "./jobs.js";
import { openLightbox } from "./lightbox.js";
import { selectMode } from "./select_mode.js";
import { selection } from "./selection.js";
import { button, countText, showError } from "./ui.js";

/** Make the gallery. onOpen(id): shows the selected image where the window has no place for it beside the gallery. */
export function gallery({ onOpen, emptyPart }) {
  const grid = h("div", { class: "image-grid gallery-grid", role: "group", "aria-label": "Images" });
  const sentinel = h("div", { class: "gallery-end", "aria-hidden": "true" });
  const empty = h("div", { class: "gallery-empty", hidden: true });
  const mode = selectMode({ onChange: () => show() });
  const filters = filterFields();
  const scroller = h("div", { class: "gallery" },
    h("div", { class: "gallery-head" }, h("div", { class: "row nowrap gallery-tools" }, filters.root, mode.info, button("Select", {
      busyWhile: false, "aria-pressed": "false", class: "button", onclick: () => mode.toggle(),
    })), mode.root),
    empty, grid, sentinel);
  const select = scroller.querySelector(".gallery-tools > .button");
  mode.onToggle = on => {
    select.setAttribute("aria-pressed", String(on));
    scroller.classList.toggle("selecting", on);
  };

  const context = { mode, onOpen, grid };
  const show = () => {
    const isFiltered = images.filter.search || images.filter.favourites;
    const items = [...(images.filter.favourites ? [] : underWay()), ...withDays(images.order)];
    updateList(grid, items, item => item.key, item => makeItem(item, context), (element, item) => updateItem(element, item, context));
    if (!grid.querySelector(".cell[tabindex='0']")) grid.querySelector(".cell")?.setAttribute("tabindex", "0");
    const isEmpty = images.loaded && !items.length;
    if (isEmpty !== !empty.hidden || isEmpty) {
      empty.hidden = !isEmpty;
      empty.replaceChildren(...(isEmpty ? [isFiltered ? h("p", { class: "empty" }, "No image matches.") : emptyPart()] : []));
    }
    filters.count(images.total);
  };
  const showSoon = frameOnce(show);
  for (const store of [images, jobs, selection, concepts]) store.onChange(showSoon);
  new IntersectionObserver(seen => { if (seen.some(entry => entry.isIntersecting)) images.more(); }, { rootMargin: "800px" }).observe(sentinel);
  images.onChange(() => { if (images.hasMore && sentinel.getBoundingClientRect().top < innerHeight + 800) images.more(); });
  grid.addEventListener("keydown", event => onKey(event, context));
  /** Show what was just started: the newest images, from the top. */
  const showNewest = () => {
    filters.reset();
    scroller.scrollTop = 0;
    if (matchMedia("(max-width: 760px)").matches) scroller.scrollIntoView({ block: "start" });
  };
  jobs.onStart(showNewest);
  return { root: scroller, showNewest };
}

function frameOnce(work) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => { waits = false; work(); });
    setTimeout(() => { if (waits) { waits = false; work(); } }, 200); // a hidden tab has no frames
  };
}

function filterFields() {
  const total = h("span", { class: "muted small-text gallery-count", role: "status" });
  const search = h("input", { type: "search", class: "gallery-search", placeholder: "Search prompts and dates", "aria-label": "Search images" });
  const kind = segmented({ label: "Images", hideLabel: true, value: "recent", choices: [{ value: "recent", label: "Recent" }, { value: "favourites", label: "Favourites", iconName: "star" }], onChange: () => apply() });
  const apply = () => images.show({ search: search.value.trim(), favourites: kind.value === "favourites" });
  const later = debounce(apply, 300);
  search.addEventListener("input", later);
  return {
    root: h("div", { class: "row nowrap gallery-filters" }, kind.root, search, total),
    count(number) { total.textContent = images.loaded ? number.toLocaleString() : ""; total.title = countText(number, "image"); },
    reset() {
      if (kind.value === "recent" && !search.value) return;
      kind.value = "recent";
      search.value = "";
      apply();
    },
  };
}

const dayNames = new Map();

/** "Today", "Yesterday", "Thursday, 26 November". day: of an image's id, "2026-11-26". */
function dayName(day) {
  if (dayNames.has(day)) return dayNames.get(day);
  const [year, month, number] = day.split("-").map(Number);
  const date = new Date(year, month - 1, number), ago = Math.round((new Date().setHours(0, 0, 0, 0) - date) / 86400000);
  const name = ago === 0 ? "Today" : ago === 1 ? "Yesterday" : date.toLocaleDateString([], { weekday: "long", day: "numeric", month: "long", ...(ago > 300 && { year: "numeric" }) });
  dayNames.set(day, name);
  return name;
}

function withDays(ids) {
  const items = [];
  let last = null;
  for (const id of ids) {
    const day = id.split("/")[0];
    if (day !== last) items.push({ key: `day ${day}`, day });
    last = day;
    items.push({ key: id, id });
  }
  return items;
}

function makeItem(item, context) {
  if (item.day) return h("h2", { class: "day" }, dayName(item.day));
  return item.job ? makeJobCell(item) : makeCell(item.id, context);
}

function updateItem(element, item, context) {
  if (item.job) updateJobCell(element, item);
  else if (item.id) updateCell(element, item.id, context);
}

function makeCell(id, context) {
  const entry = images.get(id);
  const picture = h("img", { src: entry.thumb, alt: "", loading: "lazy", decoding: "async", draggable: "true" });
  const cell = h("button", { type: "button", class: "cell", tabindex: -1, dataset: { id } }, picture,
    h("span", { class: "cell-mark", "aria-hidden": "true" }));
  picture.addEventListener("dragstart", event => {
    event.dataTransfer.setData(DRAGGED, id);
    event.dataTransfer.setData("text/uri-list", new URL(entry.url, location.href).href);
    event.dataTransfer.effectAllowed = "copy";
  });
  cell.addEventListener("click", event => onCellClick(event, id, context));
  cell.addEventListener("dblclick", () => { if (!context.mode.isOn) openLightbox(id); });
  updateCell(cell, id, context);
  return cell;
}

function updateCell(cell, id, { mode }) {
  const entry = images.get(id);
  const state = [selection.id === id, mode.isOn, mode.has(id), entry.favourite, entry.thumb].join();
  if (cell.dataset.state === state) return; // thousands of cells: only those that changed
  cell.dataset.state = state;
  const isSelected = !mode.isOn && selection.id === id;
  cell.setAttribute("aria-pressed", String(mode.isOn ? mode.has(id) : isSelected));
  cell.setAttribute("aria-label", `${imageName(entry)}${entry.favourite ? ", favourite" : ""}`);
  cell.classList.toggle("selected", isSelected);
  cell.classList.toggle("checkable", mode.isOn);
  cell.classList.toggle("favourite", Boolean(entry.favourite));
  const picture = cell.firstElementChild;
  if (picture.getAttribute("src") !== entry.thumb) picture.src = entry.thumb;
  if (isSelected) focusable(cell);
}

/** Make this cell the one that Tab reaches. */
function focusable(cell) {
  cell.parentElement?.querySelectorAll(".cell[tabindex='0']").forEach(other => { other.tabIndex = -1; });
  cell.tabIndex = 0;
}

function onCellClick(event, id, { mode, onOpen }) {
  focusable(event.currentTarget);
  if (mode.isOn) return mode.toggleImage(id, event.shiftKey);
  const isAgain = selection.id === id;
  selection.choose(id);
  if (event.detail === 0 && isAgain) return openLightbox(id); // Enter or Space on the selected one
  return onOpen(id);
}

function onKey(event, { mode, grid }) {
  const cell = event.target.closest(".cell[data-id]");
  if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
  const id = cell.dataset.id;
  const target = neighbour(cell, event.key, grid);
  if (target) {
    focusable(target);
    target.focus();
    if (!mode.isOn) selection.choose(target.dataset.id);
  } else if (event.key === "f") setFavourite([id], !images.get(id).favourite).catch(showError);
  else if (event.key === "Delete" && !mode.isOn) deleteImages([id]).then(() => grid.querySelector(".cell.selected")?.focus()).catch(showError);
  else return;
  event.preventDefault();
}

/** The cell that an arrow key leads to, or null. */
function neighbour(cell, key, grid) {
  const cells = [...grid.querySelectorAll(".cell[data-id]")], place = cells.indexOf(cell);
  if (key === "ArrowRight") return cells[place + 1];
  if (key === "ArrowLeft") return cells[place - 1];
  if (key === "Home") return cells[0];
  if (key === "End") return cells[cells.length - 1];
  if (key !== "ArrowDown" && key !== "ArrowUp") return null;
  const step = key === "ArrowDown" ? 1 : -1;
  for (let number = place + step; cells[number]; number += step) {
    const isOtherRow = (cells[number].offsetTop - cell.offsetTop) * step > 0;
    if (isOtherRow && Math.abs(cells[number].offsetLeft - cell.offsetLeft) < cell.offsetWidth / 2) return cells[number];
  }
  return null;
}
