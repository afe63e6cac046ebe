// The prompt: the text box with its concepts in colour, its problem, keys for emphasis, and what is pasted from A1111.

import { api } from "./api.js";
import { completion } from "./completion.js";
import { concepts } from "./concepts.js";
import { debounce, fill, h } from "./dom.js";
import { form } from "./form.js";
import { subjectClass } from "./places.js";
import { insertText, replaceText, toast } from "./ui.js";

const MAX_PROMPT = 20000;
const END = 1e9; // a place after the last letter
const CHECK_AFTER = 700; // milliseconds without typing
const SYNTAX = /[<>{}[\]|()]|__|\bAND\b|\bBREAK\b/; // a prompt without these has no problem and no concepts
const WRITTEN = /(?<!\\)<([^<>\s][^<>\n]*)>/g;
const A1111 = /\bSteps: *\d+[\s\S]*\b(Sampler|CFG scale|Seed|Size): */;
const PLACE = /:(at|box)=/;
const EMPHASIS = /^\(([\s\S]*):(\d+(?:\.\d+)?)\)$/;
const CONCEPT = /^<([^<>:]+)(?::([+-]?\d*\.?\d+))?((?::[^<>]*)?)>$/;

/** Make the prompt box. onCheck({concepts, places}): called after each check. */
export function promptBox({ onCheck }) {
  const layer = h("div", { class: "prompt-layer", "aria-hidden": "true" });
  const input = h("textarea", {
    id: "prompt", class: "prompt-input", rows: 4, maxlength: MAX_PROMPT, spellcheck: "true", autocomplete: "off",
    "aria-describedby": "prompt-problem", "aria-keyshortcuts": "Control+Enter",
  });
  const problem = h("p", { class: "field-error prompt-problem", id: "prompt-problem", role: "status", hidden: true });
  const popup = completion(input, text => insertAt(input, text));
  const root = h("div", { class: "prompt-box" }, h("div", { class: "prompt-field" }, layer, input), popup.root, problem);

  const paint = () => {
    fill(layer, colouredParts(input.value), "\n");
    layer.scrollTop = input.scrollTop;
  };
  const say = (text, isHint = false) => {
    problem.textContent = text;
    problem.hidden = !text;
    problem.classList.toggle("hint", isHint);
    input.setAttribute("aria-invalid", text && !isHint ? "true" : "false");
  };
  let isMissing = false; // until something is typed, the message about an empty prompt stays
  const check = makeChecker(input, popup, (text, isHint) => { if (!isMissing) say(text, isHint); }, onCheck);

  input.addEventListener("input", () => {
    paint();
    if (isMissing) say("");
    isMissing = false;
    form.set({ prompt: input.value }, "prompt");
    check();
  });
  let cursor = [END, END]; // a dialog takes the selection away
  input.addEventListener("blur", () => { cursor = [input.selectionStart, input.selectionEnd]; });
  input.addEventListener("scroll", () => { layer.scrollTop = input.scrollTop; });
  input.addEventListener("keydown", event => { if (!popup.onKey(event)) onEmphasisKey(event, input); });
  input.addEventListener("paste", event => onPaste(event, input));
  form.onChange((patch, source) => {
    if (source === "prompt" || patch.prompt === undefined || patch.prompt === input.value) return;
    isMissing = false;
    replaceText(input, patch.prompt);
    popup.close();
    paint();
    check.now();
  });
  concepts.onChange(() => { placeholder(input); paint(); check.now(); });

  input.value = form.values.prompt;
  placeholder(input);
  paint();
  check.now();
  return {
    root, input,
    focus: () => input.focus(),
    /** Take back the last change of the text, or make it again. */
    undo(isRedo) {
      const focused = document.activeElement;
      input.focus({ preventScroll: true });
      document.execCommand(isRedo ? "redo" : "undo");
      focused.focus({ preventScroll: true });
      check.now();
    },
    /** Say what is wrong; the message goes when something is typed. */
    error(text) { say(text); isMissing = true; input.focus(); },
    /** Insert a concept where the cursor was when the box was left last. */
    insert(text) {
      input.focus();
      input.setSelectionRange(...cursor);
      insertAt(input, text);
    },
  };
}

function placeholder(input) {
  const concept = concepts.list.find(other => other.fits && !other.damaged);
  input.placeholder = concept ? `a photo of ${concept.token} on the beach` : "What the image should show, in English";
}

/** Return the text in parts, its concepts as coloured words: another colour for those that do not exist, and for each of
 * the subjects the colour of its box. */
