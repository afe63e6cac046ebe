// Messages, dialogs, tooltips, menus and words for numbers.

import { fill, h, icon, uniqueId } from "./dom.js";
import { TERMS } from "./terms.js";

/** Say something to screen readers only. */
export function announce(text) {
  const place = document.getElementById("announcer");
  place.textContent = "";
  requestAnimationFrame(() => { place.textContent = text; });
}

/** Show a message for some seconds. kind: "info", "good" or "error"; action: {label, run} for a button such as Undo. */
export function toast(text, { kind = "info", action = null, seconds = action ? 10 : kind === "error" ? 10 : 5 } = {}) {
  const close = () => element.remove();
  const element = h("div", { class: ["toast", kind], role: kind === "error" ? "alert" : "status" },
    h("span", {}, text),
    action && h("button", { class: "button small", type: "button", onclick: () => { close(); action.run(); } }, action.label),
    h("button", { class: "button quiet icon-only small", type: "button", "aria-label": "Close the message", onclick: close }, icon("close")));
  document.getElementById("toasts").append(element);
  let timer = setTimeout(close, seconds * 1000);
  element.addEventListener("pointerenter", () => clearTimeout(timer));
  element.addEventListener("pointerleave", () => { timer = setTimeout(close, 3000); });
  return close;
}

/** Show an error of `api` or any other. */
export function showError(error) {
  if (error?.name === "AbortError") return;
  console.error(error);
  toast(error?.text ?? error?.message ?? String(error), { kind: "error" });
}

/** Run asynchronous work of a button: the button is busy meanwhile, and an error becomes a message. */
export async function busy(button, work) {
  if (button?.getAttribute("aria-busy") === "true") return undefined;
  button?.setAttribute("aria-busy", "true");
  try {
    return await work();
  } catch (error) {
    showError(error);
    return undefined;
  } finally {
    button?.removeAttribute("aria-busy");
  }
}

/** Make a button. kind: "primary", "danger", "quiet" or ""; iconName: of dom.js; label: also the name where there is
 * only an icon (iconOnly); busyWhile: run `onclick` through `busy`. */
export function button(label, { kind = "", iconName = null, iconOnly = false, small = false, onclick = null, busyWhile = true, ...props } = {}) {
  const element = h("button", {
    type: "button",
    class: ["button", kind, small && "small", iconOnly && "icon-only"],
    "aria-label": iconOnly ? label : null,
    title: iconOnly ? label : null,
    ...props,
  }, iconName && icon(iconName), !iconOnly && h("span", {}, label));
  if (onclick) element.addEventListener("click", event => (busyWhile ? busy(element, async () => onclick(event)) : onclick(event)));
  return element;
}

/** Open a modal dialog. content: nodes, or a function of `close` that returns them; buttons likewise. Returns a promise
 * of what `close(value)` was called with; undefined when it was dismissed (Escape, the cross, a click outside). */
export function openDialog({ title, content, buttons = () => [], wide = false, className = "", onOpen = null }) {
  return new Promise(resolve => {
    let result;
    const close = value => { result = value; dialog.close(); };
    const id = uniqueId("dialog");
    const dialog = h("dialog", { class: ["dialog", wide && "wide", className], "aria-labelledby": id },
      h("div", { class: "dialog-head" },
        h("h2", { id }, title),
        h("button", { class: "button quiet icon-only", type: "button", "aria-label": "Close", onclick: () => close() }, icon("close"))),
      h("div", { class: "dialog-body" }, typeof content === "function" ? content(close) : content));
    const row = typeof buttons === "function" ? buttons(close) : buttons;
    if (row.length) dialog.append(h("div", { class: "dialog-buttons" }, row));
    dialog.addEventListener("click", event => { if (event.target === dialog) close(); });
    dialog.addEventListener("close", () => { dialog.remove(); resolve(result); });
    document.body.append(dialog);
    dialog.showModal();
    onOpen?.(dialog, close);
  });
}

/** Ask a yes-or-no question; resolves to true or false. danger: the yes destroys something. */
export async function confirmDialog({ title, text, yes = "Yes", no = "Cancel", danger = false }) {
  return (await openDialog({
    title,
    content: h("p", {}, text),
    buttons: close => [
      button(no, { onclick: () => close(false), autofocus: danger }),
      button(yes, { kind: danger ? "danger" : "primary", onclick: () => close(true), autofocus: !danger }),
    ],
  })) === true;
}

