// Cells of the gallery for images that are expected: with a preview and its steps, or empty while they wait.

import { h } from "./dom.js";
import { imageCount, jobs } from "./jobs.js";
import { countText } from "./ui.js";

const MAX_CELLS = 16; // of a running job; the bar at the foot tells the rest

/** The cells to show now: [{key, job, number}]. A job that waits behind another has one cell. */
export function underWay() {
  const items = [];
  for (const [place, job] of jobs.active.entries()) {
    const missing = job.expected === null || job.expected === undefined ? 1 : job.expected - imageCount(job);
    const cells = place > 0 ? Math.min(1, missing) : Math.min(MAX_CELLS, Math.max(jobs.previews(job.id).length, missing));
    for (let number = 0; number < cells; number += 1) items.push({ key: `job ${job.id} ${number}`, job, number, isBehind: place > 0 });
  }
  return items;
}

export function makeJobCell(item) {
  const cell = h("div", { class: "cell job-cell", role: "img" }, h("div", { class: "skeleton" }), h("img", { alt: "", hidden: true }), h("span", { class: "cell-note" }));
  updateJobCell(cell, item);
  return cell;
}

export function updateJobCell(cell, { job, number, isBehind }) {
  const [, picture, note] = cell.children;
  const preview = isBehind ? null : jobs.previews(job.id)[number];
  picture.hidden = !preview;
  if (preview && picture.src !== preview) picture.src = preview;
  note.textContent = noteText(job, number, isBehind, preview);
  note.hidden = !note.textContent;
  cell.setAttribute("aria-label", `Image under way: ${note.textContent || "waiting"}`);
}

function noteText(job, number, isBehind, preview) {
  if (isBehind) return job.expected ? `${countText(job.expected, "image")} next` : "Endless images next";
  if (job.state !== "running") return number ? "" : job.ahead ? `Waits for ${countText(job.ahead, "job")} of others` : "Starting";
  if (!job.total) return number ? "" : "Starting";
  return preview || number === 0 ? `${job.done}/${job.total}` : "";
}
