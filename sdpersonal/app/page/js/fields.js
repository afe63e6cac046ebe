// Form fields. Each maker returns {root, input, value (get and set), error(text)}; setting a value calls no listener.

import { fill, h, icon, uniqueId } from "./dom.js";
import { term } from "./ui.js";

/** Lay out a label, its tooltip, the control, a help text and an error. */
function wrap(control, { label, help = null, word = null, hideLabel = false, className = "", end = null }, id) {
  const helpId = `${id}-help`, errorId = `${id}-error`;
  const error = h("p", { class: "field-error", id: errorId, role: "alert", hidden: true });
  const described = [help && helpId, errorId].filter(Boolean).join(" ");
  control.setAttribute("aria-describedby", described);
  const root = h("div", { class: ["field", className] },
    h("div", { class: ["field-label", hideLabel && "visually-hidden"] }, h("label", { for: id }, label), word && term(word), end),
    control,
    help && h("p", { class: "field-help", id: helpId }, help),
    error);
  return {
    root,
    error(text) {
      error.textContent = text ?? "";
      error.hidden = !text;
      control.setAttribute("aria-invalid", text ? "true" : "false");
    },
  };
}

const listen = (input, { onInput, onChange }) => {
  if (onInput) input.addEventListener("input", () => onInput(input.value));
  if (onChange) input.addEventListener("change", () => onChange(input.value));
};

/** A line or, with `rows`, several lines of text. word: a term of terms.js for a tooltip. */
export function textField({ rows = 0, value = "", placeholder = "", maxLength = null, inputMode = null, ...options }) {
  const id = options.id ?? uniqueId("field");
  const input = h(rows ? "textarea" : "input", {
    id, rows: rows || null, type: rows ? null : "text", placeholder, maxlength: maxLength, inputmode: inputMode,
    autocomplete: "off", spellcheck: rows ? "true" : "false", value,
  });
  listen(input, options);
  const parts = wrap(input, options, id);
  return { ...parts, input, get value() { return input.value; }, set value(text) { input.value = text ?? ""; } };
}

/** A number, as text, since browsers' number fields lose digits and accept none. `.value` is text; "" if empty. */
export const numberField = options => textField({ inputMode: "decimal", maxLength: 20, className: "number", ...options });

/** A slider with a number field beside its label; both always agree. `.value` is a number. */
export function slider({ min, max, step, value, ...options }) {
  const id = options.id ?? uniqueId("slider");
  const range = h("input", { id, type: "range", min, max, step, value });
  const number = h("input", { type: "text", inputmode: "decimal", class: "slider-number", value: String(value), "aria-label": `${options.label}, as a number`, maxlength: 8 });
  const show = share => {
    range.style.setProperty("--share", `${(100 * (share - min)) / (max - min)}%`);
    number.value = String(Math.round(share * 1000) / 1000);
  };
  range.addEventListener("input", () => { show(range.valueAsNumber); options.onInput?.(range.valueAsNumber); });
  range.addEventListener("change", () => options.onChange?.(range.valueAsNumber));
  number.addEventListener("change", () => {
    const typed = Number(number.value.replace(",", "."));
    range.value = Number.isFinite(typed) ? Math.min(max, Math.max(min, typed)) : range.value;
    show(range.valueAsNumber);
    options.onInput?.(range.valueAsNumber);
    options.onChange?.(range.valueAsNumber);
  });
  const parts = wrap(range, { ...options, className: ["slider", options.className].filter(Boolean).join(" "), end: number }, id);
  show(range.valueAsNumber);
  return {
    ...parts, input: range,
    get value() { return range.valueAsNumber; },
    set value(amount) { range.value = amount; show(range.valueAsNumber); },
  };
}

/** A drop-down. choices: [{value, label}] or texts. */
export function select({ choices = [], value = "", ...options }) {
  const id = options.id ?? uniqueId("select");
  const input = h("select", { id });
  const option = choice => typeof choice === "string" ? h("option", { value: choice }, choice) : h("option", { value: choice.value }, choice.label);
  const setChoices = (list, keep = input.value) => { fill(input, list.map(option)); input.value = keep; };
  setChoices(choices, value);
  input.value = value;
  listen(input, options);
  const parts = wrap(input, options, id);
  return { ...parts, input, setChoices, get value() { return input.value; }, set value(text) { input.value = text ?? ""; } };
}

/** A row of choices of which one is taken. choices: [{value, label, title}]. */
export function segmented({ label, choices, value, onChange = null, hideLabel = false, word = null, className = "" }) {
  const name = uniqueId("segmented");
  const group = h("div", { class: "segments" });
  const root = h("fieldset", { class: ["field", "segmented", className] },
    h("legend", { class: ["field-label", hideLabel && "visually-hidden"] }, label, word && term(word)), group);
  const make = choice => {
    const id = uniqueId("segment");
    return h("span", { class: "segment" },
      h("input", { type: "radio", id, name, value: choice.value, onchange: () => onChange?.(choice.value) }),
      h("label", { for: id, title: choice.title ?? null }, choice.iconName && icon(choice.iconName), choice.label));
  };
  const field = {
    root, input: group,
    setChoices(list, keep = field.value) { fill(group, list.map(make)); field.value = keep; },
    get value() { return group.querySelector("input:checked")?.value ?? null; },
    set value(text) { for (const input of group.querySelectorAll("input")) input.checked = input.value === String(text); },
    error() {},
  };
  field.setChoices(choices, value);
  return field;
}

/** A checkbox. `.value` is true or false. */
export function checkbox({ label, value = false, help = null, word = null, onChange = null, id = uniqueId("check"), isSwitch = false }) {
  const helpId = `${id}-help`;
  const input = h("input", { type: "checkbox", id, checked: value, role: isSwitch ? "switch" : null, "aria-describedby": help ? helpId : null });
  if (onChange) input.addEventListener("change", () => onChange(input.checked));
  const root = h("div", { class: "field check" }, input,
    h("div", {}, h("label", { for: id }, label), word && term(word), help && h("p", { class: "field-help", id: helpId }, help)));
  return { root, input, get value() { return input.checked; }, set value(on) { input.checked = Boolean(on); }, error() {} };
}

/** A button that opens the file chooser. onFiles(files); accept: as in HTML; folder: choose a whole folder. */
export function fileButton(label, { onFiles, accept = "", multiple = true, folder = false, iconName = "upload", kind = "", small = false }) {
  const input = h("input", { type: "file", accept, multiple, hidden: true, tabindex: -1, "aria-hidden": "true", webkitdirectory: folder });
  input.addEventListener("change", () => { const files = [...input.files]; input.value = ""; if (files.length) onFiles(files); });
  const button = h("button", { type: "button", class: ["button", kind, small && "small"], onclick: () => input.click() }, icon(iconName), h("span", {}, label));
  return h("span", { class: "file-button" }, button, input);
}