function colouredParts(text) {
  const parts = [], words = [...text.matchAll(WRITTEN)], subjects = words.filter(isSubject);
  const havePlaces = subjects.length > 1 || subjects.some(([word]) => PLACE.test(word));
  let end = 0;
  for (const match of words) {
    const exists = !concepts.loaded || namesIn(match[1]).every(name => concepts.find(name));
    const colour = havePlaces && subjects.includes(match) && subjectClass(subjects.indexOf(match));
    parts.push(text.slice(end, match.index), h("span", { class: ["word", exists ? colour : "unknown"] }, match[0]));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

/** The concepts of a text in brackets, without strengths, options and the part of the sampling. */
const namesIn = inner => inner.replace(/@.*/, "").split(/\+(?![\d.])/).map(part => part.split(":")[0].trim());

const isSubject = match => namesIn(match[1]).some(name => (concepts.find(name)?.kind ?? "style") !== "style");

/** A prompt about "my dog" without a concept shows any dog. */
function hintFor(prompt) {
  const noun = /\b(?:my|our)\s+([a-z]+)/i.exec(prompt)?.[1];
  if (!noun) return "";
  const way = concepts.list.some(concept => concept.fits) ? "insert its concept, or train it from photos" : "train it from photos first, in the Train tab";
  return `The model does not know your ${noun}, and shows any: ${way}.`;
}

/** Return a function that checks the prompt some time after the last call; `.now()` at once. A prompt without any syntax
 * is not sent anywhere, and neither is one whose concept is just being typed. */
function makeChecker(input, popup, say, onCheck) {
  let last = null, number = 0;
  const run = async () => {
    const prompt = input.value;
    if (popup.isOpen) return later();
    if (!SYNTAX.test(prompt)) {
      last = prompt;
      number += 1;
      say(hintFor(prompt), true);
      return onCheck({ concepts: [], places: [] });
    }
    if (prompt === last) return undefined;
    const mine = ++number;
    try {
      const answer = await api.post("/app/prompt/check", { prompt });
      if (mine !== number) return undefined;
      last = prompt;
      say(answer.problem);
      return onCheck(answer);
    } catch (error) {
      return mine === number ? say(error.text ?? error.message) : undefined;
    }
  };
  const later = debounce(run, CHECK_AFTER);
  const check = () => later();
  check.now = () => { later.cancel(); last = null; run(); };
  return check;
}

/** Insert a concept at the cursor, with blanks around it where words would touch. */
function insertAt(input, text) {
  const before = input.value.slice(0, input.selectionStart), after = input.value.slice(input.selectionEnd);
  const space = before && !/[\s({[|<,]$/.test(before) ? " " : "";
  insertText(input, space + text + (after && !/^[\s,.;:)}\]|]/.test(after) ? " " : ""));
}

function onEmphasisKey(event, input) {
  const step = { ArrowUp: 0.1, ArrowDown: -0.1 }[event.key];
  if (!step || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  const [start, end] = wordsAt(input);
  if (start === end) return;
  const before = input.value.slice(start, end), after = emphasised(before, step);
  input.setSelectionRange(start, end);
  insertText(input, after);
  input.setSelectionRange(start, start + after.length);
}

/** Return where the selected words are, grown to the brackets around them; without a selection the word at the cursor. */
function wordsAt(input) {
  const text = input.value;
  let { selectionStart: start, selectionEnd: end } = input;
  for (const match of text.matchAll(/<[^<>\n]*>|\([^()]*:\d+(?:\.\d+)?\)/g)) {
    if (match.index <= start && end <= match.index + match[0].length) return [match.index, match.index + match[0].length];
  }
  if (start === end) {
    while (start > 0 && /[^\s,(){}[\]|<>]/.test(text[start - 1])) start -= 1;
    while (end < text.length && /[^\s,(){}[\]|<>]/.test(text[end])) end += 1;
  }
  while (start < end && /\s/.test(text[start])) start += 1;
  while (end > start && /\s/.test(text[end - 1])) end -= 1;
  return [start, end];
}

/** "words" -> "(words:1.1)" -> "words"; a concept changes its strength. */
function emphasised(text, step) {
  const round = number => Math.round(number * 100) / 100;
  const concept = CONCEPT.exec(text);
  if (concept) {
    const strength = round(Number(concept[2] ?? 1) + step);
    return `<${concept[1]}${strength === 1 ? "" : `:${strength}`}${concept[3]}>`;
  }
  const match = EMPHASIS.exec(text);
  const weight = round((match ? Number(match[2]) : 1) + step);
  const words = match ? match[1] : text;
  return weight === 1 ? words : `(${words}:${Math.max(0, weight)})`;
}

async function onPaste(event, input) {
  const text = event.clipboardData?.getData("text/plain") ?? "";
  if (!A1111.test(text)) return;
  event.preventDefault();
  try {
    const { fields, notes } = await api.post("/app/settings/read", { text });
    form.replace(form.fromSettings(fields), ["The settings of the pasted text are in the form.", ...notes].join(" "));
  } catch (error) {
    insertText(input, text);
    toast(`The settings in this text could not be read: ${error.text ?? error.message}`, { kind: "error" });
  }
}
