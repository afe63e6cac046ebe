// The fields of a draft's form: what it is, its name, the method, and the advanced settings.

import { app } from "./api.js";
import { concepts } from "./concepts.js";
import { h, uniqueId } from "./dom.js";
import { checkbox, numberField, segmented, select, textField } from "./fields.js";

const KINDS = [{ value: "object", label: "Object or animal" }, { value: "person", label: "Person" }, { value: "style", label: "Style" }];
const NOUNS = { object: "toy duck", person: "woman", style: "watercolour" };
const METHODS = [
  { value: "lora", label: "DreamBooth LoRA", text: "It gives the closest likeness, in a file of some megabytes." },
  { value: "pivotal", label: "Pivotal tuning", text: "It mixes better with other words and concepts." },
  { value: "textual-inversion", label: "Textual inversion", text: "It makes the smallest file and leaves the model as it is. The likeness is lower." },
];
const PRIORS = [
  { value: "none", label: "None" }, { value: "predicted", label: "Predicted by the model" }, { value: "generated", label: "Generated class images" },
];
const LORA_ONLY = ["rank", "prior", "text_encoder"];
/** The settings that a preset of training holds. */
export const PRESET_FIELDS = ["method", "steps", "lr", "rank", "resolution", "seed", "prior", "crop", "flip", "text_encoder", "early_stop"];

/** Make the fields. onChange(name, value, isTyped): isTyped while somebody types. Returns {fields: by name, basic, advanced:
 * elements, show(form), end()}. */
export function draftFields(onChange) {
  const typed = name => ({ onInput: value => onChange(name, value, true), onChange: value => onChange(name, value, false) });
  const chosen = name => ({ onChange: value => { onChange(name, value, false); show({ [name]: value }); } });
  const fields = {
    kind: segmented({ label: "What do the photos share?", choices: KINDS, value: "object", ...chosen("kind") }),
    noun: textField({ id: "train-noun", label: "Class noun", word: "class noun", maxLength: 100, ...typed("noun") }),
    name: textField({ id: "train-name", label: "Concept name", word: "concept", placeholder: "Rex the Dog", maxLength: 64, ...typed("name") }),
    consent: checkbox({ label: "This person agrees to images of them being generated", help: "The answer is written on the concept's card.", ...chosen("consent") }),
    method: methodCards(value => chosen("method").onChange(value)),
    ...advancedFields(typed, chosen),
  };
  const values = {};
  const show = form => {
    Object.assign(values, form);
    fields.consent.root.hidden = values.kind !== "person";
    fields.noun.input.placeholder = NOUNS[values.kind] ?? "";
    for (const name of LORA_ONLY) fields[name].root.hidden = values.method === "textual-inversion";
  };
  show({ kind: "object", method: "lora" });
  const offer = () => offerConcepts(fields.continue_from);
  const end = concepts.onChange(offer);
  concepts.load().then(offer);
  const row = (...names) => h("div", { class: "field-row" }, names.map(name => fields[name].root));
  return {
    fields, show, end,
    advanced: [
      row("steps", "lr"), row("resolution", "rank"), row("seed", "prior"),
      fields.crop.root, fields.flip.root, fields.text_encoder.root, fields.early_stop.root,
      fields.sample_prompts.root, fields.continue_from.root, fields.owner.root,
    ],
  };
}

function advancedFields(typed, chosen) {
  const number = (name, label, placeholder, word = null) => numberField({ label, placeholder, word, ...typed(name) });
  return {
    steps: number("steps", "Max steps", "automatic"),
    lr: number("lr", "Learning rate", "automatic", "learning rate"),
    rank: number("rank", "LoRA rank", "16", "rank"),
    resolution: number("resolution", "Resolution", "the model's own", "resolution"),
    seed: number("seed", "Seed", "0"),
    prior: select({ label: "Prior preservation", word: "prior preservation", choices: PRIORS, value: "none", ...chosen("prior") }),
    crop: checkbox({ label: "Crop each photo around its subject", help: "It is cropped at its centre otherwise. What you crop by hand stays.", ...chosen("crop") }),
    flip: checkbox({ label: "Also train on mirrored photos", help: "Leave it off for faces and writing.", ...chosen("flip") }),
    text_encoder: checkbox({ label: "Train the text encoder too", word: "text encoder", help: "The likeness is closer, but it mixes worse.", ...chosen("text_encoder") }),
    early_stop: checkbox({ label: "Stop when the loss has converged", word: "loss", ...chosen("early_stop") }),
    sample_prompts: textField({ label: "Own sample prompts", word: "samples", rows: 3, maxLength: 4000, placeholder: "{} on the beach", help: "At most 8, one a line; {} stands for the concept.", ...typed("sample_prompts") }),
    continue_from: select({ label: "Continue from a concept", choices: [{ value: "", label: "No: start anew" }], value: "", help: "Starts from what a finished concept has learned.", ...chosen("continue_from") }),
    owner: textField({ label: "Owner", placeholder: app.state.owner, maxLength: 64, help: "The first part of the token.", ...typed("owner") }),
  };
}

/** Three cards of which one is chosen, with a sentence each. */
function methodCards(onChange) {
  const name = uniqueId("method");
  const cards = METHODS.map(method => {
    const id = uniqueId("method"), text = `${id}-text`;
    return h("div", { class: "method-card" },
      h("input", { type: "radio", id, name, value: method.value, "aria-describedby": text, onchange: () => onChange(method.value) }),
      h("div", {}, h("label", { for: id }, method.label), h("p", { class: "field-help", id: text }, method.text)));
  });
  const group = h("div", { class: "method-cards" }, cards);
  return {
    root: h("fieldset", { class: "field" }, h("legend", { class: "field-label" }, "Method"), group), input: group,
    get value() { return group.querySelector("input:checked")?.value ?? null; },
    set value(value) { for (const input of group.querySelectorAll("input")) input.checked = input.value === value; },
    error() {},
  };
}

const NUMBERS = ["steps", "lr", "rank", "resolution", "seed"];
const lines = text => text.split("\n").map(line => line.trim()).filter(Boolean);

/** A field's value as the server takes it: numbers are typed text or null, sample prompts a list. */
export function toServer(name, value) {
  if (name === "crop") return value ? "subject" : "center";
  if (name === "sample_prompts") return lines(value);
  return value === "" && (NUMBERS.includes(name) || name === "continue_from") ? null : value;
}

/** The server's value as the field has it. */
export function toField(name, value) {
  if (name === "crop") return value === "subject";
  if (name === "sample_prompts") return (value ?? []).join("\n");
  return value ?? "";
}

/** Offer the concepts that the loaded model can continue. */
function offerConcepts(field) {
  const tokens = concepts.list.filter(concept => concept.fits && !concept.damaged).map(concept => concept.token), { value } = field;
  field.setChoices([{ value: "", label: "No: start anew" }, ...tokens], value);
  if (field.wanted) setContinue(field, field.wanted);
}

/** Choose a concept, also one that the list does not have (yet). */
export function setContinue(field, token) {
  field.wanted = token;
  if (token && ![...field.input.options].some(option => option.value === token)) field.input.append(h("option", { value: token }, token));
  field.value = token ?? "";
}
