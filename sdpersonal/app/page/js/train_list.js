// The list of drafts and trainings at the left: what is prepared, what runs and waits, what has ended.

import { h, icon, updateList } from "./dom.js";
import { go } from "./main.js";
import { command, deleteDraft, emptyDraft, isRunning, isUntouched, moveTraining, plainToken, store, waitingTrainings } from "./train_data.js";
import { busy, button, confirmDialog, countText, dateText, timeText } from "./ui.js";

const STATES = {
  waiting: "Waiting", starting: "Getting ready", training: "Training", finishing: "Finishing", done: "Done",
  stopped: "Stopped", failed: "Failed", damaged: "Damaged",
};

export const stateText = training => STATES[training.state] ?? training.state;

/** Make the list. Returns {root, update(), select(id)}. */
export function mountTrainingList() {
  const state = { selected: null };
  const groups = [
    group("Being prepared", "drafts", draftItem, fillDraft, () => shownDrafts(state.selected)),
    group("Queue", "queue", trainingItem, fillTraining, () => [...store.trainings.filter(isRunning), ...waitingTrainings()]),
    group("Ended", "ended", trainingItem, fillTraining, () => store.trainings.filter(item => !isRunning(item) && item.state !== "waiting")),
  ];
  const prepare = button("Prepare another", { iconName: "plus", onclick: async () => {
    go("train", "draft", (await emptyDraft()).id);
    requestAnimationFrame(() => document.getElementById("main").focus());
  } });
  const root = h("nav", { class: "train-list side", "aria-label": "Trainings" },
    h("div", { class: "train-list-head" }, h("h2", {}, "Trainings"), prepare), groups.map(part => part.root));
  const mark = () => {
    for (const link of root.querySelectorAll(".train-item > a")) {
      const on = link.parentElement.dataset.key === state.selected;
      if (on) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  return {
    root,
    update() {
      for (const part of groups) part.update();
      prepare.hidden = !store.trainings.length && store.drafts.every(isUntouched);
      mark();
    },
    select(id) { state.selected = id; this.update(); root.querySelector("a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }); },
  };
}

/** The drafts with something in them, and one empty one at most. */
function shownDrafts(selected) {
  const empty = store.drafts.filter(isUntouched), shown = empty.find(draft => draft.id === selected) ?? empty[0];
  return store.drafts.filter(draft => draft === shown || !isUntouched(draft));
}

function group(title, name, make, refresh, items) {
  const list = h("ul", { class: "train-items", dataset: { group: name } });
  const root = h("section", { class: "train-group", "aria-label": title, hidden: true }, h("h3", {}, title), list);
  return {
    root,
    update() {
      const now = items();
      root.hidden = !now.length;
      updateList(list, now, item => item.id, make, refresh);
    },
  };
}

/** The parts that all items have. address: of the item's view; "./" since axe takes links to "#…" that have scrolled out of
 * a phone's strip for skip links. */
function itemParts(address) {
  const thumb = h("img", { class: "train-thumb", alt: "", hidden: true, loading: "lazy" });
  const blank = h("span", { class: "train-thumb blank", "aria-hidden": "true" }, icon("image"));
  const title = h("strong", { class: "train-item-title" }), detail = h("span", { class: "train-item-detail" });
  const bar = h("progress", { class: "progress", max: 1, hidden: true, "aria-hidden": "true" });
  const link = h("a", { href: `./${address}` }, thumb, blank, h("span", { class: "train-item-text" }, title, detail, bar));
  const actions = h("span", { class: "train-item-actions" });
  const element = h("li", { class: "train-item" }, link, actions);
  element.parts = { thumb, blank, title, detail, bar, actions };
  return element;
}

function showThumb({ thumb, blank }, url) {
  if (url && thumb.getAttribute("src") !== url) thumb.src = url;
  thumb.hidden = !url;
  blank.hidden = Boolean(url);
}

function draftItem(draft) {
  const element = itemParts(`#train/draft/${draft.id}`);
  element.parts.actions.append(button("Delete this draft", { iconName: "trash", iconOnly: true, kind: "quiet", small: true, onclick: async () => {
    const now = store.drafts.find(other => other.id === draft.id);
    if (now && !(await confirmDialog({
      title: "Delete this draft?", text: `The copies of its ${countText(now.photos.length, "photo")} and their captions are deleted too. Your own files stay.`,
      yes: "Delete the draft", danger: true,
    }))) return;
    await deleteDraft(draft.id);
  } }));
  fillDraft(element, draft);
  return element;
}

function fillDraft(element, draft) {
  const { parts } = element;
  parts.actions.hidden = isUntouched(draft);
  showThumb(parts, draft.photos.find(photo => photo.used)?.thumb);
  parts.title.textContent = draft.name?.token || (draft.form.noun ? `A ${draft.form.noun}` : "New concept");
  parts.detail.textContent = draft.photos.length ? countText(draft.photos.length, "photo") : "No photos yet";
}

function trainingItem(training) {
  const element = itemParts(`#train/${training.id}`);
  fillTraining(element, training);
  return element;
}

function fillTraining(element, training) {
  const { parts } = element;
  showThumb(parts, training.thumb);
  parts.title.textContent = plainToken(training);
  parts.detail.textContent = detailText(training);
  element.dataset.state = training.state;
  parts.bar.hidden = !isRunning(training);
  if (training.state === "training" && training.steps) parts.bar.value = training.step / training.steps;
  else parts.bar.removeAttribute("value");
  const waits = training.state === "waiting";
  if (waits && !parts.actions.childElementCount) parts.actions.append(...waitingButtons(training.id, training.token));
  if (!waits) parts.actions.replaceChildren();
  if (waits) disableEnds(parts.actions, training.id);
}

function detailText(training) {
  if (training.state === "training") {
    const left = training.left === null || training.left === undefined ? "" : `, ${timeText(training.left)} left`;
    return `Step ${training.step} of ${training.steps}${left}`;
  }
  if (training.state === "waiting") return "Waiting";
  const when = training.created ? `, ${dateText(training.created)}` : "";
  return isRunning(training) ? stateText(training) : `${stateText(training)}${when}`;
}

function waitingButtons(id, token) {
  const move = shift => async () => {
    const order = waitingTrainings().map(training => training.id), index = order.indexOf(id);
    if (index + shift < 0 || index + shift >= order.length) return;
    const others = order.filter(other => other !== id);
    await moveTraining(id, others[index + shift] ?? null);
  };
  return [
    button(`Move ${token} up`, { iconName: "up", iconOnly: true, kind: "quiet", small: true, "data-move": "up", onclick: move(-1) }),
    button(`Move ${token} down`, { iconName: "down", iconOnly: true, kind: "quiet", small: true, "data-move": "down", onclick: move(1) }),
    button(`Remove ${token} from the queue`, { iconName: "close", iconOnly: true, kind: "quiet", small: true, busyWhile: false, onclick: event => busy(event.currentTarget, () => removeWaiting(id, token)) }),
  ];
}

async function removeWaiting(id, token) {
  const sure = await confirmDialog({
    title: `Remove ${token} from the queue?`, text: "Its copies of the photos and its settings are deleted.", yes: "Remove it", danger: true,
  });
  if (sure) await command(id, "cancel");
}

/** aria-disabled rather than disabled: focus stays on a button that reaches the end. */
function disableEnds(actions, id) {
  const order = waitingTrainings(), index = order.findIndex(training => training.id === id);
  const set = (name, off) => actions.querySelector(`[data-move=${name}]`)?.setAttribute("aria-disabled", String(off));
  set("up", index <= 0);
  set("down", index === order.length - 1);
}