/** A word of the field with its meaning in a tooltip, reachable by hover, focus and touch. */
export function term(word) {
  const meaning = TERMS[word.toLowerCase()];
  if (!meaning) return document.createTextNode(word);
  const id = uniqueId("term");
  const tip = h("span", { class: "tooltip", role: "tooltip", id, hidden: true }, meaning);
  const mark = h("button", { type: "button", class: "term-mark", "aria-label": `What is “${word}”?`, "aria-describedby": id }, icon("info"));
  const show = () => { tip.hidden = false; placeTip(mark, tip); };
  const hide = () => { tip.hidden = true; };
  for (const name of ["pointerenter", "focus"]) mark.addEventListener(name, show);
  for (const name of ["pointerleave", "blur"]) mark.addEventListener(name, hide);
  mark.addEventListener("click", event => { event.preventDefault(); show(); });
  mark.addEventListener("keydown", event => { if (event.key === "Escape" && !tip.hidden) { hide(); event.stopPropagation(); } });
  return h("span", { class: "term" }, mark, tip);
}

function placeTip(mark, tip) {
  const place = mark.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(place.left - 8, innerWidth - size.width - 8));
  const below = place.bottom + 6 + size.height < innerHeight;
  tip.style.setProperty("left", `${left}px`);
  tip.style.setProperty("top", `${below ? place.bottom + 6 : place.top - size.height - 6}px`);
}

/** A button that opens a menu. items: a function that returns [{label, iconName, run, danger, disabled, checked}] or null
 * for a line between them. */
export function menuButton(label, items, { iconName = "more", iconOnly = true, kind = "quiet", small = false } = {}) {
  const id = uniqueId("menu");
  const opener = button(label, { kind, iconName, iconOnly, small, busyWhile: false, "aria-haspopup": "menu", "aria-expanded": "false" });
  const list = h("div", { class: "menu", role: "menu", id, popover: "auto" });
  opener.setAttribute("aria-controls", id);
  opener.addEventListener("click", () => list.togglePopover());
  list.addEventListener("toggle", event => {
    const open = event.newState === "open";
    opener.setAttribute("aria-expanded", open);
    if (!open) return;
    fill(list, items().map(item => item === null ? h("hr", {}) : menuItem(item, list, opener)));
    const place = opener.getBoundingClientRect();
    list.style.setProperty("left", `${Math.max(8, Math.min(place.left, innerWidth - list.offsetWidth - 8))}px`);
    const below = place.bottom + 4 + list.offsetHeight < innerHeight;
    list.style.setProperty("top", `${below ? place.bottom + 4 : Math.max(8, place.top - list.offsetHeight - 4)}px`);
    list.querySelector("[role^=menuitem]:not(:disabled)")?.focus();
  });
  list.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const entries = [...list.querySelectorAll("[role^=menuitem]:not(:disabled)")];
    entries[(entries.indexOf(document.activeElement) + step + entries.length) % entries.length]?.focus();
    event.preventDefault();
  });
  return h("span", { class: "menu-anchor" }, opener, list);
}

function menuItem(item, list, opener) {
  const isCheck = item.checked !== undefined;
  return h("button", {
    type: "button", role: isCheck ? "menuitemcheckbox" : "menuitem", "aria-checked": isCheck ? String(item.checked) : null,
    class: ["menu-item", item.danger && "danger"], disabled: Boolean(item.disabled),
    onclick: () => { list.hidePopover(); opener.focus(); Promise.resolve(item.run()).catch(showError); },
  }, icon(isCheck ? (item.checked ? "check" : "more") : item.iconName ?? "right"), h("span", {}, item.label));
}

/** A progress bar with a name; share: 0 to 1, or null while nobody knows. */
export function progressBar(name) {
  const bar = h("progress", { class: "progress", max: 1, "aria-label": name });
  return {
    root: bar,
    set(share) {
      if (share === null || share === undefined) bar.removeAttribute("value");
      else bar.value = Math.max(0, Math.min(1, share));
    },
  };
}

