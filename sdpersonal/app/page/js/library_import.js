// Import files that were dropped on the Library tab or chosen, and say of each how it went.

import { api } from "./api.js";
import { fieldChoices } from "./concept_dialogs.js";
import { fill, h, icon } from "./dom.js";
import { select, textField } from "./fields.js";
import { button, openDialog, progressBar, showError, toast } from "./ui.js";

const DUPLICATES = [
  { value: "refuse", label: "Do not import it" },
  { value: "versions", label: "Add it as the next version" },
  { value: "replace", label: "Replace the one in the library" },
  { value: "filenames", label: "Name it after its file" },
];

/** Upload and import files, and show the results. open(token): shows a concept. */
export async function importFiles(files, open) {
  const { max_files: most } = await fieldChoices();
  if (files.length > most) return void toast(`These are ${files.length} files; ${most} can be imported at once.`, { kind: "error" });
  const content = h("div", { class: "stack" });
  let isClosed = false, isFinished = false, last = null;
  const dialog = openDialog({
    title: "Import", wide: true, content,
    buttons: close => [button("Close", { onclick: () => close() })],
  });
  const work = async options => {
    isFinished = false;
    try {
      const result = await send(files, options, content);
      last = result.files.find(file => file.token)?.token ?? last;
      fill(content, results(result, work));
      if (isClosed) tellResult(result, open);
    } catch (error) {
      fill(content, h("p", { class: "notice error", role: "alert" }, error.text ?? String(error)));
      if (isClosed) showError(error);
    }
    isFinished = true;
  };
  work({});
  await dialog;
  isClosed = true;
  if (isFinished && last) open(last);
}

/** Tell how an import went whose dialog was closed before its end. */
function tellResult({ files, message }, open) {
  const token = files.find(file => file.token)?.token, refused = files.filter(file => file.status === "refused");
  toast([message, ...refused.slice(0, 3).map(file => `${file.name}: ${file.message}`)].join(" "), {
    kind: refused.length ? "error" : "good", action: token ? { label: "Show", run: () => open(token) } : null,
  });
}

/** Upload and import files, with the progress in `content`. */
async function send(files, options, content) {
  const bar = progressBar("Upload"), text = h("p", { role: "status" }, files.length === 1 ? `Uploading ${files[0].name}` : `Uploading ${files.length} files`);
  fill(content, text, bar.root);
  bar.set(0);
  const uploads = await api.upload(files, share => {
    bar.set(share < 1 ? share : null);
    if (share >= 1) text.textContent = "Reading what is in them";
  });
  return api.post("/app/concepts/import", { uploads, ...options });
}

const STATUS = {
  imported: { iconName: "check", label: "Imported", look: "good-text" },
  "here already": { iconName: "check", label: "Here already", look: "muted" },
  refused: { iconName: "warning", label: "Not imported", look: "error-text" },
};

function results({ files, message }, again) {
  const nameHelps = files.some(file => file.name_helps);
  return [
    h("p", { role: "status" }, message),
    h("ul", { class: "import-results" }, files.map(file => {
      const { iconName, label, look } = STATUS[file.status] ?? STATUS.refused;
      return h("li", {}, h("span", { class: ["import-status", look] }, icon(iconName), label),
        h("div", { class: "grow" }, h("strong", {}, file.name), h("p", { class: "small-text" }, file.message)));
    })),
    nameHelps && againPart(again),
  ];
}

/** Choices for another try with the same files, where a name was taken or missing. */
function againPart(again) {
  const name = textField({ label: "Name of the concept", placeholder: "me/duck", maxLength: 200, help: "Leave it empty to take the name in the file. It works for one concept only." });
  const duplicates = select({ label: "If the name is taken", choices: DUPLICATES, value: "versions" });
  return h("div", { class: "import-again" }, h("h3", {}, "Import again"),
    h("div", { class: "edit-pair" }, name.root, duplicates.root),
    button("Import again", { kind: "primary", onclick: () => again({ name: name.value.trim(), duplicates: duplicates.value }) }));
}
