// The user's own jobs for the device: all tabs and browsers show the same. What was sent and is not yet answered is among
// them as a placeholder, so that a click shows at once.

import { api, events } from "./api.js";
import { images } from "./images.js";
import { selection } from "./selection.js";
import { toast } from "./ui.js";

const ENDED = new Set(["done", "stopped", "failed"]);
const listeners = new Set(), beginnings = new Set(), endings = new Set();
const previews = new Map(); // job id -> data URLs
const started = new Map(); // id of a job of this tab -> `selection.choices` when it was started
const firstImages = new Map(); // job id -> id of its first image
let list = [], placeholders = [], trainings = [], askedTrainings = null, count = 0;

const notify = () => { for (const listener of listeners) listener(); };

/** Whether a job waits or runs. */
export const isActive = job => !ENDED.has(job.state);

const RUNNING = new Set(["starting", "training", "finishing"]);
/** Whether a training has the machine. */
export const isRunning = training => RUNNING.has(training.state);

/** How many images of a job are finished; its `images` are only the newest. */
export const imageCount = job => job.count ?? job.images?.length ?? 0;

function take(fresh) {
  const known = new Map(list.map(job => [job.id, job]));
  for (const job of fresh) {
    const before = known.get(job.id);
    if (!before && isActive(job) && placeholders.length) placeholders.shift();
    if (before && isActive(before) && !isActive(job)) end(job);
  }
  list = fresh;
  notify();
}

function end(job) {
  previews.delete(job.id);
  if (job.images?.some(image => !images.get(image.id))) images.refresh();
  for (const listener of endings) listener(job);
}

/** Select the first image of a job of this tab, once it is known, unless the user has chosen another since. */
function follow(job) {
  const image = firstImages.get(job);
  if (image === undefined || !started.has(job)) return;
  selection.offer(image, started.get(job));
  started.delete(job);
}

export const jobs = {
  /** Placeholders and jobs, those of the server in its order: the running one first. */
  get all() { return [...list.filter(isActive), ...placeholders, ...list.filter(job => !isActive(job))]; },
  get active() { return [...list.filter(isActive), ...placeholders]; },
  get running() { return list.find(job => job.state === "running") ?? null; },
  get waiting() { return [...list.filter(job => job.state === "waiting"), ...placeholders]; },
  /** The user's trainings as the server lists them. */
  get trainings() { return trainings; },
  previews: id => previews.get(id) ?? [],
  onChange(listener) { listeners.add(listener); },
  /** Listen to jobs that this tab has started. */
  onStart(listener) { beginnings.add(listener); },
  /** Listen to jobs that end: listener(job). */
  onEnd(listener) { endings.add(listener); },
  /** Ask the server for both lists, unless an event brings newer ones meanwhile. */
  async refresh() {
    const known = list;
    const [answer] = await Promise.all([api.get("/app/jobs"), jobs.refreshTrainings()]);
    if (list === known) take(answer.jobs);
  },
  /** Ask the server for the trainings, unless an event brings newer ones meanwhile. */
  refreshTrainings() {
    const known = trainings;
    askedTrainings ??= api.get("/app/trainings").then(answer => {
      if (trainings !== known) return;
      trainings = answer.trainings;
      notify();
    }).finally(() => { askedTrainings = null; });
    return askedTrainings;
  },
  /** Start a job. placeholder: {title, expected} shown meanwhile; makeBody: a function that returns the request. */
  async submit(placeholder, makeBody) {
    const since = selection.choices;
    const waiting = { id: `placeholder-${++count}`, state: "waiting", done: 0, total: 0, images: [], isPlaceholder: true, ...placeholder };
    placeholders.push(waiting);
    notify();
    try {
      const job = await api.post("/app/jobs", await makeBody());
      if (job.images?.length && !firstImages.has(job.id)) firstImages.set(job.id, job.images[0].id);
      started.set(job.id, since);
      if (!list.some(other => other.id === job.id)) list = [...list, job];
      follow(job.id);
      for (const listener of beginnings) listener();
      return job;
    } finally {
      placeholders = placeholders.filter(other => other !== waiting);
      notify();
    }
  },
  cancel: id => api.post(`/app/jobs/${encodeURIComponent(id)}/cancel`),
  move: (id, before) => api.post("/app/jobs/move", { id, before }),
  stopAll: () => api.post("/app/jobs/stop"),
};

/** Tell a page that was open meanwhile which of its jobs the next app has taken up, and which it has not. */
function tellOfRestart(before) {
  const lost = before.filter(job => isActive(job) && !list.some(other => other.id === job.id)).length;
  const restored = list.filter(job => isActive(job) && job.restored && before.some(other => other.id === job.id && !other.restored)).length;
  if (restored) toast(`${restored === 1 ? "A job of yours is" : `${restored} jobs of yours are`} taken up again after the app was closed.`);
  if (lost) toast(`The app was closed before ${lost === 1 ? "a job of yours" : `${lost} jobs of yours`} had ended. The prompts are under “Recent prompts”.`, { seconds: 30 });
}

events.on("jobs", data => take(data.jobs));
events.on("preview", data => { previews.set(data.job, data.images); notify(); });
events.on("image", ({ job, image }) => {
  if (!firstImages.has(job)) firstImages.set(job, image.id);
  follow(job);
});
events.on("trainings", data => { trainings = data.trainings; notify(); });
events.on("connected", () => {
  const before = list;
  jobs.refresh().then(() => tellOfRestart(before)).catch(() => {}); // the page says that the app does not answer
});
