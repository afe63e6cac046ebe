// The Generate tab: the form on the left, the gallery in the middle, the selected image on the right.

import { api, app } from "./api.js";
import { concepts } from "./concepts.js";
import { conceptRows, editPrompt, pickConcept } from "./concept_rows.js";
import { h, icon } from "./dom.js";
import { form } from "./form.js";
import { gallery } from "./gallery.js";
import { historyButton, ideasButton, presetsButton, rememberPrompt } from "./ideas.js";
import { images } from "./images.js";
import { DRAGGED, IMAGE_TYPES, initImageField, startFromFile } from "./init_image.js";
import { jobs } from "./jobs.js";
import { go } from "./main.js";
import { placeEditor } from "./places.js";
import { promptBox } from "./prompt.js";
import { selectedPane } from "./selected.js";
import { advancedSettings, shapeAndNumber } from "./settings.js";
import { announce, button, dropTarget, openDialog, showError, toast } from "./ui.js";

const PHONE = matchMedia("(max-width: 760px)");
const NARROW = matchMedia("(max-width: 1100px)"); // no place for the selected image beside the gallery

export function mount(root) {
  form.load();
  const rows = conceptRows();
  const places = placeEditor({ edit: editPrompt, undo: isRedo => prompt.undo(isRedo) });
  const prompt = promptBox({ onCheck: checked => { rows.show(checked.concepts); places.show(checked.places); } });
  const shape = shapeAndNumber(), init = initImageField();
  const advanced = advancedSettings({ onGrid: () => submit("grid") });
  const fields = { ...shape.fields, ...init.fields, ...advanced.fields, ...advanced.grid.fields };
  const start = generateButton(() => submit(form.values.endless ? "endless" : "generate"));
  const view = sheetView();
  const results = gallery({ onOpen: view.open, emptyPart });
  const selected = selectedPane({ onLeave: place => leave(place) });

  const left = h("div", { class: "side generate-form" },
    h("div", { class: "field" }, h("div", { class: "field-label spread" }, h("label", { for: "prompt" }, "Prompt"), historyButton()), prompt.root),
    rows.root, places.root, promptButtons(prompt), shape.root, init.root,
    advanced.root);
  const right = h("aside", { class: "side selected-side", "aria-label": "Selected image" }, selected.root);
  view.set(selected.root, right);
  const foot = h("div", { class: "generate-foot" }, start.root);
  const placeFoot = () => (PHONE.matches ? root.append(foot) : advanced.root.before(foot)); // on a phone beside what scrolls
  PHONE.addEventListener("change", placeFoot);
  root.append(h("div", { class: "columns generate" }, left, h("div", { class: "gallery-pane" }, results.root), right));
  placeFoot();

  async function submit(kind) {
    clearErrors(fields);
    if (!form.values.prompt.trim()) return prompt.error("Write a prompt first: what should the image show?");
    rememberPrompt(form.values.prompt);
    results.showNewest();
    announce(jobs.active.length ? "Added to the queue." : "Generating.");
    try {
      await jobs.submit(placeholder(kind), () => request(kind));
    } catch (error) {
      showFieldError(error, fields, prompt, advanced);
    }
    return undefined;
  }
  function leave(place) {
    view.close();
    if (place === "prompt") prompt.focus();
    else left.querySelector(".init")?.scrollIntoView({ block: "nearest" });
  }
  root.addEventListener("keydown", event => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    submit(form.values.endless ? "endless" : "generate");
  });
  jobs.onChange(start.show);
  jobs.onStart(() => view.close()); // the images under way are beneath the sheet
  acceptDrops(root, prompt);
  concepts.load();
  images.show({});
  return { show() { start.show(); takePrompt(prompt, () => submit("generate")); } };
}

/** Take a prompt that another tab sent here, now that it can be seen. start(): starts it. */
function takePrompt(prompt, start) {
  const pending = app.pendingPrompt;
  if (!pending) return;
  app.pendingPrompt = null;
  form.replace({ prompt: pending.prompt }, "Took the prompt.");
  if (!(pending.generate && NARROW.matches)) prompt.focus(); // on a phone the images are what to look at then
  if (pending.generate) start();
}

function generateButton(onclick) {
  const label = h("span", {}, "Generate");
  const root = h("button", { type: "button", class: "button primary generate-button", title: "Ctrl+Enter in any field", onclick }, label, h("kbd", { "aria-hidden": "true" }, "Ctrl ↵"));
  return { root, show() { label.textContent = jobs.active.length ? "Add to the queue" : "Generate"; } };
}

