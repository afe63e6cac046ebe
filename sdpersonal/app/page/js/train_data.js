// The user's drafts and trainings as the server has them, and the requests that change them.

import { api, emit, events } from "./api.js";
import { unversioned } from "./concepts.js";
import { jobs } from "./jobs.js";
import { showError } from "./ui.js";

export { isRunning } from "./jobs.js";

/** drafts: oldest first; trainings: those of `jobs`. loaded: whether the server has been asked. */
export const store = { drafts: [], get trainings() { return jobs.trainings; }, loaded: false };

const changed = () => emit("train-list", {});

/** Ask for both lists. */
export async function loadLists() {
  await Promise.all([loadDrafts(), jobs.refreshTrainings()]);
  store.loaded = true;
  changed();
}

/** Ask for the drafts, and again where one of them changes meanwhile: the answer may be older than the change. */
function loadDrafts() {
  const ask = async () => {
    let before, answer;
    do {
      before = changes;
      answer = await api.get("/app/drafts");
    } while (before !== changes);
    store.drafts = answer.drafts;
    changed();
  };
  asking ??= ask().finally(() => { asking = null; });
  return asking;
}
let asking = null; // the request that is under way
let changes = 0; // of drafts, since the page was opened

/** Listen to the server; call once. */
export function followLists() {
  events.on("trainings", changed); // `jobs` has taken them
  events.on("draft", data => { if (data.draft) putDraft(data.draft); });
  events.on("drafts", () => {
    changes += 1;
    loadDrafts().catch(showError);
  });
}

/** Put a draft into the list: a new one at its end. */
export function putDraft(draft) {
  changes += 1;
  const index = store.drafts.findIndex(other => other.id === draft.id);
  if (index < 0) store.drafts = [...store.drafts, draft];
  else store.drafts = store.drafts.with(index, draft);
  changed();
  return draft;
}

export const findDraft = id => store.drafts.find(draft => draft.id === id);
export const findTraining = id => store.trainings.find(training => training.id === id);

/** A training's token as it is written in prompts: without the version, which is the newest there. */
export const plainToken = training => unversioned(training.token);

/** Whether nobody has put anything into a draft yet. */
export const isUntouched = draft => !draft.photos.length && !draft.form.name && !draft.form.noun;

/** Return a draft with nothing in it, made if there is none. */
export async function emptyDraft() {
  const draft = store.drafts.find(isUntouched);
  newDraft ??= draft ? null : api.post("/app/drafts").then(putDraft).finally(() => { newDraft = null; });
  return draft ?? newDraft;
}
let newDraft = null; // the request that makes one

/** Make a draft with a training's settings, and its photos where they still exist. change: values that differ. */
export async function draftFrom(training, change = null) {
  const draft = putDraft(await api.post("/app/drafts", { from_run: training.id }));
  return change ? putDraft(await api.post(`/app/drafts/${draft.id}/form`, { values: change })) : draft;
}

export async function deleteDraft(id) {
  await api.post(`/app/drafts/${id}/delete`);
  removeDraft(id);
}

function removeDraft(id) {
  changes += 1;
  store.drafts = store.drafts.filter(draft => draft.id !== id);
  changed();
}

/** Start a draft's training; returns the training's id. */
export async function startDraft(id) {
  const { run } = await api.post(`/app/drafts/${id}/start`);
  removeDraft(id);
  await jobs.refreshTrainings();
  changed();
  return run;
}

/** Send a command to a training. */
export const command = (id, name) => api.post(`/app/trainings/${id}/command`, { command: name });

/** Move a waiting training before another one, or to the end. */
export const moveTraining = (id, before) => api.post("/app/trainings/move", { id, before });

/** The waiting trainings in the order in which they start. */
export const waitingTrainings = () => store.trainings.filter(training => training.state === "waiting");

/** One draft's requests, one after the other, so that answers come in order. onDraft(draft): for each answer. */
export function draftRequests(id, onDraft) {
  let last = Promise.resolve();
  const send = (action, body, options) => {
    const request = last.then(() => api.post(`/app/drafts/${id}/${action}`, body, options));
    last = request.catch(() => {});
    return request.then(draft => { putDraft(draft); onDraft(draft); return draft; });
  };
  return { send, settled: () => last };
}
