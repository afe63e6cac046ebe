// The concepts in the prompt as rows with their strength and place, and the dialog that adds one.

import { api } from "./api.js";
import { concepts, conceptImage } from "./concepts.js";
import { fill, h, icon, updateList } from "./dom.js";
import { select, slider } from "./fields.js";
import { form } from "./form.js";
import { openDialog, showError } from "./ui.js";

const PLACES = [
  ["auto", "Any place"], ["left", "Left"], ["right", "Right"], ["top", "Top"], ["bottom", "Bottom"], ["center", "Centre"],
  ["top-left", "Top left"], ["top-right", "Top right"], ["bottom-left", "Bottom left"], ["bottom-right", "Bottom right"],
].map(([value, label]) => ({ value, label }));
const OWN_BOX = { value: "box", label: "Own box" };
const SHOWN = 60; // tiles of the picker; a search finds the others

/** Make the rows. Returns {root, show(concepts of a check)}. */
export function conceptRows() {
  const list = h("div", { class: "concept-rows" });
  const root = h("section", { class: "field", "aria-label": "Concepts in the prompt", hidden: true }, list);
  return {
    root,
    show(checked) {
      const existing = checked.filter(concept => concept.kind); // the others do not exist
      root.hidden = !existing.length;
      // A row of its own for each kind of change that a row cannot take over.
      updateList(list, existing, concept => `${concept.token} ${concept.region === null} ${concept.thumb ?? ""}`, makeRow, updateRow);
    },
  };
}

const rows = new WeakMap();

let lastEdit = Promise.resolve();

/** Change a concept in the prompt, after the changes before it, and without losing what is typed meanwhile. */
export function editPrompt(token, change) {
  lastEdit = lastEdit.then(() => editNow(token, change)).catch(showError);
  return lastEdit;
}

async function editNow(token, change) {
  const before = form.values.prompt;
  const { prompt } = await api.post("/app/prompt/edit", { prompt: before, token, ...change });
  if (form.values.prompt === before) form.set({ prompt });
  else await editNow(token, change);
}

function makeRow(concept) {
  const name = concepts.plain(concept.token);
  const strength = slider({
    label: name, min: Math.min(0, concept.strength), max: Math.max(2, concept.strength), step: 0.05, value: concept.strength,
    onChange: value => editPrompt(concept.token, { strength: value }),
  });
  strength.input.setAttribute("aria-label", `Strength of ${name}`);
  const label = strength.root.querySelector("label");
  label.append(" ", h("span", { class: "concept-kind" }, concept.kind));
  const place = concept.region === null ? null : select({
    label: `Place of ${name}`, hideLabel: true, className: "place", choices: [...PLACES, ...(concept.region === "box" ? [OWN_BOX] : [])],
    value: concept.region ?? "auto", onChange: value => editPrompt(concept.token, { region: value }),
  });
  if (place) strength.root.append(place.root);
  const row = h("div", { class: "concept-row" }, conceptImage(concept.thumb, concept.token), strength.root);
  rows.set(row, { strength, place });
  return row;
}

function updateRow(row, concept) {
  const { strength, place } = rows.get(row);
  strength.input.min = Math.min(0, concept.strength);
  strength.input.max = Math.max(2, concept.strength);
  strength.value = concept.strength;
  if (!place) return;
  if (concept.region === "box") place.setChoices([...PLACES, OWN_BOX], "box");
  place.value = concept.region ?? "auto";
}

/** Let the user choose a concept; resolves to its token, or undefined. accepts(concept): whether it is offered. */
export async function pickConcept({ title = "Add a concept", accepts = concept => !concept.damaged } = {}) {
  await concepts.load();
  return openDialog({
    title, wide: true, className: "picker",
    content: close => {
      const tiles = h("div", { class: "picker-tiles" });
      const note = h("p", { class: "muted small-text", role: "status" });
      const search = h("input", { type: "search", placeholder: "Search names, kinds and words", "aria-label": "Search concepts", autofocus: true });
      const show = () => {
        const matches = concepts.search(search.value).filter(accepts);
        fill(tiles, matches.slice(0, SHOWN).map(concept => pickerTile(concept, close)));
        note.textContent = pickerNote(matches.length, search.value);
      };
      search.addEventListener("input", show);
      search.addEventListener("keydown", event => { if (event.key === "Enter") tiles.querySelector("button:not(:disabled)")?.click(); });
      show();
      return [search, note, tiles];
    },
  });
}

function pickerNote(count, search) {
  if (!count) return search ? "No concept has these words." : "There is no concept yet: make one in the Train tab.";
  return count > SHOWN ? `Showing ${SHOWN} of ${count.toLocaleString()}; search for others.` : "";
}

function pickerTile(concept, close) {
  return h("button", { type: "button", class: "picker-tile", disabled: !concept.fits, onclick: () => close(concept.token) },
    conceptImage(concept.thumb, concept.token),
    h("span", { class: "picker-name" }, concepts.plain(concept.token)),
    h("span", { class: "muted small-text" }, concept.fits ? concept.kind : "for another model"),
    icon("plus"));
}