/** Let a place take files that are dropped on it. onFiles(files, event); accepts: whether it takes this drag. */
export function dropTarget(element, onFiles, accepts = event => event.dataTransfer?.types.includes("Files")) {
  let depth = 0;
  const end = () => { depth = 0; element.classList.remove("drop-here"); };
  element.addEventListener("dragenter", event => {
    if (!accepts(event)) return;
    event.preventDefault();
    depth += 1;
    element.classList.add("drop-here");
  });
  element.addEventListener("dragover", event => { if (accepts(event)) { event.preventDefault(); event.dataTransfer.dropEffect = "copy"; } });
  element.addEventListener("dragleave", () => { depth -= 1; if (depth <= 0) end(); });
  element.addEventListener("drop", end, true); // also where a target inside this one takes it
  element.addEventListener("drop", event => {
    if (!accepts(event)) return;
    event.preventDefault();
    event.stopPropagation();
    onFiles([...event.dataTransfer.files], event);
  });
}

/** Facts as a list. facts: [[name, text]]; look: classes besides. */
export function factList(facts, look = null) {
  return h("dl", { class: ["facts", look] }, facts.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
}

/** "3 min", "40 s", "1 h 20 min". */
export function timeText(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** "12:30" today, else "26 Nov, 12:30". seconds: since 1970. */
export function dateText(seconds) {
  const date = new Date(seconds * 1000), today = new Date().toDateString() === date.toDateString();
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return today ? time : `${date.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

/** "1 image", "4 images". */
export const countText = (count, noun, plural = `${noun}s`) => `${count.toLocaleString()} ${count === 1 ? noun : plural}`;

/** Put text in place of what is selected, as typing does, so that the browser's own undo takes it back. */
export function insertText(input, text) {
  input.focus();
  if (!document.execCommand("insertText", false, text)) {
    input.setRangeText(text, input.selectionStart, input.selectionEnd, "end");
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

/** Replace the text of a text box as typing does: only what differs, so that the browser's own undo takes it back and the
 * cursor stays in its words. Focus and scroll positions stay as they are. */
export function replaceText(input, text) {
  const before = input.value, after = text.replace(/\r\n?/g, "\n");
  if (before === after) return;
  const [start, end] = differingPart(before, after), part = after.slice(start, after.length - (before.length - end));
  const cursor = [input.selectionStart, input.selectionEnd].map(at => (at <= start ? at : at >= end ? at + after.length - before.length : start + part.length));
  const focused = document.activeElement, restoreScroll = rememberScroll(input);
  const { inputMode } = input;
  if (focused !== input) input.inputMode = "none"; // no keyboard on a phone
  input.focus({ preventScroll: true });
  if (document.activeElement === input) { // not below a dialog, nor in a hidden tab
    input.setSelectionRange(start, end);
    document.execCommand(part ? "insertText" : "delete", false, part);
  }
  if (input.value !== after) {
    input.value = after;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }
  input.setSelectionRange(...cursor);
  if (focused !== input && document.activeElement === input) returnFocus(input, focused);
  input.inputMode = inputMode;
  restoreScroll();
}

/** Return where two texts differ, as a start and an end in the first; not inside of a concept's brackets. */
function differingPart(before, after) {
  const shorter = Math.min(before.length, after.length);
  let start = 0, same = 0;
  while (start < shorter && before[start] === after[start]) start += 1;
  while (same < shorter - start && before.at(-1 - same) === after.at(-1 - same)) same += 1;
  const rest = /^[^<>]*>/.exec(before.slice(before.length - same));
  return [start, before.length - same + (rest?.[0].length ?? 0)];
}

function returnFocus(input, focused) {
  if (focused && focused !== document.body) focused.focus({ preventScroll: true, focusVisible: focused.matches(":focus-visible") });
  else input.blur();
}

/** Return a function that scrolls everything around an element, and the element, to where they are now. */
function rememberScroll(element) {
  const places = [];
  for (let place = element; place; place = place.parentElement) places.push([place, place.scrollTop]);
  return () => { for (const [place, top] of places) if (place.scrollTop !== top) place.scrollTop = top; };
}

/** Copy where the browser has no clipboard: over HTTP from another machine. */
function copyBySelection(text) {
  const area = h("textarea", { value: text, readOnly: true });
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("The browser does not allow copying here.");
}

/** Copy a text and say so. */
export async function copyText(text, what = "Copied") {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copyBySelection(text);
  toast(`${what}.`, { kind: "good", seconds: 2 });
}

/** Download a URL of this app. */
export function download(url, name = "") {
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}
