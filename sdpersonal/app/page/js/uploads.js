// Files from drops, from the file chooser and from folders, uploaded in parts with their progress shown.

import { api } from "./api.js";
import { h } from "./dom.js";
import { countText, progressBar, showError } from "./ui.js";

const PHOTO = /\.(jpe?g|png|webp|heic|heif|avif|bmp|tiff?|gif)$/i, CAPTION = /\.(txt|caption)$/i;
export const ACCEPT = "image/*,.heic,.heif,.txt,.caption";
const PART = 8; // photos of one request, so that progress is seen and what was uploaded before an error stays
const MAX_FILES = 400; // looked at in a folder

/** The files of a drop, also those in folders. Must be called in the listener itself: the drop is gone afterwards. */
export async function filesOfDrop(event) {
  const entries = [...(event.dataTransfer.items ?? [])].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some(entry => entry.isDirectory)) return [...event.dataTransfer.files];
  const files = [];
  for (const entry of entries) await readEntry(entry, files);
  return files;
}

async function readEntry(entry, files) {
  if (files.length >= MAX_FILES) return;
  if (entry.isFile) {
    files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return;
    for (const child of entries) if (!child.name.startsWith(".")) await readEntry(child, files);
  }
}

/** Split files into parts that hold a photo's caption together with it; also count what is neither. */
function toParts(files) {
  const wanted = files.filter(file => PHOTO.test(file.name) || CAPTION.test(file.name) || file.type.startsWith("image/"));
  const stem = file => file.name.replace(CAPTION, "").replace(PHOTO, "");
  const byStem = Map.groupBy ? Map.groupBy(wanted, stem) : groupBy(wanted, stem);
  const parts = [[]];
  for (const name of [...byStem.keys()].sort()) {
    if (parts.at(-1).length >= PART) parts.push([]);
    parts.at(-1).push(...byStem.get(name));
  }
  return { parts: parts.filter(part => part.length), photos: wanted.filter(file => !CAPTION.test(file.name)).length, others: files.length - wanted.length };
}

function groupBy(items, key) {
  const groups = new Map();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) ?? []), item]);
  return groups;
}

let active = 0; // uploads under way, for the question when the page is left
addEventListener("beforeunload", event => { if (active) event.preventDefault(); });

/** Upload files and hand each part's paths to `take`. Its progress is a row of `container` meanwhile. */
export async function uploadFiles(files, container, take) {
  const { parts, photos, others } = toParts(files);
  const note = others ? `${countText(others, "file")} ${others === 1 ? "is no photo and was" : "are no photos and were"} left out.` : "";
  if (!parts.length) return [note || "There are no photos in it."];
  const bar = progressBar(`Upload of ${countText(photos, "photo")}`);
  const text = h("span", {}, `Uploading ${countText(photos, "photo")}`);
  const row = h("div", { class: "upload-row", role: "status" }, text, bar.root);
  container.append(row);
  const total = parts.flat().reduce((sum, file) => sum + file.size, 0) || 1, problems = note ? [note] : [];
  let sent = 0;
  active += 1;
  try {
    for (const part of parts) {
      const size = part.reduce((sum, file) => sum + file.size, 0);
      const paths = await api.upload(part, share => bar.set((sent + share * size) / total));
      sent += size;
      bar.set(sent === total ? null : sent / total);
      if (sent >= total) text.textContent = `Examining ${countText(photos, "photo")}`;
      problems.push(...await take(paths));
    }
  } catch (error) {
    showError(error);
  } finally {
    active -= 1;
    row.remove();
  }
  return problems;
}
