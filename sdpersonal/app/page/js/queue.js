// The queue at the foot of every tab: what runs, how far it is, what waits; and the list of all of it.

import { fill, h, icon, uniqueId, updateList } from "./dom.js";
import { imageCount, isActive, isRunning, jobs } from "./jobs.js";
import { mountNotices } from "./notices.js";
import { button, countText, progressBar, timeText, toast } from "./ui.js";

const STATES = { waiting: "Waiting", running: "Running", done: "Done", stopped: "Stopped", failed: "Failed" };

/** Put the queue into its place. */
export function mountQueue(root) {
  const parts = bar();
  const list = queueList(parts.opener);
  fill(root, parts.root, list.root);
  const show = () => { parts.show(); list.show(); };
  jobs.onChange(show);
  show();
  mountNotices();
}

function bar() {
  const title = h("span", { class: "queue-title" }), waiting = h("span", { class: "muted small-text queue-waiting" }), left = h("span", { class: "muted small-text queue-left" });
  const progress = progressBar("Progress of what runs");
  const opener = h("button", { type: "button", class: "button quiet queue-opener", "aria-haspopup": "dialog", "aria-expanded": "false" }, icon("up"), h("strong", {}, "Queue"));
  const skip = button("Skip", { small: true, title: "End what runs; its finished images stay", onclick: () => jobs.running && jobs.cancel(jobs.running.id) });
  const stop = button("Stop all", { small: true, title: "End what runs and remove what waits", onclick: stopAll });
  const training = h("a", { class: "queue-training small-text", hidden: true });
  const root = h("div", { class: "queue-row" }, opener, title, progress.root, left, waiting, training, skip, stop);
  return {
    root, opener,
    show() {
      const job = jobs.active[0] ?? null, count = jobs.active.length - (job ? 1 : 0);
      const trained = job ? null : runningTraining(), steps = trained?.state === "training" ? trained.steps : 0;
      root.classList.toggle("idle", !job && !trained);
      title.textContent = job ? (job.title || "Generating") : trained ? `Training ${trained.token}` : "Nothing runs";
      title.title = title.textContent;
      progress.root.hidden = !job && !trained;
      progress.set(job ? (job.total ? job.done / job.total : null) : steps ? trained.step / steps : null);
      left.textContent = job ? leftText(job) : steps && trained.left ? `${timeText(trained.left)} left` : trained?.state === "finishing" ? "finishing" : "";
      waiting.textContent = count > 0 ? `${count} waiting` : "";
      skip.hidden = !jobs.running;
      stop.hidden = !job;
      showTraining(training);
    },
  };
}

function leftText(job) {
  if (job.state !== "running") return job.ahead ? `waits for ${countText(job.ahead, "job")} of others` : "starting";
  return job.left === null || job.left === undefined ? "" : `${timeText(job.left)} left`;
}

const runningTraining = () => jobs.trainings.find(isRunning);

function showTraining(link) {
  const training = runningTraining();
  link.hidden = !training;
  if (!training) return;
  link.href = `#train/${encodeURIComponent(training.id)}`;
  const share = training.steps ? `${Math.floor((100 * training.step) / training.steps)} %` : "";
  if (jobs.active.length) fill(link, "Training ", h("strong", {}, training.token), ` ${share}`);
  else fill(link, "Watch it");
}

async function stopAll() {
  await jobs.stopAll();
  toast("Stopped. What was finished is in the gallery.");
}

/** Make the list that opens over the bar. */
function queueList(opener) {
  const id = uniqueId("queue");
  const rows = h("ul", {}), trainings = h("ul", {});
  const trainingHead = h("h3", {}, "Trainings"), none = h("p", { class: "muted" }, "Nothing waits and nothing has ended yet.");
  const root = h("div", { class: "queue-popover", popover: "auto", id, role: "dialog", "aria-label": "Queue", tabindex: -1 },
    h("div", { class: "row spread" }, h("h2", {}, "Queue"), button("Close the queue", { iconName: "close", iconOnly: true, kind: "quiet", small: true, onclick: () => { root.hidePopover(); opener.focus(); } })),
    none, rows, trainingHead, trainings);
  opener.setAttribute("aria-controls", id);
  opener.popoverTargetElement = root; // a click handler would open again what the same click has closed
  const show = () => {
    if (!root.matches(":popover-open")) return;
    const active = jobs.trainings.filter(training => isRunning(training) || training.state === "waiting");
    none.hidden = jobs.all.length > 0;
    trainingHead.hidden = trainings.hidden = !active.length;
    updateList(rows, jobs.all, job => job.id, makeRow, updateRow);
    updateList(trainings, active, training => training.id, makeTraining, updateTraining);
  };
  root.addEventListener("toggle", event => {
    opener.setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState === "open") { show(); root.focus(); }
  });
  return { root, show };
}

function makeRow(job) {
  const move = direction => moveJob(job.id, direction);
  const row = h("li", { class: "queue-item" },
    h("div", { class: "grow" }, h("div", { class: "queue-item-title" }), h("div", { class: "muted small-text" })),
    button("Earlier", { iconName: "up", iconOnly: true, small: true, kind: "quiet", onclick: () => move(-1) }),
    button("Later", { iconName: "down", iconOnly: true, small: true, kind: "quiet", onclick: () => move(1) }),
    button("Cancel", { iconName: "close", iconOnly: true, small: true, kind: "quiet", onclick: () => jobs.cancel(job.id) }));
  updateRow(row, job);
  return row;
}

function updateRow(row, job) {
  const [texts, up, down, cancel] = row.children, [title, state] = texts.children;
  const waits = job.state === "waiting" && !job.isPlaceholder;
  const others = jobs.waiting.filter(other => !other.isPlaceholder), place = others.findIndex(other => other.id === job.id);
  title.textContent = job.title || "Generating";
  const detail = isActive(job) || !job.message ? progressText(job) || (job.restored ? "taken up again after the app was closed" : "") : job.message;
  state.textContent = detail.startsWith(STATES[job.state]) ? detail : [STATES[job.state], detail].filter(Boolean).join(" · ");
  state.classList.toggle("error-text", job.state === "failed");
  up.hidden = !waits || place < 1;
  down.hidden = !waits || place > others.length - 2;
  cancel.hidden = !isActive(job) || Boolean(job.isPlaceholder);
  for (const [element, verb] of [[up, "Earlier"], [down, "Later"], [cancel, "Cancel"]]) element.setAttribute("aria-label", `${verb}: ${title.textContent}`);
}

function progressText(job) {
  if (job.state === "running" && job.total) return `step ${job.done} of ${job.total}`;
  return imageCount(job) ? countText(imageCount(job), "image") : "";
}

async function moveJob(id, direction) {
  const order = jobs.waiting.filter(job => !job.isPlaceholder).map(job => job.id), place = order.indexOf(id);
  const before = direction < 0 ? order[place - 1] : order[place + 2] ?? null;
  await jobs.move(id, before);
}

function makeTraining(training) {
  const item = h("li", { class: "queue-item" }, h("a", { class: "grow" }));
  updateTraining(item, training);
  return item;
}

function updateTraining(item, training) {
  const link = item.firstElementChild;
  link.href = `#train/${encodeURIComponent(training.id)}`;
  const text = training.state === "waiting" ? "waits" : training.steps ? `step ${training.step} of ${training.steps}${training.left ? `, ${timeText(training.left)} left` : ""}` : "getting ready";
  fill(link, h("strong", {}, training.token), h("span", { class: "muted small-text" }, ` ${text}`));
}

