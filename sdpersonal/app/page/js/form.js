// The fields of the Generate tab as values, kept in this browser as far as they differ from the model's defaults.

import { api, app, events, saved } from "./api.js";
import { debounce } from "./dom.js";
import { showError, toast } from "./ui.js";

const EXTRA = {
  prompt: "", endless: false, new_seed: true, seed: "", init: null, mask: null, custom_size: false, advanced: false,
  variation_strength: null, variation_seed: null, x: "", x_values: "", y: "", y_values: "",
};
const NUMBERS = ["steps", "guidance", "rescale", "hires_scale", "clip_skip", "width", "height", "num_images", "strength"];
const NAMES = [...NUMBERS, "prompt", "negative", "all_combinations", "fast", "scheduler", "compose", "variation_strength", "variation_seed"];
const savedForm = saved("form", {});
const listeners = new Set();
let values = {}, defaults = {};

function readDefaults() {
  defaults = { ...app.state.form, ...EXTRA };
  for (const name of ["fast", "scheduler", "negative"]) defaults[name] ??= "";
}

function changes() {
  return Object.fromEntries(Object.entries(values).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(defaults[name])));
}

const keep = debounce(() => savedForm.set(changes()), 300);
addEventListener("pagehide", () => keep.now());

const amount = text => {
  if (text === null || String(text).trim() === "") return null;
  const number = Number(String(text).replace(",", "."));
  return Number.isFinite(number) ? number : String(text); // the server says what is wrong with it
};

export const form = {
  /** Read the saved values; call it once `app.state` is there. */
  load() {
    readDefaults();
    values = { ...defaults, ...savedForm.value };
  },
  get values() { return values; },
  get defaults() { return defaults; },
  /** Change fields. source: who does it, and need not be told. */
  set(patch, source = null) {
    values = { ...values, ...patch };
    keep();
    for (const listener of listeners) listener(patch, source);
  },
  /** Listen to changes: listener(changed fields, source). */
  onChange(listener) { listeners.add(listener); },
  /** Change fields, with a message that can undo it. */
  replace(patch, message) {
    const before = Object.fromEntries(Object.keys(patch).map(name => [name, values[name]]));
    form.set(patch);
    toast(message, { action: { label: "Undo", run: () => form.set(before) } });
  },
  /** The fields of a request for images, from an image's settings or a preset, as fields of this form. */
  fromSettings(fields) {
    const patch = Object.fromEntries(Object.entries(fields).filter(([name]) => NAMES.includes(name)));
    for (const name of ["fast", "scheduler", "negative"]) if (name in patch) patch[name] ??= "";
    if (fields.seed !== null && fields.seed !== undefined) Object.assign(patch, { seed: String(fields.seed), new_seed: false });
    delete patch.num_images; // how many is asked of the form, not of an image
    if (!("variation_strength" in patch)) Object.assign(patch, { variation_strength: null, variation_seed: null });
    return { ...patch, endless: false, init: null, mask: null };
  },
  /** The `form` of a request to POST /app/jobs. */
  request() {
    const body = {};
    for (const name of NAMES) body[name] = NUMBERS.includes(name) ? amount(values[name]) : values[name];
    for (const name of ["fast", "scheduler"]) body[name] = values[name] || null;
    body.seed = values.new_seed || !String(values.seed).trim() ? null : String(values.seed).trim();
    if (!body.variation_strength) for (const name of ["variation_strength", "variation_seed"]) delete body[name];
    body.init = initReference(values.init);
    body.mask = body.init && values.mask ? { saved: values.mask } : null;
    if (body.init) Object.assign(body, { hires_scale: 1 });
    return body;
  },
};

/** The starting image as a request names it: an image of the gallery, or one that the server has saved. */
function initReference(init) {
  if (!init) return null;
  return init.image ? { image: init.image } : { saved: init.saved };
}

/** Whether a starting image fixes the size. */
export const sizeIsFixed = () => Boolean(values.init);

let modelChanges = 0;
events.on("model-loaded", async () => {
  const change = ++modelChanges;
  let state;
  try {
    state = await api.get("/app/state");
  } catch (error) {
    return showError(error);
  }
  if (change !== modelChanges) return undefined;
  const own = changes(), before = defaults; // with what was typed meanwhile
  app.state = state;
  readDefaults();
  if (before.width !== defaults.width) for (const name of ["width", "height", "custom_size"]) delete own[name];
  values = { ...defaults, ...own };
  for (const listener of listeners) listener(values, "model");
  return undefined;
});