function promptButtons(prompt) {
  const add = button("Concept", { small: true, iconName: "plus", "aria-label": "Add a concept", title: "Add a concept at the cursor", onclick: async () => {
    const token = await pickConcept();
    if (token) prompt.insert(token);
  } });
  return h("div", { class: "row prompt-buttons" }, add, ideasButton(), presetsButton());
}

const placeholder = kind => {
  const text = form.values.prompt.trim();
  return { title: text.length > 60 ? `${text.slice(0, 59)}…` : text, expected: kind === "endless" ? null : kind === "grid" ? 4 : Number(form.values.num_images) || 1 };
};

async function request(kind) {
  const body = { kind, form: form.request() };
  if (kind !== "grid") return body;
  const { x, x_values, y, y_values } = form.values;
  return { ...body, x, x_values, ...(y && { y, y_values }) };
}

function clearErrors(fields) {
  for (const field of Object.values(fields)) field.error?.("");
}

/** Show an error at the field that it is about, else as a message. */
function showFieldError(error, fields, prompt, advanced) {
  if (error.field === "prompt") return prompt.error(error.text);
  const field = fields[error.field];
  if (!field) return showError(error);
  if (advanced.root.contains(field.root)) advanced.open();
  if (advanced.grid.root.contains(field.root)) advanced.grid.open();
  field.error(error.text);
  field.root.scrollIntoView({ block: "nearest" });
  return field.input.focus?.();
}

/** Where the selected image is shown: beside the gallery, or in a sheet over a narrow page. */
function sheetView() {
  let pane = null, home = null, closeSheet = null;
  return {
    set(element, place) { pane = element; home = place; },
    open() {
      if (!NARROW.matches || closeSheet) return;
      openDialog({ title: "Image", className: "sheet", content: close => { closeSheet = close; return pane; } }).then(() => {
        closeSheet = null;
        home.append(pane);
      });
    },
    close() { closeSheet?.(); },
  };
}

/** What an empty gallery shows: where to begin. */
function emptyPart() {
  const hasConcepts = concepts.list.some(concept => concept.fits);
  if (hasConcepts || !concepts.loaded) return h("p", { class: "empty" }, "Your images will be here. Write a prompt and press Generate.");
  return h("div", { class: "card first-card" }, h("h2", {}, "Teach it something of yours"),
    h("p", {}, "From a few photos of a thing, a person or a style it learns a word, and then it can show that anywhere."),
    button("Teach it from photos", { kind: "primary", onclick: () => go("train") }),
    h("p", { class: "muted small-text" }, "You can also generate without: write a prompt and press Generate."));
}

/** Take an image that is dropped anywhere on the tab, after asking what for. */
function acceptDrops(root, prompt) {
  const isFile = event => event.dataTransfer.types.includes("Files") && !event.dataTransfer.types.includes(DRAGGED);
  dropTarget(root, async files => {
    const file = files.find(other => IMAGE_TYPES.includes(other.type) && other.type);
    if (!file) return toast("Only PNG, JPEG and WebP images can be dropped here.", { kind: "error" });
    try {
      const choice = await askDrop(file);
      if (choice === "start") await startFromFile(file);
      else if (choice === "settings") await readSettings(file, prompt);
    } catch (error) {
      showError(error);
    }
    return undefined;
  }, isFile);
}

function askDrop(file) {
  const url = URL.createObjectURL(file);
  return openDialog({
    title: "What to do with this image?",
    content: close => [h("img", { class: "drop-preview", src: url, alt: file.name }), h("div", { class: "stack" },
      h("button", { type: "button", class: "button primary", onclick: () => close("settings") }, icon("copy"), "Use its settings"),
      h("button", { type: "button", class: "button", onclick: () => close("start") }, icon("image"), "Start from it"))],
  }).finally(() => URL.revokeObjectURL(url));
}

async function readSettings(file, prompt) {
  const [upload] = await api.upload([file]);
  const { fields, notes, same } = await api.post("/app/settings/read", { upload });
  const text = same ? "Its settings are in the form: the same model generates the same image." : "Its settings are in the form, as far as this app has them.";
  form.replace(form.fromSettings(fields), [text, ...(notes ?? [])].join(" "));
  prompt.focus();
}

