// The concepts of the library, for completion, the picker and the colours in the prompt. Loaded once; again after changes.

import { api, app, events } from "./api.js";
import { h } from "./dom.js";
import { showError } from "./ui.js";

const listeners = new Set();
let list = [], ready = null;

async function load() {
  const answer = await api.get("/app/concepts");
  list = answer.concepts;
  concepts.loaded = true;
  for (const listener of listeners) listener();
}

/** A token without its version, which is then the newest: "<me/duck-v1>" or, as it is written, "me/duck-v1". */
export const unversioned = token => token.replace(/-v\d+(?=>?$)/, "");

const plain = token => token.replace(/^<|>$/g, "");

export const concepts = {
  loaded: false,
  get list() { return list; },
  /** Load them if they are not yet loaded. */
  load() {
    ready ??= load().catch(error => { ready = null; showError(error); });
    return ready;
  },
  /** Listen to changes of the list; returns a function that stops that. */
  onChange(listener) { listeners.add(listener); return () => listeners.delete(listener); },
  /** Find one by what stands in the prompt, such as "me/duck" or "me/duck-v1"; null if there is none. */
  find(written) {
    const name = written.toLowerCase();
    return list.find(concept => plain(concept.token) === name) ?? list.find(concept => plain(concept.token) === unversioned(name)) ?? null;
  },
  /** Those with all the words, fitting ones first. */
  search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const own = `${app.state.owner}/`;
    const rank = concept => (concept.fits && !concept.damaged ? 0 : 2) + (plain(concept.token).startsWith(own) ? 0 : 1);
    return list.filter(concept => words.every(word => `${concept.token} ${concept.text ?? ""}`.toLowerCase().includes(word)))
      .sort((a, b) => rank(a) - rank(b));
  },
  plain,
};

/** A concept's small image, or its first letter. */
export function conceptImage(thumb, token) {
  if (thumb) return h("img", { class: "concept-thumb", src: thumb, alt: "", loading: "lazy", decoding: "async" });
  const name = plain(token);
  return h("span", { class: "concept-thumb letter", "aria-hidden": "true" }, (name.split("/")[1] ?? name).charAt(0).toUpperCase());
}

events.on("library", () => { if (concepts.loaded) load().catch(showError); });
events.on("model-loaded", () => { if (concepts.loaded) load().catch(showError); });
