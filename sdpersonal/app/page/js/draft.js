// Preparing a training: photos at the left, the form at the right, the plan and the button that starts it below.

import { app, api } from "./api.js";
import { debounce, fill, h } from "./dom.js";
import { draftFields, setContinue, toField, toServer } from "./draft_fields.js";
import { go } from "./main.js";
import { photosSection } from "./photos.js";
import { presetMenu } from "./train_presets.js";
import { draftRequests, findDraft, isRunning, putDraft, startDraft, store } from "./train_data.js";
import { announce, button, showError } from "./ui.js";

const SAVE_AFTER = 350; // milliseconds without a key

/** Show a draft. Returns {kind, id, root, add(files), hide(), end(), onLists(), refresh()}. */
export function draftView(id) {
  const draft = () => findDraft(id);
  const requests = draftRequests(id, () => {});
  const photos = photosSection({ requests, draft });
  const touched = new Set();
  const form = draftFields((name, value, isTyped) => {
    if (view.leaving || !draft()) return; // a field that is removed tells of its change once more
    if (!isTyped) touched.add(name);
    saver.set(name, toServer(name, value));
  });
  const saver = formSaver(requests, () => view.onLists());
  const foot = draftFoot({ start: () => start(), draft });
  const view = { kind: "draft", id, root: layOut(photos, form, foot, saver, draft), leaving: false };

  const start = async () => {
    await saver.flush();
    photos.flush();
    await requests.settled();
    for (const name of Object.keys(form.fields)) touched.add(name);
    view.onLists();
    const [field, problem] = Object.entries(saver.errors)[0] ?? [draft().plan.field, draft().plan.problem];
    if (problem) return showProblem(view.root, form, problem, field);
    view.leaving = true;
    try {
      const run = await startDraft(id);
      announce("The training is in the queue");
      go("train", run);
    } catch (error) {
      view.leaving = false;
      if (error.field && form.fields[error.field]) return showProblem(view.root, form, error.text, error.field);
      throw error;
    }
  };

  view.onLists = () => {
    const now = draft();
    photos.update(now);
    showForm(form, now, saver, touched);
    foot.update(now);
  };
  view.refresh = async () => { putDraft((await api.get("/app/drafts")).drafts.find(other => other.id === id) ?? draft()); };
  view.hide = () => {
    if (view.leaving || !draft()) return;
    saver.flush().catch(showError);
    photos.flush();
  };
  const onLeave = () => view.hide();
  addEventListener("pagehide", onLeave);
  view.end = () => { removeEventListener("pagehide", onLeave); form.end(); };
  view.add = photos.add;
  view.onLists();
  return view;
}

function layOut(photos, form, foot, saver, draft) {
  const { fields } = form;
  fields.token = h("p", { class: "token-note", "aria-live": "polite" });
  const apply = values => { for (const [name, value] of Object.entries(values)) setField(fields, name, value); form.show(values); saver.setAll(values); };
  const column = h("div", { class: "draft-form" },
    h("div", { class: "draft-fields" },
      fields.kind.root, fields.noun.root, h("div", { class: "field" }, fields.name.root, fields.token), fields.consent.root, fields.method.root,
      h("details", {},
        h("summary", {}, "Advanced"),
        h("div", { class: "stack" }, presetMenu({ form: () => ({ ...draft().form, ...saver.pending() }), apply }), form.advanced))),
    foot.root);
  return h("div", { class: "draft" }, h("div", { class: "draft-photos" }, photos.root), column);
}

/** Send the form's changed values together, some time after the last one. A value that the server refuses stays in its
 * field, with the reason in `errors`, and is sent no more. onError(): after a refusal. */
