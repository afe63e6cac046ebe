// Which image is selected. What is shown large is what every action uses: both follow this one id and nothing else.
//
// A person's choice always counts. The program only offers: the first image of a job that was started in this tab is
// taken unless the person has chosen an image since the start.

import { saved } from "./api.js";

const savedSelection = saved("selected", null);
const listeners = new Set();
let current = null;
let choices = 0;

function set(id) {
  if (id === current) return;
  current = id;
  savedSelection.set(id);
  for (const listener of listeners) listener(id);
}

export const selection = {
  /** Id of the selected image, or null. */
  get id() { return current; },
  /** How often a person has chosen so far; for `offer`. */
  get choices() { return choices; },
  /** Id that was selected when this browser showed the page last. */
  get last() { return savedSelection.value; },
  /** Select what a person has chosen. */
  choose(id) { choices += 1; set(id); },
  /** Select what the program proposes, unless a person has chosen after `since`, a former value of `choices`. */
  offer(id, since = choices) { if (choices === since) set(id); },
  /** Listen to changes: listener(id or null); returns a function that stops that. */
  onChange(listener) {
    listeners.add(listener);
    return () => listeners.delete(listener);
  },
};
