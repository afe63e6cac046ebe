// Dialogs about one concept: export, edit, rename, delete.

import { api } from "./api.js";
import { concepts, unversioned } from "./concepts.js";
import { fill, h } from "./dom.js";
import { select, textField } from "./fields.js";
import { isShared } from "./library.js";
import { button, busy, copyText, download, factList, openDialog, showError, toast } from "./ui.js";

let choices = null;

/** The choices of the fields: kinds, programs, licences, consents as [value, label]. */
export async function fieldChoices() {
  choices ??= await api.get("/app/concepts/choices");
  return choices;
}

const asChoices = pairs => pairs.map(([value, label]) => ({ value, label }));

// --- export ---------------------------------------------------------------------------------------------------------

/** Choose a program: its files are downloaded at once, and the dialog says what to do with them. */
export async function exportDialog(details) {
  const { programs } = await fieldChoices();
  let chosen = null; // a slower answer to an earlier choice does not count
  const result = h("div", { class: "stack export-result", role: "status" },
    h("p", { class: "muted" }, "Choose the program. The download starts at once, and what to do with it is shown here."));
  const buttons = programs.map(([id, label]) => {
    const [name, note] = label.split(": ");
    const element = button(name, { class: "button export-program", title: note ?? null, "aria-pressed": "false", onclick: async () => {
      chosen = id;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === element));
      fill(result, h("p", { class: "muted" }, `Making the files for ${name}`));
      try {
        const made = await api.get("/app/concept/export", { token: details.token, program: id });
        if (chosen !== id) return;
        download(made.url, made.name);
        fill(result, exportSteps(made));
        result.scrollIntoView({ block: "nearest" });
      } catch (error) {
        if (chosen === id) fill(result, h("p", { class: "notice error" }, error.text ?? String(error)));
      }
    } });
    return element;
  });
  await openDialog({
    title: `Export ${details.name}`, wide: true,
    content: h("div", { class: "export-columns" }, h("div", { class: "stack export-programs", role: "group", "aria-label": "Program" }, buttons), result),
  });
}

function exportSteps(made) {
  const typed = made.typed && h("div", { class: "stack" }, h("h3", {}, "What to type in a prompt there"),
    h("div", { class: "row nowrap" }, h("code", {}, made.typed), button("Copy what to type", { iconName: "copy", iconOnly: true, kind: "quiet", small: true, onclick: () => copyText(made.typed) })));
  return [
    h("p", { class: "good-text" }, `Downloaded: ${made.name} (${made.size}).`),
    h("h3", {}, "What to do"), h("ol", { class: "steps" }, made.steps.map(step => h("li", {}, step))),
    made.places.length > 1 && h("details", {}, h("summary", {}, "Where each file goes"),
      factList(made.places, "export-places")),
    typed,
    made.notes.map(note => h("p", { class: "notice warn" }, note)),
    h("div", {}, h("a", { class: "button", href: made.url, download: made.name }, "Download again")),
  ];
}

// --- edit -----------------------------------------------------------------------------------------------------------