function formSaver(requests, onError) {
  let pending = {};
  const refused = {}, errors = {};
  const send = async () => {
    const values = pending;
    if (!Object.keys(values).length) return;
    pending = {};
    try {
      await requests.send("form", { values }, { keepalive: true });
    } catch (error) {
      const { [error.field]: value, ...rest } = values;
      pending = { ...rest, ...pending };
      if (!(error.field in values)) throw error;
      refused[error.field] = value;
      errors[error.field] = error.text;
      onError();
      await send();
    }
  };
  const later = debounce(() => send().catch(showError), SAVE_AFTER);
  const set = (name, value) => {
    delete refused[name];
    delete errors[name];
    pending[name] = value;
    later();
  };
  return {
    errors, set,
    setAll(values) { for (const [name, value] of Object.entries(values)) set(name, value); },
    pending: () => ({ ...refused, ...pending }),
    waits: name => name in pending || name in refused,
    async flush() { later.cancel(); await send(); },
  };
}

function setField(fields, name, value) {
  const shown = toField(name, value);
  if (!fields[name] || fields[name].value === shown) return;
  if (name === "continue_from") setContinue(fields[name], shown);
  else fields[name].value = shown;
}

/** Show the server's values, but for what is being typed or has yet to be saved. */
function showForm({ fields, show }, now, saver, touched) {
  for (const [name, value] of Object.entries(now.form)) {
    const typing = fields[name]?.input === document.activeElement;
    if (!typing && !saver.waits(name)) setField(fields, name, value);
  }
  show(Object.fromEntries(["kind", "method"].filter(name => !saver.waits(name)).map(name => [name, now.form[name]])));
  const { token, note, problem } = now.name ?? {};
  showToken(fields.token, token, (now.form.name && problem) || note, now.form.owner);
  const { problem: planProblem, field } = now.plan ?? {};
  for (const [name, entry] of Object.entries(fields)) {
    if (name !== "token") entry.error(saver.errors[name] ?? (name === field && touched.has(name) ? planProblem : ""));
  }
}

function showToken(place, token, note, owner) {
  const text = `${token} ${note} ${owner}`;
  if (place.dataset.text === text) return;
  place.dataset.text = text;
  const sentence = note || (token ? "" : "A name of your own makes the word for prompts.");
  const parts = token && !sentence.includes(token) ? ["Write ", h("code", {}, token), " in prompts. ", sentence] : withCode(sentence, token);
  fill(place, parts, owner && owner !== app.state.owner ? h("span", { class: "muted" }, ` The owner is ${owner}.`) : null);
}

function withCode(sentence, token) {
  if (!token || !sentence.includes(token)) return [sentence];
  const [before, after] = [sentence.slice(0, sentence.indexOf(token)), sentence.slice(sentence.indexOf(token) + token.length)];
  return [before, h("code", {}, token), after];
}

function showProblem(root, form, problem, field) {
  const entry = form.fields[field];
  entry?.error?.(problem);
  const target = entry?.input?.matches?.("input, select, textarea") ? entry.input : entry?.input?.querySelector?.("input") ?? root.querySelector(field === "photos" ? ".drop-zone button, .photos button" : "#train-problem");
  target?.closest("details")?.setAttribute("open", "");
  target?.focus();
  announce(problem);
}

/** The plan, what is missing, and the button. */
function draftFoot({ start, draft }) {
  const lines = h("ul", { class: "plan-lines", id: "train-plan", "aria-live": "polite", "aria-label": "Plan", tabindex: 0 });
  const problem = h("p", { class: "plan-problem", id: "train-problem", tabindex: -1 });
  const begin = button("Start training", { kind: "primary", id: "train-start", onclick: start, "aria-describedby": "train-problem" });
  const root = h("div", { class: "draft-foot" }, lines, problem, begin);
  return {
    root,
    update(now) {
      const { lines: texts = [], problem: text = "" } = now.plan ?? {};
      if (lines.dataset.text !== texts.join("\n")) {
        lines.dataset.text = texts.join("\n");
        fill(lines, texts.map(line => h("li", {}, line)));
      }
      problem.textContent = text;
      problem.hidden = !text;
      const busyNow = store.trainings.some(training => isRunning(training) || training.state === "waiting");
      const label = begin.querySelector("span"), words = busyNow ? "Add to the queue" : "Start training";
      if (label.textContent !== words) label.textContent = words;
    },
  };
}
