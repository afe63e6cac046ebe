// The selected image, large, with everything that can be done with it. What is built here is built for one image: its
// buttons hold the id of the image above them and cannot act on another.

import { api } from "./api.js";
import { openChange } from "./change.js";
import { fill, h, icon } from "./dom.js";
import { checkbox, slider } from "./fields.js";
import { form } from "./form.js";
import { deleteImages, downloadImage, imageName, images, setFavourite } from "./images.js";
import { inpaintImage, startFromImage } from "./init_image.js";
import { jobs } from "./jobs.js";
import { openLightbox } from "./lightbox.js";
import { selection } from "./selection.js";
import { announce, button, copyText, dateText, factList, menuButton, openDialog, showError, toast } from "./ui.js";

const FACTS_AFTER = 120; // milliseconds: moving through the gallery with the arrow keys asks for few
const details = new Map(); // id -> answer of GET /app/gallery/image
const MOST_ENLARGED = 2; // times a small image's own size
const MAX_DETAILS = 200;

/** Load what is known about an image. */
async function loadDetails(id, signal) {
  if (!details.has(id)) {
    details.set(id, await api.get("/app/gallery/image", { id }, { signal }));
    if (details.size > MAX_DETAILS) details.delete(details.keys().next().value);
  }
  return details.get(id);
}

/** Make the pane. onLeave(): closes the sheet that the pane may be in, after an action that leads to the form. */
export function selectedPane({ onLeave }) {
  const root = h("div", { class: "selected-image", "aria-label": "Selected image", role: "region" });
  let shown = null, abort = null, favourite = null;

  async function show() {
    const entry = selection.id && images.get(selection.id);
    if (entry && entry.id === shown) return favourite?.set(entry.favourite);
    abort?.abort();
    abort = new AbortController();
    shown = entry?.id ?? null;
    root.dataset.id = shown ?? "";
    if (!entry) return fill(root, h("p", { class: "empty" }, "Choose an image to see it here, with everything that can be done with it."));
    favourite = favouriteButton(entry);
    const facts = h("div", { class: "selected-facts" });
    const stage = imageStage(entry);
    fill(root, stage.root, actions(entry, favourite.root, onLeave), facts);
    return loadFacts(entry, facts, stage, abort.signal);
  }
  selection.onChange(() => { show(); const entry = images.get(selection.id); if (entry) announce(`Selected: ${imageName(entry)}`); });
  images.onChange(() => {
    if (!selection.id && images.order.length) selection.offer(images.order.includes(selection.last) ? selection.last : images.order[0]);
    show();
  });
  show();
  return { root };
}

function imageStage(entry) {
  const picture = h("img", { src: entry.url, alt: imageName(entry), width: entry.width, height: entry.height, draggable: "false" });
  picture.style.setProperty("width", `min(100%, ${MOST_ENLARGED * entry.width}px, calc(42vh * ${entry.width / entry.height}))`);
  const areas = h("img", { class: "areas", alt: "", hidden: true });
  areas.style.setProperty("width", picture.style.getPropertyValue("width"));
  const open = h("button", { type: "button", class: "stage-button", "aria-label": `Show it large: ${imageName(entry)}`, onclick: () => openLightbox(entry.id) },
    h("span", { class: "stage-frame" }, picture, areas));
  const toggle = checkbox({ label: "Where each concept is", isSwitch: true, onChange: on => {
    if (on && !areas.getAttribute("src")) areas.src = `/app/areas/${entry.id}.png`;
    areas.hidden = !on;
  } });
  toggle.root.hidden = true;
  return { root: h("div", { class: "stage" }, open, toggle.root), showToggle() { toggle.root.hidden = false; } };
}

async function loadFacts(entry, place, stage, signal) {
  fill(place, factList([["Prompt", entry.prompt]]));
  await new Promise(resolve => setTimeout(resolve, details.has(entry.id) ? 0 : FACTS_AFTER));
  if (signal.aborted) return;
  try {
    const answer = await loadDetails(entry.id, signal);
    if (signal.aborted) return;
    const facts = [...answer.facts, ["Made", dateText(entry.created)]];
    fill(place, factList(facts));
    if (answer.has_areas) stage.showToggle();
  } catch (error) {
    if (error.name !== "AbortError") fill(place, h("p", { class: "muted small-text" }, error.text ?? error.message));
  }
}

