// The Library tab: all concepts on the left, the card of the selected one on the right; on a phone over the list.
//
// Addresses: #library, #library/me/duck.

import { api, app, events, saved } from "./api.js";
import { conceptCard } from "./concept_card.js";
import { concepts, unversioned } from "./concepts.js";
import { debounce, fill, h } from "./dom.js";
import { checkbox, fileButton, segmented, select, textField } from "./fields.js";
import { importFiles } from "./library_import.js";
import { compareDialog, conflictsDialog, trashDialog } from "./library_tools.js";
import { go } from "./main.js";
import { button, countText, dropTarget, showError } from "./ui.js";

const NARROW = matchMedia("(max-width: 760px)");
const KINDS = [{ value: "", label: "All" }, { value: "object", label: "Objects" }, { value: "person", label: "People" }, { value: "style", label: "Styles" }];
const SORTS = [{ value: "name", label: "Name" }, { value: "newest", label: "Newest first" }, { value: "kind", label: "Kind" }];
const KIND_NAMES = { object: "Object", person: "Person", style: "Style", "": "Damaged" };

const view = saved("library.view", { kind: "", fits: false, sort: "name" });
const store = { concepts: null, note: "", error: "" };
const tiles = new Map(); // elements by token
const ui = {};
let shown = null; // the token of the card
let named = false; // whether the address names a concept
let listScroll = 0; // on a phone, where the list was left
let hasFailed = false;

/** "me/duck" of "<me/duck>". */
const bareName = token => token.slice(1, -1);

export function mount(root) {
  ui.root = h("div", { class: "library" });
  ui.card = conceptCard({ back: () => go("library"), changed: load, open: openConcept });
  root.append(ui.root);
  layOut();
  dropTarget(root, files => importFiles(files, openConcept));
  events.on("library", debounce(load, 200));
  events.on("model-loaded", debounce(load, 200));
  events.on("connected", debounce(() => { if (hasFailed) load(); }, 200));
  load();
  return { show };
}

function show(path) {
  const wasNamed = named;
  named = path.length > 0 && path[0] !== "";
  const token = named ? `<${path.join("/")}>` : null;
  if (NARROW.matches && named && !wasNamed) listScroll = ui.root.scrollTop;
  ui.root.classList.toggle("card-open", named);
  if (named) choose(token);
  else if (!NARROW.matches) selectFirst();
  if (NARROW.matches && named !== wasNamed) turnPage();
}

/** On a phone: begin at the top of the card, or go on in the list where it was left. */
function turnPage() {
  ui.root.scrollTop = named ? 0 : listScroll;
  const target = named ? ui.card.root.querySelector("button") : ui.list.querySelector("[tabindex='0']");
  target?.focus({ preventScroll: true });
}

/** Go to a concept: its address names it. */
function openConcept(token) {
  go("library", ...concepts.plain(unversioned(token)).split("/"));
}

function layOut() {
  const current = view.value;
  ui.search = textField({ label: "Search", hideLabel: true, placeholder: "Search names, titles, authors", maxLength: 200, className: "library-search", onInput: refresh });
  ui.search.input.type = "search";
  ui.kind = segmented({ label: "Kind", hideLabel: true, choices: KINDS, value: current.kind, onChange: keepView });
  ui.sort = select({ label: "Sort by", choices: SORTS, value: current.sort, onChange: keepView, className: "library-sort" });
  ui.fits = checkbox({ label: "Fits the loaded model", value: current.fits, onChange: keepView });
  ui.count = h("p", { class: "muted small-text", role: "status" });
  ui.list = h("ul", { class: "concept-grid", role: "listbox", "aria-label": "Concepts", onkeydown: onKey });
  ui.empty = h("div", { hidden: true });
  ui.tools = h("div", { class: "row library-tools" },
    fileButton("Import", { onFiles: files => importFiles(files, openConcept) }),
    button("Compare", { iconName: "compare", onclick: () => compareDialog(shown) }),
    button("Check a mix", { iconName: "check", onclick: () => conflictsDialog(shown) }),
    button("Trash", { iconName: "trash", onclick: () => trashDialog() }));
  ui.filters = h("div", { class: "library-filters" }, ui.search.root, ui.kind.root, ui.sort.root);
  fill(ui.root,
    h("div", { class: "library-list" },
      h("div", { class: "library-head" }, h("div", { class: "row spread" }, h("h2", {}, "Library"), ui.tools), ui.filters, ui.line = h("div", { class: "row spread" }, ui.count, ui.fits.root)),
      ui.list, ui.empty),
    ui.card.root);
  skeletons();
}

function skeletons() {
  fill(ui.list, Array.from({ length: 8 }, () => h("li", { class: "skeleton concept-skeleton", role: "presentation" })));
}

function keepView() {
  view.set({ kind: ui.kind.value, sort: ui.sort.value, fits: ui.fits.value });
  refresh();
}

async function load() {
  const wasThere = store.concepts?.some(concept => concept.token === shown);
  try {
    const { concepts, note } = await api.get("/app/concepts");
    Object.assign(store, { concepts, note });
    hasFailed = false;
  } catch (error) {
    hasFailed = true;
    if (store.concepts === null) fill(ui.list);
    fill(ui.count, h("span", { class: "error-text" }, error.text ?? String(error)));
    return;
  }
  refresh();
  const isGone = wasThere && !store.concepts.some(concept => concept.token === shown);
  if (isGone && named && document.body.dataset.tab === "library") {
    history.replaceState(null, "", "#library"); // without `go`, which closes dialogs
    show([]);
  }
  else if (shown && named) ui.card.refresh().catch(showError);
  else if (document.body.dataset.tab === "library" && !NARROW.matches) selectFirst();
}

