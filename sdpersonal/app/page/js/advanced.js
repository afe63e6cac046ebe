// The settings that are seldom changed: negative prompt, steps, guidance, scheduler, seed, hires fix, grid.

import { app } from "./api.js";
import { pickConcept } from "./concept_rows.js";
import { concepts } from "./concepts.js";
import { fill, h } from "./dom.js";
import { checkbox, numberField, select, textField } from "./fields.js";
import { form } from "./form.js";
import { button, showError } from "./ui.js";

const HIRES = [{ value: "1", label: "Off" }, { value: "1.5", label: "1.5 times" }, { value: "2", label: "2 times" }, { value: "3", label: "3 times" }, { value: "4", label: "4 times" }];
const FAST = /\b(lcm|tcd|lightning|hyper|turbo)/i; // words by which such LoRAs are found
const OTHER = "other"; // no token: those have brackets
const DEFAULT_VALUE = { value: "", label: "The model's default" };

/** Make the fields. Returns {root, fields: by the names of the form's fields, grid}. */
export function advancedFields({ onGrid }) {
  const fields = { ...textFields(), ...choiceFields() };
  const grid = gridFields(onGrid);
  bind({ ...fields, ...grid.fields });
  const seedRow = h("div", { class: "row nowrap seed-row" }, fields.seed.root, fields.new_seed.root);
  const root = h("div", { class: "advanced-fields" },
    fields.negative.root,
    h("div", { class: "three" }, fields.steps.root, fields.guidance.root, fields.rescale.root),
    fields.scheduler.root, seedRow,
    h("div", { class: "two" }, fields.clip_skip.root, fields.hires_scale.root),
    variationLine(), fields.fast.root, fields.compose.root, fields.all_combinations.root, grid.root);
  return { root, fields, grid };
}

const text = (name, options) => ({ [name]: { ...options, name } });

function textFields() {
  const options = {
    ...text("steps", { label: "Steps", word: "steps" }),
    ...text("guidance", { label: "Guidance", word: "guidance scale" }),
    ...text("rescale", { label: "Rescale", word: "guidance rescale" }),
    ...text("clip_skip", { label: "Clip skip", word: "clip skip" }),
    ...text("seed", { label: "Seed", word: "seed" }),
  };
  const fields = { negative: textField({ label: "Negative prompt", word: "negative prompt", rows: 2, maxLength: 20000, onInput: value => form.set({ negative: value }, "negative") }) };
  for (const [name, option] of Object.entries(options)) {
    fields[name] = numberField({ ...option, onInput: value => form.set({ [name]: value, ...(name === "seed" && { new_seed: !value.trim() }) }, name) });
  }
  return fields;
}

const isUsableLora = concept => concept.is_lora && concept.fits && !concept.damaged;
/** One that makes few steps enough stands for nothing in a prompt; some of other programs have trigger words by mistake. */
const isFast = concept => !concept.has_words || FAST.test(`${concept.token} ${concept.text ?? ""}`);

function choiceFields() {
  const change = name => value => form.set({ [name]: value }, name);
  const schedulers = () => [DEFAULT_VALUE, ...app.state.model.schedulers];
  const fields = {
    scheduler: select({ label: "Scheduler", word: "scheduler", choices: schedulers(), onChange: change("scheduler") }),
    hires_scale: select({ label: "Hires fix", word: "hires fix", choices: HIRES, value: "1", onChange: value => form.set({ hires_scale: Number(value) }, "hires_scale") }),
    fast: select({ label: "Fast LoRA", word: "fast lora", choices: [{ value: "", label: "None" }], onChange: value => chooseFast(value).catch(showError) }),
    new_seed: checkbox({ label: "New seed each time", onChange: change("new_seed") }),
    compose: checkbox({ label: "Compose", word: "compose", onChange: change("compose") }),
    all_combinations: checkbox({ label: "All combinations of {a|b}", help: "Each as often as there are images; else one by chance for each image.", onChange: change("all_combinations") }),
  };
  const fastChoices = () => {
    const loras = concepts.list.filter(isUsableLora), { fast } = form.values;
    const offered = loras.filter(isFast).map(concept => concept.token);
    if (fast && !offered.includes(fast)) offered.push(fast);
    const other = loras.length > offered.length ? [{ value: OTHER, label: "Another LoRA…" }] : [];
    fields.fast.setChoices([{ value: "", label: "None" }, ...offered, ...other], fast ?? "");
    fields.fast.root.hidden = !offered.length && !other.length;
  };
  async function chooseFast(value) {
    const token = value === OTHER ? await pickConcept({ title: "Choose the fast LoRA", accepts: isUsableLora }) : value;
    if (token !== undefined) form.set({ fast: token });
    fastChoices();
  }
  fastChoices();
  concepts.onChange(fastChoices);
  form.onChange((patch, source) => { if (source === "model") fields.scheduler.setChoices(schedulers(), form.values.scheduler); });
  return fields;
}

/** Keep fields and form alike. */
function bind(fields) {
  const show = (patch, source) => {
    for (const [name, field] of Object.entries(fields)) {
      if (!(name in patch) || name === source) continue;
      if (name === "scheduler" && patch.scheduler) addChoice(field, patch.scheduler);
      if (name === "hires_scale") addChoice(field, String(patch.hires_scale ?? 1));
      field.value = typeof field.value === "boolean" ? patch[name] : String(patch[name] ?? "");
    }
  };
  show(form.values, null);
  form.onChange(show);
}

function addChoice(field, value) {
  if (![...field.input.options].some(option => option.value === value)) field.input.append(h("option", { value }, value));
}

/** What the settings of a variation bring along, with a button that removes it. */
function variationLine() {
  const line = h("p", { class: "chip", hidden: true });
  const show = () => {
    const { variation_strength: strength, variation_seed: seed } = form.values;
    line.hidden = !strength;
    fill(line, `Variation ${strength} towards seed ${seed}`,
      button("Remove the variation", { iconName: "close", iconOnly: true, small: true, kind: "quiet", onclick: () => form.set({ variation_strength: null, variation_seed: null }) }));
  };
  show();
  form.onChange(show);
  return line;
}

function gridFields(onGrid) {
  const axes = app.state.axes ?? [];
  const choices = [{ value: "", label: "Nothing" }, ...axes.map(axis => ({ value: axis.label, label: axis.label }))];
  const values = name => textField({ label: name === "x" ? "Values of the columns" : "Values of the rows", hideLabel: true, maxLength: 2000, onInput: value => form.set({ [`${name}_values`]: value }, `${name}_values`) });
  const fields = {
    x: select({ label: "Columns", choices, onChange: value => form.set({ x: value }, "x") }), x_values: values("x"),
    y: select({ label: "Rows", choices, onChange: value => form.set({ y: value }, "y") }), y_values: values("y"),
  };
  const show = () => {
    for (const name of ["x", "y"]) {
      const axis = axes.find(other => other.label === form.values[name]);
      fields[`${name}_values`].root.hidden = !axis;
      fields[`${name}_values`].input.placeholder = axis?.example ?? "";
    }
    start.disabled = !form.values.x;
  };
  const start = button("Generate the grid", { onclick: onGrid });
  form.onChange(show);
  show();
  const root = h("details", { class: "grid-fields" }, h("summary", {}, "Grid (XYZ)"),
    h("p", { class: "field-help" }, "One thing changes along the columns and another along the rows; every image is saved as well."),
    h("div", { class: "stack" }, fields.x.root, fields.x_values.root, fields.y.root, fields.y_values.root, start));
  return { root, fields, open: () => { root.open = true; } };
}