export async function editDialog(details, changed) {
  const { kinds, licences, consents } = await fieldChoices(), { card } = details;
  const known = licences.some(([value]) => value === card.license) ? licences : [...licences, [card.license, card.license]];
  const fields = {
    title: textField({ label: "Title", value: card.title, maxLength: 100 }),
    description: textField({ label: "Description", value: card.description, rows: 3, maxLength: 2000 }),
    kind: select({ label: "Kind", choices: asChoices(kinds), value: card.kind }),
    class_noun: textField({ label: "Class noun", word: "class noun", value: card.class_noun, maxLength: 100 }),
    author: textField({ label: "Author", value: card.author, maxLength: 100 }),
    license: select({ label: "Licence", choices: asChoices(known), value: card.license }),
    consent: select({ label: "Does the person shown agree?", choices: asChoices(consents), value: card.consent }),
    consent_note: textField({ label: "To what, and when", value: card.consent_note, maxLength: 500 }),
    prompts: textField({ label: "Prompts to try, one a line", value: card.prompts, rows: 4, maxLength: 8200 }),
  };
  const problem = h("p", { class: "notice error", role: "alert", hidden: true });
  const person = h("div", { class: "edit-pair" }, fields.consent.root, fields.consent_note.root);
  const showPerson = () => { person.hidden = fields.kind.value !== "person" && card.consent === "unknown"; };
  fields.kind.input.addEventListener("change", showPerson);
  showPerson();
  const save = async close => {
    const values = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.value]));
    problem.hidden = true;
    try {
      await api.post("/app/concept/edit", { token: details.token, values });
    } catch (error) {
      problem.textContent = error.text ?? String(error);
      problem.hidden = false;
      return;
    }
    close();
    toast("Saved.", { kind: "good", seconds: 3 });
    changed();
  };
  const pair = (...parts) => h("div", { class: "edit-pair" }, parts.map(part => part.root));
  await openDialog({
    title: `Edit ${details.name}`, wide: true,
    content: [fields.title.root, fields.description.root, pair(fields.kind, fields.class_noun), pair(fields.author, fields.license), person, fields.prompts.root, problem],
    buttons: close => [button("Cancel", { onclick: () => close() }), button("Save", { kind: "primary", onclick: () => save(close) })],
  });
}

// --- rename ---------------------------------------------------------------------------------------------------------

export async function renameDialog(details, { changed, open }) {
  const bare = concepts.plain(unversioned(details.name));
  const name = textField({ label: "New name", value: bare, maxLength: 200, help: "Owner and name, such as me/rex. Spaces and capitals are turned into what a token may have." });
  const count = details.versions.length;
  const rename = async close => {
    name.error("");
    let answer;
    try {
      answer = await api.post("/app/concept/rename", { token: details.token, name: name.value });
    } catch (error) {
      name.error(error.text ?? String(error));
      name.input.focus();
      return;
    }
    close();
    toast(answer.message, { kind: "good" });
    open(answer.token);
    changed();
  };
  await openDialog({
    title: `Rename ${details.name}`,
    content: close => h("form", { class: "stack", onsubmit: event => { event.preventDefault(); busy(null, () => rename(close)); } }, name.root,
      h("p", { class: "small-text muted" }, `${count > 1 ? `All ${count} versions are renamed, and so` : "So"} are the prompts on its card. Prompts that you keep elsewhere still have the old name.`)),
    buttons: close => [button("Cancel", { onclick: () => close() }), button("Rename", { kind: "primary", onclick: () => rename(close) })],
    onOpen: () => { name.input.focus(); name.input.select(); },
  });
}

// --- delete ---------------------------------------------------------------------------------------------------------

/** Delete a concept; it can be undone. It asks only where there are several versions or users. */
export async function deleteConcept(details, { changed, open }) {
  const count = details.versions.length;
  let which = "this";
  if (count > 1 || isShared()) which = await askWhich(details, count);
  if (!which) return;
  const { message, undo } = await api.post("/app/concept/delete", { token: details.token, all_versions: which === "all" });
  changed();
  toast(message, { action: { label: "Undo", run: () => undoDeletion(undo, { changed, open }) } });
}

async function undoDeletion(undo, { changed, open }) {
  try {
    const { message, token } = await api.post("/app/concept/restore", { undo });
    toast(message, { kind: "good" });
    if (token && document.body.dataset.tab === "library") open(token);
  } catch (error) {
    showError(error);
  }
  changed();
}

function askWhich(details, count) {
  const version = details.versions.find(({ token }) => token === details.token)?.version;
  return openDialog({
    title: `Delete ${details.name}?`,
    content: h("p", {}, "It can be restored for 30 days.", isShared() ? " The library is shared: it is deleted for all users." : ""),
    buttons: close => [
      button("Cancel", { onclick: () => close(), autofocus: true }),
      button(count > 1 ? `Only version ${version}` : "Delete", { kind: "danger", onclick: () => close("this") }),
      count > 1 && button(`All ${count} versions`, { kind: "danger", onclick: () => close("all") }),
    ].filter(Boolean),
  });
}