function matching() {
  const words = ui.search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const { kind, fits, sort } = { kind: ui.kind.value, fits: ui.fits.value, sort: ui.sort.value };
  const concepts = store.concepts.filter(concept =>
    (!kind || concept.kind === kind) && (!fits || concept.fits) && words.every(word => concept.text.includes(word)));
  const order = { newest: (a, b) => b.created - a.created, kind: (a, b) => KIND_NAMES[a.kind].localeCompare(KIND_NAMES[b.kind]) }[sort];
  return order ? concepts.sort(order) : concepts;
}

function refresh() {
  if (store.concepts === null) return;
  const concepts = matching(), total = store.concepts.length;
  for (const token of [...tiles.keys()]) if (!store.concepts.some(concept => concept.token === token)) tiles.delete(token);
  const focused = document.activeElement;
  ui.list.replaceChildren(...concepts.map(tile));
  if (ui.list.contains(focused)) focused.focus({ preventScroll: true });
  const count = concepts.length === total ? countText(total, "concept") : `${concepts.length.toLocaleString()} of ${countText(total, "concept")}`;
  fill(ui.count, total ? `${count}. ${store.note}` : "");
  showEmpty(total, concepts.length);
  mark();
}

function showEmpty(total, count) {
  ui.root.classList.toggle("is-empty", total === 0);
  for (const part of [ui.filters, ui.line, ui.list]) part.hidden = total === 0;
  ui.empty.hidden = count > 0;
  if (total === 0) fill(ui.empty, firstConcept());
  else if (count === 0) fill(ui.empty, h("div", { class: "empty" }, h("p", {}, "No concept fits the search and the filters."), button("Show all", { onclick: showAll })));
}

function showAll() {
  ui.search.value = "";
  ui.kind.value = "";
  ui.fits.value = false;
  keepView();
}

function firstConcept() {
  return h("div", { class: "library-first" },
    h("h3", { class: "library-first-title" }, "Teach it something of yours"),
    h("p", {}, "A few photos of a thing, a person or a style become a concept: a word for prompts. Your concepts are kept here."),
    h("div", { class: "row" },
      button("Train a concept", { kind: "primary", iconName: "image", onclick: () => go("train") }),
      fileButton("Import one", { onFiles: files => importFiles(files, openConcept) })),
    h("p", { class: "muted small-text" }, "Embeddings and LoRAs of other programs can be imported too: drop their files anywhere on this tab."));
}

function tile(concept) {
  let entry = tiles.get(concept.token);
  if (!entry || entry.thumb !== concept.thumb || entry.fits !== concept.fits) {
    entry = { thumb: concept.thumb, fits: concept.fits, element: makeTile(concept) };
    tiles.set(concept.token, entry);
  }
  return entry.element;
}

function makeTile(concept) {
  const [owner, name] = bareName(concept.token).split("/");
  const facts = [concept.damaged ? "Damaged" : KIND_NAMES[concept.kind], concept.noun, concept.versions > 1 && countText(concept.versions, "version")];
  const isOther = !concept.fits && !concept.damaged;
  return h("li", { class: "concept-tile", role: "option", tabindex: -1, "aria-selected": "false", dataset: { token: concept.token }, onclick: () => openConcept(concept.token) },
    h("img", { src: concept.thumb, alt: "", loading: "lazy", decoding: "async", width: 256, height: 256, class: isOther ? "unfit" : null }),
    h("span", { class: "concept-tile-name" }, h("span", { class: "muted" }, `${owner}/`), h("wbr"), name),
    h("span", { class: ["concept-tile-facts", concept.damaged && "error-text"] }, facts.filter(Boolean).join(", ")),
    isOther && h("span", { class: "concept-tile-facts warn-text" }, `For ${concept.model}`));
}

/** Mark the selected tile; exactly one tile can be reached by Tab. */
function mark() {
  let reachable = null;
  for (const element of ui.list.children) {
    const isSelected = element.dataset.token === shown;
    element.setAttribute("aria-selected", String(isSelected));
    element.tabIndex = -1;
    if (isSelected) reachable = element;
  }
  reachable ??= ui.list.firstElementChild;
  if (reachable) reachable.tabIndex = 0;
}

function selectFirst() {
  if (store.concepts === null) return;
  const first = store.concepts.find(concept => concept.token === shown) ?? matching()[0] ?? null;
  choose(first?.token ?? null);
}

function choose(token) {
  shown = token;
  mark();
  ui.card.show(token).catch(showError);
}

function onKey(event) {
  const items = [...ui.list.children], place = items.indexOf(document.activeElement);
  if (place < 0) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    return openConcept(items[place].dataset.token);
  }
  const columns = getComputedStyle(ui.list).gridTemplateColumns.split(" ").length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -place, End: items.length - 1 - place }[event.key];
  const target = step === undefined ? null : items[place + step];
  if (step === undefined) return;
  event.preventDefault();
  if (!target) return;
  for (const item of items) item.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

/** Whether several users share this library. */
export const isShared = () => Boolean(app.state?.user);
