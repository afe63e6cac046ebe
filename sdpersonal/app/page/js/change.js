// The dialog "Change": the same image with other words, or with a concept at other strengths.

import { h } from "./dom.js";
import { segmented, select, textField } from "./fields.js";
import { jobs } from "./jobs.js";
import { button, openDialog, showError } from "./ui.js";

const MAX = 400;

/** Open the dialog for an image's entry and start the job. */
export async function openChange(entry) {
  const tokens = [...new Set([...entry.prompt.matchAll(/<([^<>\s:]+)/g)].map(match => `<${match[1]}>`))];
  const words = textField({ label: "Words in its prompt", placeholder: "beach", maxLength: MAX });
  const others = textField({ label: "Instead of them", help: "Write | between several: snow|space", placeholder: "snow|space", maxLength: MAX });
  const token = select({ label: "Concept", choices: tokens.length ? tokens : ["None in its prompt"], value: tokens[0] });
  const strengths = textField({ label: "Strengths", help: "Each makes an image.", value: "0.6, 0.8, 1.2", maxLength: MAX });
  const byWords = h("div", { class: "stack" }, words.root, others.root);
  const byStrength = h("div", { class: "stack", hidden: true }, token.root, strengths.root);
  const kind = segmented({ label: "What to change", hideLabel: true, value: "words", choices: [{ value: "words", label: "Words" }, ...(tokens.length ? [{ value: "strength", label: "Strength of a concept" }] : [])], onChange: value => {
    byWords.hidden = value !== "words";
    byStrength.hidden = value === "words";
  } });
  const read = () => {
    const fields = kind.value === "words" ? [words, others] : [strengths];
    for (const field of fields) field.error(field.value.trim() ? "" : "Write something here.");
    if (kind.value === "words" && words.value.trim() && !entry.prompt.includes(words.value.trim())) words.error("These words are not in its prompt.");
    const wrong = fields.find(field => field.input.getAttribute("aria-invalid") === "true");
    wrong?.input.focus();
    if (wrong) return null;
    const [target, values] = kind.value === "words" ? [words.value, others.value] : [token.value, strengths.value];
    return { change: `${target.trim()}=${values.trim()}`, expected: values.split(kind.value === "words" ? "|" : ",").filter(part => part.trim()).length };
  };
  const chosen = await openDialog({
    title: "Change it",
    content: () => [h("p", { class: "muted clamp" }, entry.prompt), tokens.length > 0 && kind.root, byWords, byStrength],
    buttons: close => [button("Cancel", { onclick: () => close() }), button("Generate", { kind: "primary", onclick: () => { const value = read(); if (value) close(value); } })],
    onOpen: () => words.input.focus(),
  });
  if (!chosen) return;
  jobs.submit({ title: "Change", expected: chosen.expected }, async () => ({ kind: "change", image: entry.id, change: chosen.change })).catch(showError);
}
