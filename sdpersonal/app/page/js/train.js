// The Train tab: the list of trainings beside what is selected: a draft being prepared, or a training.
//
// Addresses: #train, #train/draft/ID, #train/ID.

import { events } from "./api.js";
import { fill, h } from "./dom.js";
import { draftView } from "./draft.js";
import { go } from "./main.js";
import { mountTrainingList } from "./train_list.js";
import { emptyDraft, findDraft, findTraining, followLists, isRunning, isUntouched, loadLists, store } from "./train_data.js";
import { trainingView } from "./training.js";
import { filesOfDrop } from "./uploads.js";
import { dropTarget, showError, toast } from "./ui.js";

let content, list, shown = null; // shown: {kind, id, root, hide?, refresh?}
let path = [];

export function mount(root) {
  content = h("div", { class: "train-content", tabindex: -1 });
  list = mountTrainingList();
  root.append(h("div", { class: "train-columns" }, list.root, content));
  dropTarget(root, (files, event) => takeDrop(event).catch(showError));
  followLists();
  events.on("train-list", onLists);
  events.on("connected", () => {
    if (store.loaded) loadLists().then(() => shown?.kind === "training" && shown.refresh()).catch(showError); // a draft is in the list
  });
  events.on("model-loaded", () => shown?.refresh?.().catch(showError));
  return {
    show(parts) { path = parts; open().catch(showError); },
    hide() { shown?.hide?.(); },
  };
}

/** Show what the address names; without a name what the user most probably wants. */
async function open() {
  if (!store.loaded) {
    fill(content, h("p", { class: "empty", role: "status" }, "Loading the trainings"));
    await loadLists();
  }
  const target = await readTarget();
  if (!target) return;
  list.select(target.id);
  if (shown?.kind === target.kind && shown.id === target.id) return shown.onLists?.(); // it missed what came meanwhile
  const hadFocus = content.contains(document.activeElement);
  close();
  shown = target.kind === "draft" ? draftView(target.id) : trainingView(target.id);
  fill(content, shown.root);
  content.scrollTop = 0;
  if (hadFocus) content.focus();
}

/** Put dropped photos into the draft that is shown; while a training is shown, into the next one. */
async function takeDrop(event) {
  const files = await filesOfDrop(event);
  if (shown?.kind !== "draft") {
    path = ["draft", (await emptyDraft()).id];
    await open();
    replaceAddress("draft", path[1]);
  }
  await shown.add(files);
}

function close() {
  shown?.hide?.();
  shown?.end?.();
  shown = null;
}

async function readTarget() {
  const [first, second] = path;
  if (first && !(first === "draft" ? findDraft(second) : findTraining(first))) await loadLists(); // made a moment ago
  if (first === "draft" && findDraft(second)) return { kind: "draft", id: second };
  if (first && first !== "draft" && findTraining(first)) return { kind: "training", id: first };
  if (first) toast("That training does not exist any more.", { kind: "error" });
  const running = store.trainings.find(isRunning);
  const begun = store.drafts.findLast(draft => !isUntouched(draft));
  if (running) return replaceAddress("training", running.id);
  return replaceAddress("draft", (begun ?? await emptyDraft()).id);
}

function replaceAddress(kind, id) {
  path = kind === "draft" ? ["draft", id] : [id];
  if (document.body.dataset.tab === "train") history.replaceState(null, "", `#${["train", ...path].map(encodeURIComponent).join("/")}`);
  return { kind, id };
}

/** After each change of the lists: what is shown may be gone. */
function onLists() {
  list.update();
  if (!shown || document.body.dataset.tab !== "train") return;
  const exists = shown.kind === "draft" ? findDraft(shown.id) : findTraining(shown.id);
  if (exists) shown.onLists?.();
  else if (!shown.leaving) {
    close();
    go("train");
  }
}
