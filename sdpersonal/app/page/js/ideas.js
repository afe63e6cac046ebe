// Ready prompts, own presets that the server keeps, and the prompts used before.

import { api, app, saved } from "./api.js";
import { fill, h } from "./dom.js";
import { segmented, textField } from "./fields.js";
import { form } from "./form.js";
import { busy, button, menuButton, openDialog, showError, toast } from "./ui.js";

const MAX_HISTORY = 50;
const IN_MENU = 12;
const KINDS = { object: "For a thing", person: "For a person", style: "For a style" };
const history = saved("prompts", []);

/** Keep a prompt that was used. */
export function rememberPrompt(prompt) {
  const text = prompt.trim();
  if (text) history.set([text, ...history.value.filter(other => other !== text)].slice(0, MAX_HISTORY));
}

/** A button for the prompts used before. */
export function historyButton() {
  return menuButton("Recent prompts", () => {
    const prompts = history.value.slice(0, IN_MENU);
    if (!prompts.length) return [{ label: "No prompts yet", disabled: true, iconName: "info", run() {} }];
    return prompts.map(prompt => ({
      label: prompt.length > 70 ? `${prompt.slice(0, 69)}…` : prompt, iconName: "undo",
      run: () => form.replace({ prompt }, "Took a recent prompt."),
    }));
  }, { iconName: "down", small: true });
}

/** Open the ready prompts; one that is taken replaces the prompt, with a message that can undo it. */
function openIdeas() {
  const presets = app.state.prompt_presets ?? [];
  const kinds = [...new Set(presets.map(preset => preset.kind))];
  return openDialog({
    title: "Prompt ideas",
    content: close => [
      h("p", { class: "muted" }, "Taken with a concept of yours: the one in the prompt, else your newest."),
      kinds.map(kind => h("section", {}, h("h3", {}, KINDS[kind] ?? kind),
        h("ul", { class: "choice-list" }, presets.filter(preset => preset.kind === kind).map(preset =>
          h("li", {}, h("button", { type: "button", class: "choice", onclick: event => busy(event.currentTarget, () => takeIdea(preset, close)) }, preset.title)))))),
    ],
  });
}

async function takeIdea(preset, close) {
  const { prompt } = await api.post("/app/prompt/preset", { id: preset.id, prompt: form.values.prompt });
  close(); // the text box takes what can be undone only when nothing lies over it
  form.replace({ prompt }, `Took “${preset.title}”.`);
}

const PRESET_KINDS = {
  style: { field: "prompt", label: "Styles", verb: "Add", empty: "No style yet. A style is words that are added to a prompt, such as “watercolour, soft light”.", name: "Name of the style" },
  negative: { field: "negative", label: "Negative prompts", verb: "Use", empty: "No negative prompt yet.", name: "Name of the negative prompt" },
  form: { field: "", label: "All settings", verb: "Use", empty: "Nothing saved yet. This keeps everything in the form but the prompt and the starting image.", name: "Name" },
};

/** Open the user's presets: use, save, delete. */
async function openPresets() {
  let presets = [];
  const list = h("div", { class: "stack" });
  const load = async () => { ({ presets } = await api.get("/app/presets")); };
  try { await load(); } catch (error) { return showError(error); }
  return openDialog({
    title: "Your presets", className: "presets",
    content: close => {
      const kind = segmented({ label: "Kind", hideLabel: true, value: "style", choices: Object.entries(PRESET_KINDS).map(([value, { label }]) => ({ value, label })), onChange: () => show() });
      const show = () => fill(list, presetRows(presets.filter(preset => preset.kind === kind.value), kind.value, close, refresh), saveFields(kind.value, refresh));
      const refresh = async () => { await load(); show(); };
      show();
      return [kind.root, list];
    },
  });
}

function presetRows(presets, kind, close, refresh) {
  const { empty, verb } = PRESET_KINDS[kind];
  if (!presets.length) return h("p", { class: "muted" }, empty);
  return h("ul", { class: "preset-list" }, presets.map(preset => h("li", { class: "preset-row" },
    h("div", { class: "grow" }, h("strong", {}, preset.name), h("div", { class: "muted small-text clamp" }, preset.values[PRESET_KINDS[preset.kind].field] ?? "")),
    button(verb, { small: true, "aria-label": `${verb} ${preset.name}`, onclick: () => { close(); usePreset(preset); } }),
    button(`Delete ${preset.name}`, { iconName: "trash", iconOnly: true, small: true, kind: "quiet", onclick: () => deletePreset(preset, refresh) }))));
}

function usePreset({ kind, name, values }) {
  if (kind === "negative") return form.replace({ negative: values.negative }, `Took the negative prompt “${name}”.`);
  if (kind === "style") {
    const prompt = form.values.prompt.trim().replace(/,$/, "");
    return form.replace({ prompt: [prompt, values.prompt].filter(Boolean).join(", ") }, `Added the style “${name}”.`);
  }
  const known = Object.fromEntries(Object.entries(values).filter(([field]) => field in form.defaults && !["prompt", "init", "mask"].includes(field)));
  return form.replace(known, `Took the settings “${name}”.`);
}

async function deletePreset(preset, refresh) {
  await api.post("/app/presets/delete", { id: preset.id });
  await refresh();
  const undo = async () => { await api.post("/app/presets", { name: preset.name, kind: preset.kind, values: preset.values }); await refresh(); };
  toast(`Deleted “${preset.name}”.`, { action: { label: "Undo", run: () => undo().catch(showError) } });
}

function saveFields(kind, refresh) {
  const name = textField({ label: PRESET_KINDS[kind].name, maxLength: 80 });
  const usual = kind === "negative" ? form.values.negative : "";
  const text = kind === "form" ? null : textField({ label: kind === "style" ? "Words to add to the prompt" : "Negative prompt", rows: 2, value: usual, maxLength: 4000 });
  const save = button("Save", { kind: "primary", iconName: "plus", onclick: async () => {
    const missing = !name.value.trim() ? name : text && !text.value.trim() ? text : null;
    if (missing) { missing.error("Write something here."); missing.input.focus(); return; }
    await api.post("/app/presets", { name: name.value.trim(), kind, values: kind === "form" ? formValues() : { [PRESET_KINDS[kind].field]: text.value.trim() } });
    await refresh();
  } });
  return h("div", { class: "stack preset-save" }, h("h3", {}, "Save a new one"), name.root, text?.root, h("div", {}, save));
}

function formValues() {
  const { prompt, init, mask, advanced, ...rest } = form.values;
  return rest;
}

/** The buttons that open these dialogs. */
export const presetsButton = () => button("Presets", { small: true, busyWhile: false, onclick: openPresets });
export const ideasButton = () => button("Prompt ideas", { small: true, busyWhile: false, onclick: openIdeas });