function favouriteButton(entry) {
  let on = Boolean(entry.favourite);
  const root = button("Favourite", { class: "button favourite-button", iconName: "star", onclick: () => setFavourite([entry.id], !on) });
  const set = value => {
    on = Boolean(value);
    root.setAttribute("aria-pressed", String(on));
    root.firstElementChild.replaceWith(icon("star", { filled: on }));
  };
  set(on);
  return { root, set };
}

/** Start a job from one image. */
function start(entry, kind, title, expected, more = {}) {
  return jobs.submit({ title, expected }, async () => ({ kind, image: entry.id, ...more }));
}

function actions(entry, favourite, onLeave) {
  const isGrid = entry.kind === "grid";
  const action = (label, iconName, onclick, props = {}) => button(label, { iconName, onclick, ...props });
  const download = menuButton("Download", () => [
    { label: "With its recipe", iconName: "download", run: () => downloadImage(entry, false) },
    { label: "Nothing but pixels", iconName: "download", run: () => downloadImage(entry, true) },
    null,
    { label: "Copy its settings as text", iconName: "copy", run: async () => copyText((await loadDetails(entry.id)).recipe_text, "Copied the settings") },
  ], { iconName: "download", iconOnly: false, kind: "" });
  if (isGrid) return h("div", { class: "actions" }, download, entry.page && h("a", { class: "button", href: entry.page, target: "_blank", rel: "noopener" }, icon("image"), "Open page"), deleteButton(entry));
  return h("div", { class: "actions" }, favourite, download,
    action("Variations", "shuffle", () => openVariations(entry), { title: "The same prompt from noise near this image's" }),
    action("Upscale 2×", "enlarge", () => start(entry, "hires", "Upscale 2×", 1), { title: "Hires fix: generates it again at twice the size, over an enlarged first pass" }),
    action("Start from it", "image", () => { startFromImage(entry); toast("The next images start from this one."); onLeave("init"); }, { title: "Image-to-image" }),
    action("Inpaint", "brush", () => { onLeave("init"); return inpaintImage(entry); }, { title: "Paint the part to generate again" }),
    action("Use settings", "copy", () => useSettings(entry, onLeave), { title: "Put its prompt and all its settings into the form" }),
    action("Change…", "edit", () => openChange(entry), { title: "Other words or other strengths, all else the same" }),
    action("Generate again", null, () => start(entry, "redo", "Generate again", 1), { title: "The same settings and the same seed" }),
    deleteButton(entry));
}

const deleteButton = entry => button("Delete", { kind: "danger", iconName: "trash", onclick: () => deleteImages([entry.id]) });

async function useSettings(entry, onLeave) {
  const { settings, notes } = await loadDetails(entry.id);
  const text = [`Its settings are in the form${settings.seed ? ", with its seed" : ""}.`, ...(notes ?? [])].join(" ");
  form.replace(form.fromSettings(settings), text);
  onLeave("prompt");
}

async function openVariations(entry) {
  const { settings } = await loadDetails(entry.id);
  if (settings?.variation_strength) {
    toast(`This image is itself a variation, of the image with seed ${settings.seed}. Vary that one, or use “Start from it”.`, { kind: "error" });
    return;
  }
  const strength = slider({ label: "How different", min: 0.05, max: 1, step: 0.05, value: 0.15 });
  const count = slider({ label: "Images", min: 1, max: 16, step: 1, value: 4 });
  const chosen = await openDialog({
    title: "Variations",
    content: () => [h("p", { class: "muted" }, "The same prompt from noise near this image's: 0.1 is close to it, 1 is another image."), strength.root, count.root],
    buttons: close => [button("Cancel", { onclick: () => close() }), button("Generate", { kind: "primary", autofocus: true, onclick: () => close({ strength: strength.value, count: count.value }) })],
  });
  if (chosen) start(entry, "variations", "Variations", chosen.count, chosen).catch(showError);
}
