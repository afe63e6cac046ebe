// One training: its progress, samples, loss, and what can be done with it.

import { api, events, usePrompt } from "./api.js";
import { lossCurve } from "./curve.js";
import { fill, h, updateList } from "./dom.js";
import { go } from "./main.js";
import { timeline } from "./timeline.js";
import { stateText } from "./train_list.js";
import { command, draftFrom, findTraining, isRunning, plainToken, putDraft, startDraft } from "./train_data.js";
import { trainingSide } from "./training_side.js";
import { announce, button, confirmDialog, countText, dateText, menuButton, progressBar, showError, timeText, toast } from "./ui.js";

const METHODS = { lora: "DreamBooth LoRA", pivotal: "Pivotal tuning", "textual-inversion": "Textual inversion", full: "Full fine-tuning" };
const FIELD_NAMES = { lr: "learning rate", steps: "max steps", rank: "rank", resolution: "resolution", method: "method", seed: "seed" };

/** Show a training. Returns {kind, id, root, end(), onLists(), refresh()}. */
export function trainingView(id) {
  const state = { details: findTraining(id), announced: null, loading: null };
  const actions = trainingActions(id, () => state.details);
  const parts = {
    head: trainingHead(), progress: progress(), advice: adviceBox(() => state.details),
    samples: timeline({ keep: actions.keep, details: () => state.details }), curve: lossCurve(),
    side: trainingSide({ id, details: () => state.details, generate: actions.generate }),
  };
  const root = h("div", { class: "training" },
    h("div", { class: "training-main" }, parts.head.root, parts.progress.root, parts.advice.root, parts.samples.root, parts.curve.root),
    parts.side.root);
  const show = () => {
    const now = state.details;
    parts.head.update(now, actions);
    parts.progress.update(now);
    parts.advice.update(now);
    parts.samples.update(now);
    const shown = (now.timeline ?? []).map(entry => entry.step), best = now.timeline?.find(entry => entry.best)?.step;
    parts.curve.update({ curve: now.curve, steps: now.steps, samples: shown, best });
    parts.side.update(now);
    if (state.announced && state.announced !== now.state) announce(`${plainToken(now)}: ${stateText(now)}`);
    state.announced = now.state;
  };
  const load = async () => {
    state.isStale = Boolean(state.loading); // the answer under way may be older than what is asked for now
    if (state.loading) return state.loading;
    state.loading = api.get(`/app/trainings/${encodeURIComponent(id)}`).finally(() => { state.loading = null; });
    state.details = await state.loading;
    show();
    return state.isStale ? load() : undefined;
  };
  const stop = events.on("training", data => { if (data.id === id) load().catch(showError); });
  const onLists = () => {
    const summary = findTraining(id), before = state.details;
    state.details = { ...before, ...summary };
    if (before.state !== summary.state || curveIsOld(before, summary)) load().catch(showError);
    else show();
  };
  show();
  load().catch(showError);
  return { kind: "training", id, root, end: stop, onLists, refresh: load };
}

const CURVE_SHARE = 0.02; // of all steps, after which the curve is asked for again
function curveIsOld(before, summary) {
  const last = before.curve?.points?.at(-1)?.[0] ?? 0;
  return summary.state === "training" && summary.step - last >= Math.max(1, CURVE_SHARE * (summary.steps || 100));
}

function trainingHead() {
  const title = h("h2", { id: "run-title" }), about = h("p", { class: "muted" });
  const chip = h("span", { class: "state-chip", id: "run-state" }), buttons = h("div", { class: "row training-buttons" });
  let inMenu = [];
  const more = menuButton("More about this training", () => inMenu);
  return {
    root: h("div", { class: "training-head" }, h("div", { class: "row training-title" }, title, chip, about), h("div", { class: "row nowrap training-actions" }, buttons, more)),
    update(now, actions) {
      title.textContent = plainToken(now);
      chip.textContent = stateText(now);
      chip.dataset.state = now.state;
      about.textContent = [METHODS[now.method], now.photo_count ? countText(now.photo_count, "photo") : "", now.created ? dateText(now.created) : ""].filter(Boolean).join(", ");
      const usable = actions.buttons(now);
      inMenu = usable.filter(action => action.inMenu);
      more.hidden = !inMenu.length;
      updateList(buttons, usable.filter(action => !action.inMenu), action => `${action.name} ${action.kind}`, makeAction);
    },
  };
}

const makeAction = ({ name, label, kind, iconName, run }) => button(label, { kind, iconName, id: `run-${name}`, onclick: run });

