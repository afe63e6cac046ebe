// The image to start from: a chip with its small image, the denoising strength and a cross; a place to drop one.

import { api } from "./api.js";
import { fill, h } from "./dom.js";
import { fileButton, slider } from "./fields.js";
import { form } from "./form.js";
import { images } from "./images.js";
import { openInpaint } from "./inpaint.js";
import { selection } from "./selection.js";
import { button, dropTarget, showError, toast } from "./ui.js";

export const IMAGE_TYPES = "image/png,image/jpeg,image/webp";
export const DRAGGED = "application/x-sdpersonal-image"; // data type of an image of the gallery that is dragged

/** Make the field. Returns {root, field}. */
export function initImageField() {
  const root = h("section", { class: "field init", "aria-label": "Starting image" });
  const strength = slider({ label: "Denoising strength", word: "denoising strength", min: 0.05, max: 1, step: 0.05, value: 0.6, onInput: value => form.set({ strength: value }, "strength") });

  function show() {
    const { init, mask } = form.values;
    strength.value = Number(form.values.strength ?? 0.6);
    fill(root, init ? [chip(init, mask), strength.root] : emptyPart());
  }
  form.onChange((patch, source) => { if ("init" in patch || "mask" in patch || ("strength" in patch && source !== "strength")) show(); });
  show();
  dropTarget(root, (files, event) => takeDropped(files, event), event => event.dataTransfer.types.includes("Files") || event.dataTransfer.types.includes(DRAGGED));
  return { root, fields: { strength, init_image: strength } };
}

function emptyPart() {
  return h("div", { class: "row init-empty" },
    fileButton("Start from an image", { accept: IMAGE_TYPES, multiple: false, iconName: "image", kind: "quiet", small: true, onFiles: ([file]) => startFromFile(file).catch(showError) }),
    h("span", { class: "muted small-text" }, "or drop one here"));
}

function chip(init, mask) {
  const note = h("div", { class: "muted small-text" }, `${init.width} × ${init.height}${mask ? ", its painted part" : ""}`);
  const onMissing = event => { event.target.removeAttribute("src"); note.textContent = "It is no longer there: choose another."; note.className = "error-text small-text"; };
  return h("div", { class: "init-chip" },
    h("img", { class: "init-thumb", src: init.thumb ?? init.url, alt: "", onerror: onMissing }),
    h("div", { class: "grow" },
      h("div", { class: "init-title", title: init.name }, h("span", { class: "visually-hidden" }, "Starts from "), init.name),
      note),
    button("Paint", { iconName: "brush", small: true, title: "Paint the part to generate again (inpainting)", onclick: () => openInpaint(init) }),
    button("Remove the starting image", { iconName: "close", iconOnly: true, small: true, kind: "quiet", onclick: removeInit }));
}

function removeInit() {
  const { init, mask } = form.values;
  form.set({ init: null, mask: null });
  toast("Removed the starting image.", { action: { label: "Undo", run: () => form.set({ init, mask }) } });
}

/** "Image 40", from an id as "2026-11-28/00040-abcdef12". */
const imageTitle = entry => `Image ${Number.parseInt(entry.id.split("/")[1], 10) || ""}`;

/** Start from an image of the gallery; an empty prompt takes the image's. */
export function startFromImage(entry) {
  const init = { image: entry.id, name: imageTitle(entry), url: entry.url, thumb: entry.thumb, width: entry.width, height: entry.height };
  form.set({ init, mask: null, ...(form.values.prompt.trim() ? {} : { prompt: entry.prompt }) });
  return init;
}

/** Start from a file of the user's, which the server saves. */
export async function startFromFile(file) {
  const [upload] = await api.upload([file]);
  const { init, url, width, height } = await api.post("/app/init-images", { upload });
  form.set({ init: { ...init, name: file.name || "pasted image", url, width, height }, mask: null });
}

function takeDropped(files, event) {
  const entry = images.get(event.dataTransfer.getData(DRAGGED));
  if (entry) return startFromImage(entry);
  const file = files.find(other => other.type.startsWith("image/"));
  return file ? startFromFile(file).catch(showError) : toast("Only images can be dropped here.", { kind: "error" });
}

/** Paint on an image of the gallery: it becomes the starting image with a mask. */
export function inpaintImage(entry) {
  selection.choose(entry.id);
  return openInpaint({ image: entry.id, url: entry.url, name: imageTitle(entry), thumb: entry.thumb, width: entry.width, height: entry.height },
    form.values.prompt.trim() ? {} : { prompt: entry.prompt });
}
