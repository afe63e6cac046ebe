// The photos of a draft: where they are dropped, their grid with crops and marks, and what the checks found.

import { fill, h, icon, updateList } from "./dom.js";
import { captionTable } from "./captions.js";
import { placeSquare } from "./crop.js";
import { fileButton, segmented } from "./fields.js";
import { openPhotoEditor } from "./photo_editor.js";
import { isUntouched, store } from "./train_data.js";
import { ACCEPT, uploadFiles } from "./uploads.js";
import { announce, button, confirmDialog, countText, menuButton } from "./ui.js";

/** Make the section. requests: as `draftRequests`; draft(): the newest draft. Returns {root, update(draft), add(files)}. */
export function photosSection({ requests, draft }) {
  const uploads = h("div", { class: "uploads" });
  const problems = h("div", { class: "photo-problems", role: "status" });
  const add = async files => showProblems(problems, await uploadFiles(files, uploads, async paths => (await requests.send("photos", { uploads: paths })).problems ?? []));
  const choosers = () => [
    fileButton("Choose photos", { onFiles: add, accept: ACCEPT }),
    fileButton("Choose a folder", { onFiles: add, folder: true }),
  ];
  const zone = dropZone(choosers(), set => requests.send("samples", { set }));
  const grid = h("ul", { class: "photo-grid", "aria-label": "Photos" });
  const captions = captionTable({ requests, draft });
  const review = reviewList({ requests, draft, grid });
  const view = segmented({ label: "Show", hideLabel: true, value: "photos", choices: [{ value: "photos", label: "Photos" }, { value: "captions", label: "Captions" }], onChange: () => showView() });
  const count = h("span", { class: "muted", id: "photo-count" });
  const head = h("div", { class: "photos-head" }, h("h3", {}, "Photos"), count, h("span", { class: "grow" }), view.root,
    fileButton("Add photos", { onFiles: add, accept: ACCEPT, small: true, iconName: "plus" }), moreMenu({ requests, draft, add }));
  const showView = () => { grid.hidden = view.value !== "photos"; captions.root.hidden = view.value === "photos"; };
  showView();
  const editor = photo => openPhotoEditor({ requests, draft, photo });
  return {
    root: h("section", { class: "photos", "aria-label": "Photos" }, zone.root, head, uploads, problems, grid, captions.root, review.root),
    add,
    update(now) {
      const some = now.photos.length > 0;
      zone.update(now);
      zone.root.hidden = some;
      head.hidden = !some;
      const out = now.photos.filter(photo => !photo.used).length;
      count.textContent = countText(now.photos.length, "photo") + (out ? `, ${out} left out` : "");
      updateList(grid, now.photos, photo => photo.id, photo => photoTile(photo, { editor, requests }), fillTile);
      captions.update(now);
      review.update(now);
    },
    flush: () => captions.flush(),
  };
}

function showProblems(place, texts) {
  fill(place, texts.length > 0 && h("div", { class: "notice warn" },
    h("ul", {}, texts.map(text => h("li", {}, text))),
    button("Close", { small: true, kind: "quiet", onclick: () => fill(place) })));
}

/** The large zone of a draft without photos. */
function dropZone(choosers, onSamples) {
  const title = h("h2", {}), samples = h("div", { class: "sample-sets" });
  const root = h("div", { class: "drop-zone" }, icon("upload"), title,
    h("p", { class: "muted" }, "Drop 4 to 10 photos of one thing, person or style anywhere on this page. More variety in backgrounds and angles is better than more photos."),
    h("div", { class: "row center" }, choosers),
    h("p", { class: "muted small-text" }, "They stay on this machine: only copies of their pixels, without names or places. JPEG, PNG, WebP or HEIC; text files beside them become captions."),
    samples);
  return {
    root,
    update(draft) {
      const first = !store.trainings.length && store.drafts.every(isUntouched);
      title.textContent = first ? "Teach it something of yours" : "Add the photos";
      if (samples.childElementCount || !draft.sample_sets?.length) return;
      fill(samples, h("span", { class: "muted" }, "Nothing at hand? Try sample photos:"),
        draft.sample_sets.map(set => sampleButton(set, onSamples)));
    },
  };
}

function sampleButton(set, onSamples) {
  const element = button(set.title, { dataset: { sample: set.id }, onclick: () => onSamples(set.id) });
  if (set.thumb) element.prepend(h("img", { src: set.thumb, alt: "", class: "sample-thumb" }));
  return element;
}

