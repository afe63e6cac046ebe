// Own presets of training settings.

import { saved } from "./api.js";
import { h } from "./dom.js";
import { textField } from "./fields.js";
import { PRESET_FIELDS } from "./draft_fields.js";
import { button, menuButton, openDialog, toast } from "./ui.js";

const MAX_PRESETS = 50;
const presets = saved("training-presets", []);

/** A menu that saves the present settings and brings back saved ones. form(): the present values; apply(values). */
export function presetMenu({ form, apply }) {
  return menuButton("Presets", () => [
    ...presets.value.map(preset => ({ label: preset.name, iconName: "check", run: () => { apply(preset.values); toast(`The settings of “${preset.name}” are in the form.`); } })),
    ...(presets.value.length ? [null] : []),
    { label: "Save these settings", iconName: "plus", run: () => savePreset(form()) },
    ...presets.value.map(preset => ({ label: `Delete “${preset.name}”`, iconName: "trash", danger: true, run: () => remove(preset.name) })),
  ], { iconOnly: false, iconName: "down", small: true });
}

async function savePreset(values) {
  const name = textField({ label: "Name of the preset", maxLength: 60, placeholder: "Quick trial" });
  const chosen = await openDialog({
    title: "Save these settings",
    content: close => h("form", { onsubmit: event => { event.preventDefault(); if (name.value.trim()) close(name.value.trim()); } }, name.root),
    buttons: close => [
      button("Cancel", { onclick: () => close() }),
      button("Save", { kind: "primary", onclick: () => (name.value.trim() ? close(name.value.trim()) : name.error("Type a name.")) }),
    ],
    onOpen: () => name.input.focus(),
  });
  if (!chosen) return;
  const fields = Object.fromEntries(PRESET_FIELDS.map(field => [field, values[field]]));
  presets.set([{ name: chosen, values: fields }, ...presets.value.filter(preset => preset.name !== chosen)].slice(0, MAX_PRESETS));
  toast(`Saved as “${chosen}”.`, { kind: "good" });
}

function remove(name) {
  const before = presets.value;
  presets.set(before.filter(preset => preset.name !== name));
  toast(`Deleted “${name}”.`, { action: { label: "Undo", run: () => presets.set(before) } });
}
