// Shape and number of images, and the line that tells the other settings and opens them.

import { app } from "./api.js";
import { advancedFields } from "./advanced.js";
import { fill, h } from "./dom.js";
import { numberField, segmented } from "./fields.js";
import { form, sizeIsFixed } from "./form.js";

const NUMBERS = [1, 2, 4, 8, 16];
const CUSTOM = "custom", ENDLESS = "endless";

/** Make the fields for shape and number. Returns {root, fields: by the names of the form's fields}. */
export function shapeAndNumber() {
  const width = numberField({ label: "Width", onInput: text => form.set({ width: text }, "shape") });
  const height = numberField({ label: "Height", onInput: text => form.set({ height: text }, "shape") });
  const custom = h("div", { class: "row nowrap custom-size" }, width.root, h("span", { "aria-hidden": "true" }, "×"), height.root);
  const fixed = h("p", { class: "field-help", hidden: true }, "The shape is that of the starting image.");
  const shape = segmented({ label: "Shape", choices: [], value: null, className: "shape", onChange: onShape });
  const number = segmented({
    label: "Images", className: "number-of-images", value: "4", onChange: onNumber,
    choices: [...NUMBERS.map(count => ({ value: String(count), label: String(count) })),
      { value: ENDLESS, label: "∞", title: "One after the other until you stop it" }],
  });

  function setAspects() {
    const aspects = (app.state.aspects ?? []).map(({ label, width: w, height: h_ }) => ({ value: `${w}x${h_}`, label, title: `${w} × ${h_} pixels` }));
    shape.setChoices([...aspects, { value: CUSTOM, label: "Custom" }], null);
  }
  function show() {
    const { values } = form;
    const size = `${values.width}x${values.height}`;
    const isPreset = !values.custom_size && (app.state.aspects ?? []).some(({ width: w, height: h_ }) => `${w}x${h_}` === size);
    shape.value = isPreset ? size : CUSTOM;
    custom.hidden = isPreset || sizeIsFixed();
    fixed.hidden = !sizeIsFixed();
    for (const input of shape.input.querySelectorAll("input")) input.disabled = sizeIsFixed();
    setUnlessFocused(width, values.width);
    setUnlessFocused(height, values.height);
    number.value = values.endless ? ENDLESS : String(values.num_images);
    if (number.value === null) addNumber(number, values.num_images);
  }
  setAspects();
  show();
  form.onChange((patch, source) => {
    if (source === "model") setAspects();
    show();
  });
  return { root: h("div", { class: "stack" }, shape.root, custom, fixed, number.root), fields: { width, height, size: width, num_images: number } };
}

function setUnlessFocused(field, value) {
  if (document.activeElement !== field.input) field.value = String(value ?? "");
}

/** Show a number that is not among the usual ones, as settings of an image may bring it. */
function addNumber(field, count) {
  const choices = [...NUMBERS, Number(count)].sort((a, b) => a - b);
  field.setChoices([...choices.map(other => ({ value: String(other), label: String(other) })), { value: ENDLESS, label: "∞" }], String(count));
}

function onShape(value) {
  if (value === CUSTOM) return form.set({ custom_size: true });
  const [width, height] = value.split("x").map(Number);
  return form.set({ width, height, custom_size: false });
}

function onNumber(value) {
  form.set(value === ENDLESS ? { endless: true } : { num_images: Number(value), endless: false });
}

/** Make the line "Advanced: 25 steps, …" and what it opens. onGrid: called to start the grid. */
export function advancedSettings({ onGrid }) {
  const summary = h("span", {});
  const { root: content, fields, grid } = advancedFields({ onGrid });
  const root = h("details", { class: "advanced", open: form.values.advanced },
    h("summary", {}, h("strong", {}, "Advanced: "), summary), content);
  root.addEventListener("toggle", () => form.set({ advanced: root.open }, "advanced"));
  const show = () => fill(summary, summaryText(form.values));
  show();
  form.onChange(show);
  return { root, fields, grid, open: () => { root.open = true; } };
}

const or = (value, usual) => (value === null || value === undefined || value === "" ? usual : value);

/** "25 steps, guidance 7.5, the model's scheduler, new seed each time": what is in use, other than usual things last. */
function summaryText(values) {
  const model = app.state.model;
  const parts = [
    `${or(values.steps, "usual")} steps`, `guidance ${or(values.guidance, model.guidance)}`,
    values.scheduler || "the model's scheduler",
    values.new_seed || !values.seed ? "new seed each time" : `seed ${values.seed}`,
    values.negative && "negative prompt",
    Number(or(values.rescale, 0)) > 0 && `rescale ${values.rescale}`,
    Number(or(values.clip_skip, 1)) > 1 && `clip skip ${values.clip_skip}`,
    Number(or(values.hires_scale, 1)) > 1 && `hires ${values.hires_scale}×`,
    values.compose === false && "not composed",
    values.all_combinations && "all combinations",
    values.variation_strength && `variation ${values.variation_strength}`,
    values.fast && `fast LoRA ${values.fast}`,
  ];
  return parts.filter(Boolean).join(", ");
}