function moreMenu({ requests, draft, add }) {
  const folder = fileButton("Choose a folder", { onFiles: add, folder: true });
  folder.hidden = true;
  return h("span", {}, folder, menuButton("More about photos", () => [
    { label: "Add a folder", iconName: "upload", run: () => folder.querySelector("button").click() },
    ...(draft().sample_sets ?? []).map(set => ({ label: `Replace by sample photos: ${set.title}`, iconName: "image", run: () => requests.send("samples", { set: set.id }) })),
    null,
    { label: "Remove all photos", iconName: "trash", danger: true, run: async () => {
      const sure = await confirmDialog({ title: "Remove all photos?", text: "The copies here and their captions are deleted. Your own files stay.", yes: "Remove all", danger: true });
      if (sure) await requests.send("clear", {});
    } },
  ], { small: true }));
}

/** A tile: the whole photo with its crop over it, what is noticeable about it in words, and a switch to leave it out. */
function photoTile(photo, { editor, requests }) {
  const image = h("img", { alt: "", loading: "lazy", draggable: "false" }), square = h("span", { class: "crop-square", hidden: true });
  const open = h("button", { type: "button", class: "photo-open", onclick: () => editor(element.photo.id) },
    h("span", { class: "photo-box" }, h("span", { class: "photo-frame" }, image, square)));
  const toggle = button("Leave out", { iconName: "close", iconOnly: true, small: true, class: "button icon-only small photo-toggle", onclick: () => {
    const used = !element.photo.used;
    announce(`${element.photo.name} is ${used ? "used" : "left out"}`);
    return requests.send("photo", { photo: element.photo.id, used });
  } });
  const marks = h("span", { class: "photo-marks" });
  const element = h("li", { class: "photo-tile", dataset: { photo: photo.id } }, open, toggle, marks);
  element.parts = { image, square, open, toggle, marks };
  image.addEventListener("load", () => showSquare(element));
  fillTile(element, photo);
  return element;
}

function fillTile(element, photo) {
  const { image, open, toggle, marks } = element.parts;
  element.photo = photo;
  if (image.getAttribute("src") !== photo.thumb) image.src = photo.thumb;
  element.classList.toggle("left-out", !photo.used);
  const words = [!photo.used && "left out", ...(photo.marks ?? [])].filter(Boolean);
  open.setAttribute("aria-label", [`Edit ${photo.name}`, ...words].join(", "));
  marks.textContent = words.join(", ");
  const label = photo.used ? `Leave ${photo.name} out` : `Put ${photo.name} back`;
  toggle.setAttribute("aria-label", label);
  toggle.title = label;
  fill(toggle, icon(photo.used ? "close" : "plus"));
  showSquare(element);
}

function showSquare({ parts: { image, square }, photo }) {
  square.hidden = !photo.crop || !image.naturalWidth;
  if (!square.hidden) placeSquare(square, photo.crop, image.naturalWidth, image.naturalHeight);
}

/** What the checks found; the photos that are meant are highlighted while a finding is pointed at or focused. */
function reviewList({ requests, draft, grid }) {
  const status = h("p", { class: "review-status", role: "status" });
  const list = h("ul", { class: "findings" });
  const advice = button("Apply suggestions", { onclick: () => requests.send("advice", {}) });
  const root = h("section", { class: "review", "aria-label": "Photo checks", hidden: true },
    h("div", { class: "row spread" }, status, advice), list);
  const mark = (photos, on) => {
    for (const tile of grid.children) tile.classList.toggle("meant", on && photos.includes(tile.dataset.photo));
  };
  const make = finding => {
    const photos = finding.photos ?? [];
    const element = h("li", { class: "finding" }, icon("warning"), h("div", {},
      h("button", { type: "button", class: "finding-text", disabled: !photos.length, title: photos.length ? "Show the photos" : null,
        onclick: () => [...grid.children].find(tile => photos.includes(tile.dataset.photo))?.scrollIntoView({ block: "center" }) }, finding.message),
      [finding.effect, finding.fix].filter(Boolean).map(text => h("p", { class: "muted small-text" }, text))));
    for (const name of ["pointerenter", "focusin"]) element.addEventListener(name, () => mark(photos, true));
    for (const name of ["pointerleave", "focusout"]) element.addEventListener(name, () => mark(photos, false));
    return element;
  };
  return {
    root,
    update({ photos, review }) {
      root.hidden = !photos.length || !review;
      if (root.hidden) return;
      const findings = review.findings ?? [];
      const text = review.checking ? "Checking the photos" : findings.length ? "What the checks noticed" : "The checks noticed nothing to change.";
      if (status.textContent !== text) status.textContent = text;
      root.classList.toggle("good", !findings.length);
      advice.hidden = !review.has_advice;
      updateList(list, findings, finding => `${finding.name} ${finding.message} ${(finding.photos ?? []).join()}`, make);
    },
  };
}
