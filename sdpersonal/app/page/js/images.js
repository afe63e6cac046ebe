// The images of the gallery as it is filtered now, newest first, and what can be done with any of them by id.

import { api, events } from "./api.js";
import { selection } from "./selection.js";
import { countText, download, showError, toast } from "./ui.js";

const PAGE = 60;
const REFRESH = 500; // images that are asked for again at most when others have changed the gallery
const entries = new Map();
const listeners = new Set();
const removed = new Set(); // ids deleted in this tab: a late event must not bring them back
let order = [], total = 0, next = null, epoch = 0, loading = null;
let recent = []; // ids added since the newest images were asked for: the answer may not have them
const filter = { search: "", favourites: false };

const notify = () => { for (const listener of listeners) listener(); };

function remember(entry) {
  entries.set(entry.id, entry);
  return entry.id;
}

/** Load images from an id on, null for the newest. keepRest: what is shown beyond them stays. */
async function load(from, { limit = PAGE, keepRest = false } = {}) {
  const requested = epoch;
  if (!from) recent = [];
  const params = { search: filter.search, favourites: filter.favourites ? 1 : 0, from, limit };
  const answer = await api.get("/app/gallery", params);
  if (requested !== epoch) return; // the filter has changed meanwhile
  const ids = answer.images.map(remember).filter(id => !removed.has(id)), isRestKept = keepRest && answer.next !== null;
  const late = recent.filter(id => !ids.includes(id) && !removed.has(id));
  if (from) order = [...order, ...ids.filter(id => !order.includes(id))];
  else order = [...late, ...ids, ...(isRestKept ? order.slice(order.indexOf(ids[ids.length - 1]) + 1 || order.length) : [])];
  total = answer.total + (from ? 0 : late.length);
  if (!isRestKept || order.length <= ids.length + late.length) next = answer.next;
  images.loaded = true;
  notify();
}

/** Select another image if the selected one was deleted elsewhere; one beyond the loaded part is asked for. */
async function checkSelected() {
  const { id } = selection;
  if (!id || order.includes(id)) return;
  try {
    await api.get("/app/gallery/image", { id });
  } catch (error) {
    if (error.status === 400 && selection.id === id) selection.offer(order[0] ?? null);
  }
}

export const images = {
  loaded: false,
  filter,
  get order() { return order; },
  get total() { return total; },
  get hasMore() { return next !== null; },
  /** The entry of an id, or null. */
  get: id => entries.get(id) ?? null,
  onChange(listener) { listeners.add(listener); },
  /** Load the newest again, as many as are shown. */
  refresh: () => load(null, { limit: Math.min(REFRESH, Math.max(PAGE, order.length)), keepRest: true }).then(checkSelected).catch(showError),
  /** Load the next page once. */
  more() {
    if (next === null || loading) return loading;
    loading = load(next).catch(showError).finally(() => { loading = null; });
    return loading;
  },
  /** Show other images: filters {search, favourites}. */
  show(filters) {
    Object.assign(filter, filters);
    epoch += 1;
    return load(null).catch(showError);
  },
  /** Add a new image at the top, if the filter shows it. */
  add(entry) {
    if (removed.has(entry.id)) return;
    const known = entries.has(entry.id) && order.includes(entry.id);
    remember(entry);
    if (!known && !filter.favourites && !filter.search) {
      order = [entry.id, ...order];
      recent = [entry.id, ...recent];
      total += 1;
    }
    notify();
  },
  /** The id `step` places away in the order, or null. */
  beside(id, step) {
    const place = order.indexOf(id);
    return place < 0 ? null : order[place + step] ?? null;
  },
};

/** Mark images as favourites or not. */
export async function setFavourite(ids, on) {
  await api.post("/app/gallery/favourite", { ids, on });
  for (const id of ids) if (entries.has(id)) entries.set(id, { ...entries.get(id), favourite: on });
  notify();
}

/** Delete images, with a message that can undo it. The next image is selected where the selected one is deleted. */
export async function deleteImages(ids) {
  const gone = new Set(ids);
  const { undo } = await api.post("/app/gallery/delete", { ids });
  const place = order.indexOf(selection.id);
  for (const id of ids) removed.add(id);
  total -= order.filter(id => gone.has(id)).length;
  const rest = order.filter(id => !gone.has(id));
  if (gone.has(selection.id)) {
    selection.choose(order.slice(place + 1).find(id => !gone.has(id)) ?? rest[rest.length - 1] ?? null);
  }
  order = rest;
  notify();
  const run = async () => {
    await api.post("/app/gallery/restore", { undo });
    for (const id of ids) removed.delete(id);
    await images.refresh();
    if (ids.length === 1) selection.choose(ids[0]);
  };
  toast(`Deleted ${countText(ids.length, "image")}.`, { action: { label: "Undo", run: () => run().catch(showError) } });
}

/** Download one image, with its recipe or with nothing but pixels. */
export function downloadImage(entry, plain) {
  const url = new URL(entry.url, location.href);
  url.searchParams.set("download", "1");
  if (plain) url.searchParams.set("plain", "1");
  download(url.href);
}

/** Download several images as a zip file. */
export async function downloadZip(ids, recipes) {
  const { url } = await api.post("/app/gallery/zip", { ids, recipes });
  download(url);
}

/** "a cat, 12:30": the name of an image for screen readers. */
export const imageName = entry => entry.prompt || "Image without a prompt";

events.on("image", ({ image }) => images.add(image));
events.on("gallery", () => images.refresh());
events.on("connected", () => { if (images.loaded) images.refresh(); });
