// The dialog in which one photo is cropped, rotated, captioned or left out.

import { events } from "./api.js";
import { captionSaver, connectCaption, insertButton } from "./captions.js";
import { cropEditor } from "./crop.js";
import { fill, h } from "./dom.js";
import { textField } from "./fields.js";
import { announce, button, confirmDialog, openDialog, showError } from "./ui.js";

/** Open the dialog at a photo's id; it follows the draft while it is open. */
export function openPhotoEditor({ requests, draft, photo: first }) {
  const state = { id: first };
  const current = () => draft().photos.find(photo => photo.id === state.id);
  const send = body => requests.send("photo", { photo: state.id, ...body }).catch(showError);
  const crop = cropEditor({ onChange: square => send({ crop: square }) });
  const caption = textField({ label: "Caption", rows: 3, maxLength: 4000, placeholder: "{} on a table", help: "{} stands for the concept." });
  const saver = captionSaver(requests, error => caption.error(error?.text ?? ""));
  connectCaption(caption, saver, () => state.id);
  const toggle = button("Leave out", { onclick: () => send({ used: !current().used }) });
  const remove = button("Remove", { kind: "danger", onclick: async () => {
    const photo = current();
    if (!(await confirmDialog({ title: `Remove ${photo.name}?`, text: "The copy here and its caption are deleted. Your own file stays.", yes: "Remove it", danger: true }))) return;
    if (draft().photos.length > 1) move(1);
    await requests.send("photo", { photo: photo.id, remove: true });
  } });
  const marks = h("p", { class: "photo-editor-marks", role: "status" }), place = h("span", { class: "muted" });
  const move = by => {
    saver.flush();
    const photos = draft().photos, index = photos.findIndex(photo => photo.id === state.id);
    state.id = photos[(index + by + photos.length) % photos.length].id;
    caption.value = current().caption;
    update();
    announce(`${current().name}, ${place.textContent}`);
  };
  let close = () => {};
  const update = () => {
    const photo = current(), photos = draft().photos;
    if (!photo) return close();
    crop.set({ url: photo.url, crop: photo.crop, name: photo.name });
    crop.root.classList.toggle("left-out", !photo.used);
    if (document.activeElement !== caption.input && !saver.waits(photo.id)) caption.value = photo.caption;
    fill(toggle, h("span", {}, photo.used ? "Leave out" : "Put back"));
    const words = [!photo.used && "left out", ...(photo.marks ?? [])].filter(Boolean).join(", ");
    if (marks.textContent !== words) marks.textContent = words;
    place.textContent = `photo ${photos.indexOf(photo) + 1} of ${photos.length}`;
  };
  const side = h("div", { class: "photo-editor-side" },
    h("div", { class: "row nowrap" }, button("Previous photo", { iconName: "left", iconOnly: true, onclick: () => move(-1) }), place,
      button("Next photo", { iconName: "right", iconOnly: true, onclick: () => move(1) })),
    marks,
    h("div", { class: "row nowrap rotate-buttons" },
      button("Rotate left", { iconName: "rotateLeft", onclick: () => send({ quarters: 1 }) }),
      button("Rotate right", { iconName: "rotateRight", onclick: () => send({ quarters: -1 }) })),
    h("div", { class: "row" }, button("Automatic crop", { iconName: "crop", onclick: () => send({ crop: null }) }), toggle),
    caption.root, h("div", { class: "row spread" }, insertButton(caption.input), remove),
    h("p", { class: "muted small-text" }, "Drag the square or its corners. With the keyboard: arrows move it, + and - resize it, Page Up and Page Down go to the photo before and after."));
  const stop = events.on("train-list", update);
  const opened = openDialog({
    title: "Edit photo", wide: true, className: "photo-editor",
    content: h("div", { class: "photo-editor-body" }, crop.root, side),
    onOpen(dialog, end) {
      close = end;
      update();
      crop.focus();
      dialog.addEventListener("keydown", event => {
        const by = { PageUp: -1, PageDown: 1 }[event.key];
        if (by) { event.preventDefault(); move(by); }
      });
    },
  });
  return opened.then(() => {
    stop();
    saver.flush();
    document.querySelector(`.photo-tile[data-photo="${CSS.escape(state.id)}"] .photo-open`)?.focus();
  });
}