/** The buttons of a training, and what they do. */
function trainingActions(id, details) {
  const send = name => async () => {
    const answer = await command(id, name);
    if (answer?.message) toast(answer.message);
    else if (name === "sample") toast("Samples come after this step.");
  };
  const ask = (name, question) => async () => { if (await confirmDialog({ danger: true, ...question })) await send(name)(); };
  const all = {
    generate: { label: "Generate with it", kind: "primary", iconName: "image", run: () => generate(details().try_prompts?.[0] ?? `a photo of ${plainToken(details())}`) },
    resume: { label: "Resume", kind: "primary", iconName: "play", run: send("resume") },
    sample: { label: "Sample now", run: send("sample") },
    keep: { label: "Keep the best and stop", run: send("keep") },
    pause: { label: "Pause and go on later", iconName: "stop", inMenu: true, run: send("pause") },
    variant: { label: "Train a variant", iconName: "copy", run: () => prepare(null) },
    continue: { label: "Continue this concept", iconName: "play", inMenu: true, run: () => prepare({ continue_from: plainToken(details()) }) },
    cancel: { label: "Cancel", kind: "danger", run: ask("cancel", { title: "Cancel this training?", text: "Nothing is added to the library; its work and its copies of the photos are deleted.", yes: "Cancel the training", no: "Go on training" }) },
    discard: { label: "Discard", kind: "danger", iconName: "trash", run: ask("discard", { title: "Discard this training?", text: "Its folder with the samples, the checkpoints and its copies of the photos is deleted. What is in the library stays.", yes: "Discard it" }) },
    dismiss: { label: "Remove from the list", iconName: "close", inMenu: true, run: send("dismiss") },
  };
  const prepare = async change => {
    const draft = await draftFrom(details(), change);
    go("train", "draft", draft.id);
    if (!draft.photos.length) toast("The settings are here. The copies of the photos were deleted with the end of that training: add them again.");
  };
  const generate = prompt => { usePrompt(prompt, true); go("generate"); };
  const keep = async step => {
    const answer = await api.post(`/app/trainings/${encodeURIComponent(id)}/keep`, { step });
    toast(answer?.message || `The concept is made from step ${step}.`, { kind: "good" });
  };
  const buttons = now => {
    const names = [...(now.commands ?? [])];
    if (now.state === "done") names.unshift("generate", "variant", "continue");
    else if (["stopped", "failed"].includes(now.state)) names.push("variant");
    const order = Object.keys(all);
    const usable = order.filter(name => names.includes(name));
    const adviseFirst = now.state === "failed" && (now.advice ?? []).some(hasChange); // then the advice has the primary button
    const inMenu = name => all[name].inMenu || (name === "discard" && now.state === "done");
    return usable.map(name => ({ name, ...all[name], inMenu: inMenu(name), danger: all[name].kind === "danger", label: name === "discard" && now.state === "done" ? "Delete this training" : all[name].label, kind: name === "resume" && adviseFirst ? "" : all[name].kind ?? "" }));
  };
  return { buttons, keep, generate };
}

const hasChange = advice => Object.keys(advice.change ?? {}).length > 0;

/** Say what a change does, for a button: "Set the rank to 4 and start again". */
function changeText(change) {
  const words = Object.entries(change).map(([name, value]) => `${name === "lr" ? "Lower" : "Set"} the ${FIELD_NAMES[name] ?? name} to ${METHODS[value] ?? (value || "automatic")}`);
  return `${words.join(", ")} and start again`;
}

function progress() {
  const bar = progressBar("Progress of the training"), text = h("p", { class: "training-text", id: "run-text" });
  const left = h("span", { class: "training-left" });
  const steps = h("ol", { class: "ready-steps", hidden: true });
  const row = h("div", { class: "training-bar" }, bar.root, left);
  return {
    root: h("div", { class: "training-progress" }, row, text, steps),
    update(now) {
      row.hidden = !isRunning(now);
      bar.set(now.state === "training" && now.steps ? now.step / now.steps : null);
      left.textContent = now.state === "training" ? [`${Math.round((100 * now.step) / (now.steps || 1))} %`, now.left ? `${timeText(now.left)} left` : ""].filter(Boolean).join(", ") : "";
      const words = (now.text ?? now.message ?? "").replaceAll(now.token, plainToken(now));
      if (text.textContent !== words) text.textContent = words;
      text.classList.toggle("notice", !isRunning(now) && now.state !== "done" && now.state !== "waiting");
      text.classList.toggle("error", now.state === "failed" || now.state === "damaged");
      const ready = now.state === "starting" ? now.ready ?? [] : [];
      steps.hidden = !ready.length;
      fill(steps, ready.map(step => h("li", { dataset: { state: step.state } }, step.text)));
    },
  };
}

/** After a failure: what to change, and buttons that do exactly that. */
function adviceBox(details) {
  const root = h("ul", { class: "advice", id: "run-advice", "aria-label": "What to change" });
  const apply = async change => {
    const draft = await draftFrom(details(), change);
    if (!draft.plan?.problem) return go("train", await startDraft(draft.id));
    putDraft(draft);
    go("train", "draft", draft.id);
    toast(`The change is in the form. ${draft.plan.problem}`);
    return undefined;
  };
  return {
    root,
    update(now) {
      const items = now.advice ?? [];
      root.hidden = !items.length;
      const first = items.findIndex(hasChange);
      updateList(root, items, item => item.text, item => h("li", { class: "row spread" }, h("span", { class: "grow" }, item.text),
        hasChange(item) && button(changeText(item.change), { kind: items.indexOf(item) === first ? "primary" : "", onclick: () => apply(item.change) })));
    },
  };
}
