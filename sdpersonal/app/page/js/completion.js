// Completion of concepts after "<" in the prompt, as a list under the box.

import { concepts, conceptImage } from "./concepts.js";
import { debounce, fill, h, uniqueId } from "./dom.js";

const OPEN = /<([^<>\s:]*)$/; // a concept that is being typed before the cursor
const MAX = 6;

/** Make the list for a text box. Returns {root, close(), isOpen, onKey(event): whether it has used the key}. */
export function completion(input, insert) {
  const id = uniqueId("completion");
  const root = h("ul", { class: "completion", role: "listbox", id, "aria-label": "Concepts", hidden: true });
  let matches = [], active = 0;
  input.setAttribute("aria-autocomplete", "list");
  input.setAttribute("aria-controls", id);

  const close = () => {
    root.hidden = true;
    input.removeAttribute("aria-activedescendant");
  };
  const mark = number => {
    active = number;
    [...root.children].forEach((option, place) => option.setAttribute("aria-selected", String(place === active)));
    input.setAttribute("aria-activedescendant", root.children[active].id);
    root.children[active].scrollIntoView({ block: "nearest" });
  };
  const accept = concept => {
    const start = input.selectionStart - OPEN.exec(input.value.slice(0, input.selectionStart))[0].length;
    const rest = /^[^<>\s]*>/.exec(input.value.slice(input.selectionStart)); // the cursor stood inside a concept
    input.setSelectionRange(start, input.selectionStart + (rest?.[0].length ?? 0));
    close();
    insert(concept.token);
  };
  const option = (concept, place) => h("li", {
    role: "option", id: `${id}-${place}`, class: "completion-option", "aria-selected": "false",
    onpointerdown: event => { event.preventDefault(); accept(concept); },
  }, conceptImage(null, concept.token), h("span", { class: "completion-name" }, concepts.plain(concept.token)),
  h("span", { class: "muted small-text" }, concept.fits ? concept.kind : "for another model"));

  // Small images come when typing pauses: after "<" alone they would be those of all concepts.
  const showThumbs = debounce(() => matches.forEach((concept, place) => root.children[place]?.firstElementChild.replaceWith(conceptImage(concept.thumb, concept.token))), 250);

  const update = () => {
    const typed = input.selectionStart === input.selectionEnd && OPEN.exec(input.value.slice(0, input.selectionStart));
    if (!typed || document.activeElement !== input) return close();
    if (!concepts.loaded) concepts.load().then(update);
    matches = concepts.search(typed[1]).filter(concept => !concept.damaged).slice(0, MAX);
    if (!matches.length) return close();
    fill(root, matches.map(option));
    root.hidden = false;
    showThumbs();
    return mark(0);
  };
  input.addEventListener("input", update);
  input.addEventListener("click", update);
  input.addEventListener("blur", close);
  return {
    root,
    close,
    get isOpen() { return !root.hidden; },
    onKey(event) {
      if (root.hidden || event.ctrlKey || event.metaKey || event.altKey) return false;
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step) mark((active + step + matches.length) % matches.length);
      else if (event.key === "Enter" || (event.key === "Tab" && !event.shiftKey)) accept(matches[active]);
      else if (event.key === "Escape") close();
      else return false;
      event.preventDefault();
      event.stopPropagation();
      return true;
    },
  };
}
