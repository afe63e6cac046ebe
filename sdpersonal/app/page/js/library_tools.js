// Dialogs about several concepts: compare two, check a mix, and the trash.

import { api } from "./api.js";
import { fieldChoices } from "./concept_dialogs.js";
import { unversioned } from "./concepts.js";
import { fill, h, uniqueId } from "./dom.js";
import { select } from "./fields.js";
import { button, confirmDialog, dateText, openDialog, showError, toast } from "./ui.js";

async function allVersions() {
  return (await api.get("/app/concepts/versions")).versions;
}

/** Work out an answer and show it in `place`; an error is shown there too. */
async function showAnswer(place, work) {
  const request = place.dataset.request = uniqueId("request"); // a slower answer to an earlier choice does not count
  fill(place, h("p", { class: "muted" }, "The concepts are being compared."));
  let content;
  try {
    content = await work();
  } catch (error) {
    content = h("p", { class: "notice error" }, error.text ?? String(error));
  }
  if (place.dataset.request === request) fill(place, content);
}

/** Compare two concepts, or two versions of one. selected: the token of the card, or null. */
export async function compareDialog(selected) {
  const versions = await allVersions();
  if (versions.length < 2) return void toast("There are no two concepts to compare.");
  const tokens = versions.map(version => version.token);
  const own = tokens.filter(token => selected && unversioned(token) === unversioned(selected));
  const first = own.at(-1) ?? tokens[0];
  const second = own.at(-2) ?? tokens.find(token => token !== first);
  const result = h("div", { class: "stack", role: "status" });
  const run = () => showAnswer(result, async () => comparison(await api.get("/app/concepts/compare", { first: a.value, second: b.value })));
  const a = select({ label: "First concept", choices: tokens, value: first, onChange: run });
  const b = select({ label: "Second concept", choices: tokens, value: second, onChange: run });
  run().catch(showError);
  await openDialog({ title: "Compare two concepts", wide: true, content: [h("div", { class: "edit-pair" }, a.root, b.root), result] });
}

function comparison({ tokens, images, rows, sentences }) {
  return [
    sentences.map(text => h("p", {}, text)),
    h("table", { class: "comparison" },
      h("thead", {}, h("tr", {}, h("td", {}), tokens.map((token, place) => h("th", { scope: "col" }, h("img", { src: images[place], alt: "", width: 128, height: 128 }), token)))),
      h("tbody", {}, rows.map(([name, first, second]) => h("tr", { class: first === second ? null : "differs" },
        h("th", { scope: "row" }, name), h("td", {}, first), h("td", {}, second))))),
  ];
}

/** Say how 2 to 4 concepts mix in one prompt. */
export async function conflictsDialog(selected) {
  const { max_mixed: most } = await fieldChoices();
  const newest = (await allVersions()).filter(version => version.newest).map(version => unversioned(version.token));
  if (newest.length < 2) return void toast("There are no two concepts to mix.");
  const none = { value: "", label: "None" };
  const result = h("div", { class: "stack", role: "status" }, h("p", { class: "muted" }, `Choose 2 to ${most} concepts.`));
  const chosen = () => [...new Set(fields.map(field => field.value).filter(Boolean))];
  const run = () => chosen().length < 2 ? null : showAnswer(result, async () =>
    (await api.post("/app/concepts/conflicts", { tokens: chosen() })).sentences.map(text => h("p", { class: "notice" }, text)));
  const start = selected && newest.includes(unversioned(selected)) ? unversioned(selected) : "";
  const fields = Array.from({ length: most }, (_, place) => select({
    label: `Concept ${place + 1}`, choices: [none, ...newest], value: place === 0 ? start : "", onChange: run,
  }));
  await openDialog({
    title: "Check a mix", wide: true,
    content: [h("p", { class: "muted small-text" }, "Whether concepts disturb each other in one prompt, and what to do then."),
      h("div", { class: "edit-pair" }, fields.map(field => field.root)), result],
  });
}

/** What was deleted, to restore it or to delete it for good. */
export async function trashDialog() {
  const content = h("div", { class: "stack" }), empty = button("Empty the trash", { kind: "danger", iconName: "trash", onclick: emptyAll });
  async function show() {
    const { deletions, days } = await api.get("/app/concepts/trash");
    empty.hidden = deletions.length === 0;
    fill(content, h("p", { class: "muted small-text" }, `What was deleted is kept for ${days} days.`),
      deletions.length === 0 ? h("p", { class: "empty" }, "The trash is empty.") : h("ul", { class: "trash-list" }, deletions.map(row)));
  }
  const row = ({ undo, label, deleted }) => h("li", {}, h("span", { class: "grow" }, label),
    h("span", { class: "muted small-text" }, dateText(deleted)), button("Restore", { iconName: "undo", small: true, "aria-label": `Restore ${label}`, onclick: () => restore(undo) }));
  async function restore(undo) {
    toast((await api.post("/app/concept/restore", { undo })).message, { kind: "good" });
    await show();
  }
  async function emptyAll() {
    const text = "What is in the trash is deleted for good.";
    if (!await confirmDialog({ title: "Empty the trash?", text, yes: "Delete for good", danger: true })) return;
    toast((await api.post("/app/concepts/trash/empty")).message);
    await show();
  }
  await show();
  await openDialog({ title: "Trash", content, buttons: close => [empty, button("Close", { onclick: () => close() })] });
}
