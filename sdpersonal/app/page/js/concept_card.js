// The card of one concept: what it is, prompts to try, and all that can be done with it.

import { api, app, usePrompt } from "./api.js";
import { deleteConcept, editDialog, exportDialog, renameDialog } from "./concept_dialogs.js";
import { concepts, unversioned } from "./concepts.js";
import { fill, h } from "./dom.js";
import { select } from "./fields.js";
import { go } from "./main.js";
import { button, copyText, factList, menuButton, showError } from "./ui.js";

/** Make the card. back(): on a phone, to the list; changed(): after something was changed; open(token): show another. */
export function conceptCard({ back, changed, open }) {
  const body = h("div", { class: "concept-card-body" });
  const root = h("section", { class: "concept-card", "aria-label": "Selected concept" },
    h("div", { class: "concept-card-back" }, button("All concepts", { iconName: "left", kind: "quiet", onclick: back, busyWhile: false })), body);
  let token = null, last = "", request = 0;

  async function refresh() {
    if (!token) return;
    const number = ++request;
    try { await load(number); } finally { if (number === request) body.inert = false; }
  }

  async function load(number) {
    let details;
    try {
      details = await api.get("/app/concept", { token });
    } catch (error) {
      if (number !== request) return;
      if (unversioned(token) !== token) { // that version is gone: the newest one
        token = unversioned(token);
        return refresh();
      }
      last = "";
      fill(body, h("p", { class: "empty" }, error.text ?? String(error)));
      return;
    }
    if (number !== request) return;
    const text = JSON.stringify([details, app.state.model]);
    if (text === last) return; // unchanged: keep the scroll position and what is open
    last = text;
    const focused = body.contains(document.activeElement) ? nameOf(document.activeElement) : null;
    fill(body, layOut(details, { changed, open, showVersion }));
    if (focused) [...body.querySelectorAll("button, select, summary")].find(element => nameOf(element) === focused)?.focus();
  }

  function showVersion(version) { token = version; return refresh(); }

  return {
    root,
    refresh,
    /** Show a concept; null shows none. */
    async show(next) {
      if (next === token && last) return refresh();
      token = next;
      last = "";
      root.scrollTop = 0;
      body.inert = false;
      if (!next) return void fill(body, h("p", { class: "empty" }, "Select a concept to see its card."));
      body.inert = true; // what is still shown is another concept: nothing may act on it
      if (!body.childElementCount) fill(body, h("div", { class: "skeleton concept-card-image" }));
      return refresh();
    },
  };
}

const nameOf = element => element.getAttribute("aria-label") ?? `${element.tagName} ${element.tagName === "SELECT" ? "" : element.innerText}`;

function layOut(details, actions) {
  return [
    h("div", {}, details.image && h("img", { class: "concept-card-image", src: details.image, alt: `Image of ${details.name.slice(1, -1)}`, width: 512, height: 512 })),
    h("h2", {}, details.title || details.name.slice(1, -1)),
    h("div", { class: "row nowrap concept-token" }, h("code", {}, details.name),
      button("Copy the token", { iconName: "copy", iconOnly: true, kind: "quiet", small: true, onclick: () => copyText(details.name, "Token copied") })),
    details.versions.length > 1 && versionChoice(details, actions),
    details.damaged ? damagedPart(details, actions) : wholePart(details, actions),
  ];
}

function versionChoice(details, { showVersion }) {
  const newest = details.versions.at(-1);
  const choices = details.versions.map(({ token, version }) => ({ value: token, label: `Version ${version}${token === newest.token ? " (newest)" : ""}` })).reverse();
  return select({ label: "Version", choices, value: details.token, onChange: token => showVersion(token).catch(showError) }).root;
}

function damagedPart(details, { changed, open }) {
  return [
    h("p", { class: "notice error" }, `This file is damaged: ${details.damaged}`),
    h("p", { class: "small-text" }, "Restore the file from a backup, import it again from where it came, or delete it."),
    h("div", { class: "row" }, button("Delete", { kind: "danger", iconName: "trash", onclick: () => deleteConcept(details, { changed, open }) })),
  ];
}

function wholePart(details, actions) {
  return [
    details.description && h("p", {}, details.description),
    !details.fits && unfitNotice(details),
    h("div", { class: "concept-actions" },
      button("Use in Generate", { kind: "primary", onclick: () => use(details.prompts[0], false) }),
      button("Export", { iconName: "download", onclick: () => exportDialog(details) }),
      trainMenu(details),
      button("Edit", { iconName: "edit", onclick: () => editDialog(details, actions.changed) }),
      button("Rename", { onclick: () => renameDialog(details, actions) }),
      button("Delete", { kind: "danger", iconName: "trash", onclick: () => deleteConcept(details, actions) })),
    promptsToTry(details),
    verdictPart(details),
    factList(details.facts),
    details.settings.length > 0 && h("details", {}, h("summary", {}, "How it was trained"), factList(details.settings)),
    h("details", {}, h("summary", {}, "For reproducing"), factList(details.reproducing, "long")),
  ];
}

function unfitNotice(details) {
  return h("p", { class: "notice warn" }, `It is made for ${details.model}, and the loaded model, ${app.state.model.name}, is of another kind. `,
    h("a", { href: "#models" }, "Choose another model"), " to use it.");
}

function promptsToTry(details) {
  return h("div", { class: "stack concept-prompts" }, h("h3", {}, "Prompts to try"),
    details.prompts.map(prompt => button(prompt, {
      iconName: "play", class: "button concept-prompt", "aria-label": `Try it: ${prompt}`, title: details.fits ? "Try it: generates at once" : null,
      disabled: !details.fits, onclick: () => use(prompt, true),
    })));
}

function verdictPart(details) {
  if (!details.verdict.length && !details.scores.length) return null;
  return h("div", { class: "stack concept-verdict" }, h("h3", {}, "How good it is"), details.verdict.map(text => h("p", {}, text)),
    details.scores.length > 0 && h("details", {}, h("summary", {}, "As numbers"), factList(details.scores)));
}

function use(prompt, generate) {
  usePrompt(prompt, generate);
  go("generate");
}

function trainMenu(details) {
  const name = concepts.plain(unversioned(details.name));
  const [owner, word] = name.split("/");
  const again = { kind: details.card.kind, noun: details.card.class_noun, owner, name: word, ...(details.method ? { method: details.method } : {}) };
  return menuButton("Train", () => [
    { label: "Train again, from new photos", iconName: "plus", run: () => startDraft(again) },
    { label: "Continue: train this one further", iconName: "right", disabled: !details.fits, run: () => startDraft({ ...again, continue_from: details.name }) },
  ], { iconOnly: false, iconName: "image", kind: "" });
}

async function startDraft(values) {
  const draft = await api.post("/app/drafts", {});
  await api.post(`/app/drafts/${draft.id}/form`, { values });
  go("train", "draft", draft.id);
}
