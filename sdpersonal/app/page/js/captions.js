// The captions of a draft's photos in a table, saved while they are typed.

import { debounce, h, updateList } from "./dom.js";
import { textField } from "./fields.js";
import { announce, button, confirmDialog, insertText } from "./ui.js";

const SAVE_AFTER = 500; // milliseconds without a key

/** Put {}, which stands for the concept, before each line that lacks it. */
const withConcept = text => text.split("\n").map(line => (!line.trim() || line.includes("{}") ? line : `{} ${line.trimStart()}`)).join("\n");

/** Collect captions as they are typed and send them together. onSaved(error or null, photos). Returns {set(photo, text),
 * waits(photo), flush()}. */
export function captionSaver(requests, onSaved) {
  let pending = {};
  const save = debounce(async () => {
    const captions = pending;
    pending = {};
    try {
      await requests.send("captions", { captions }, { keepalive: true });
      onSaved(null, Object.keys(captions));
    } catch (error) {
      pending = { ...captions, ...pending }; // kept for the next attempt
      onSaved(error, Object.keys(captions));
    }
  }, SAVE_AFTER);
  return {
    set(photo, text) { pending[photo] = withConcept(text); save(); },
    waits: photo => photo in pending,
    flush: () => save.now(),
  };
}

/** Save a field's text for a photo as it is typed; photo(): its id. */
export function connectCaption(field, saver, photo) {
  field.input.addEventListener("input", () => saver.set(photo(), field.value));
  field.input.addEventListener("blur", () => { field.value = withConcept(field.value); saver.flush(); });
}

/** Make the table. Returns {root, update(draft), flush()}. */
export function captionTable({ requests, draft }) {
  const note = h("span", { class: "muted small-text", role: "status" });
  const rows = h("ul", { class: "caption-rows" });
  const saver = captionSaver(requests, (error, photos) => {
    note.textContent = error ? "Not saved yet" : "Saved";
    for (const row of rows.children) if (photos.includes(row.dataset.key)) row.parts.field.error(error && row.dataset.key === photos.at(-1) ? error.text : "");
    if (error) announce(error.text);
  });
  const all = textField({ label: "One caption for all photos", placeholder: "{} on a table", maxLength: 1000 });
  const write = button("Write it to all", { onclick: async () => {
    const photos = draft().photos, text = withConcept(all.value.trim());
    if (photos.some(photo => photo.caption && photo.caption !== text) && !(await confirmDialog({
      title: "Replace the captions?", text: "Some photos have captions already. They are replaced.", yes: "Replace them",
    }))) return;
    await requests.send("captions", { captions: Object.fromEntries(photos.map(photo => [photo.id, text])) });
  } });
  return {
    root: h("div", { class: "captions" },
      h("p", { class: "muted small-text" }, "What a photo shows beside the concept, such as its place. {} stands for the concept; it is put first where you leave it out. Without captions the words are chosen automatically."),
      h("div", { class: "caption-all" }, all.root, insertButton(all.input), write), note, rows),
    update(now) { updateList(rows, now.photos, photo => photo.id, photo => captionRow(photo, saver, note), fillRow(saver)); },
    flush: saver.flush,
  };
}

/** A button that inserts {}, which stands for the concept. */
export const insertButton = input => button("{}", { title: "Insert {}, which stands for the concept", "aria-label": "Insert {}, which stands for the concept", kind: "mono", onclick: () => insertText(input, "{}") });

function captionRow(photo, saver, note) {
  const field = textField({ label: `Caption of ${photo.name}`, hideLabel: true, rows: 2, maxLength: 4000, placeholder: "No caption" });
  field.input.addEventListener("input", () => { note.textContent = "Saving"; });
  connectCaption(field, saver, () => photo.id);
  const image = h("img", { alt: "", loading: "lazy" });
  const element = h("li", { class: "caption-row" }, image, field.root, insertButton(field.input));
  element.parts = { image, field };
  fillRow(saver)(element, photo);
  return element;
}

const fillRow = saver => (element, photo) => {
  const { image, field } = element.parts;
  if (image.getAttribute("src") !== photo.thumb) image.src = photo.thumb;
  element.classList.toggle("left-out", !photo.used);
  const typing = document.activeElement === field.input || saver.waits(photo.id);
  if (!typing && field.value !== photo.caption) field.value = photo.caption;
};
