// The Models tab: the loaded model, those on offer with what this machine needs for them, and switching.

import { api, events } from "./api.js";
import { fill, h } from "./dom.js";
import { textField } from "./fields.js";
import { busy, button, confirmDialog, factList, progressBar, toast } from "./ui.js";

const ui = {};
let data = null, status = { loading: null, message: "", share: null, error: "" };

export function mount(root) {
  ui.loaded = h("section", { class: "card stack", "aria-labelledby": "models-loaded" });
  ui.progress = h("div", { class: "stack" });
  ui.bar = progressBar("Loading the model");
  ui.message = h("p", { role: "status" });
  fill(ui.progress, ui.message, ui.bar.root);
  ui.rows = h("ul", { class: "model-rows" });
  ui.hub = textField({ label: "Another model of the Hugging Face Hub", placeholder: "owner/name", maxLength: 100, help: "It must be a Stable Diffusion model in diffusers' format. You are asked before anything is downloaded." });
  ui.others = h("section", { class: "stack", "aria-labelledby": "models-others" });
  ui.machine = h("p", { class: "muted" });
  root.append(h("div", { class: "models" }, h("h2", {}, "Models"), ui.loaded, ui.others));
  events.on("model", onModel);
  events.on("connected", () => { if (data) load(); });
  load();
  return { show() { if (data) load(); } };
}

async function load() {
  try {
    data = await api.get("/app/models");
  } catch (error) {
    if (!data) fill(ui.loaded, h("p", { class: "error-text" }, error.text ?? String(error)), button("Try again", { onclick: load }));
    return;
  }
  status = { loading: data.loading, message: data.message, share: data.share, error: data.error };
  layOut();
}

function onModel(event) {
  const wasLoading = status.loading;
  status = event;
  if (wasLoading && !event.loading) {
    toast(event.error || event.message, { kind: event.error ? "error" : "good" });
    return load();
  }
  showStatus();
}

function layOut() {
  fill(ui.loaded, h("h3", { id: "models-loaded" }, "Loaded"), h("p", { class: "model-title" }, data.facts[0][1]),
    factList(data.facts.slice(1)),
    h("details", {}, h("summary", {}, "For reproducing"), factList(data.reproducing, "long")),
    ui.progress);
  ui.machine.textContent = data.machine;
  if (data.fixed) fill(ui.others, ui.machine, h("p", { class: "notice" }, data.fixed));
  else {
    fill(ui.rows, data.models.map(row));
    fill(ui.others, h("h3", { id: "models-others" }, "Models to choose from"), ui.machine, ui.rows,
      h("form", { class: "model-hub", onsubmit: event => { event.preventDefault(); busy(null, () => switchTo(ui.hub.value)); } },
        ui.hub.root, h("button", { type: "submit", class: "button" }, "Load it")));
  }
  showStatus();
}

function row(model) {
  const fit = model.fits === null ? null : model.fits ? h("span", { class: "good-text" }, "Fits this machine") : h("span", { class: "error-text" }, "Too large for this machine");
  const size = model.download ? `${model.download.toFixed(1)} GB to download` : "On this machine";
  return h("li", { class: ["card model-row", model.is_loaded && "is-loaded"] },
    h("div", { class: "grow stack" },
      h("p", { class: "model-title" }, model.title === model.name ? model.name : [model.title, h("span", { class: "muted" }, ` ${model.name}`)]),
      h("p", { class: "row small-text" }, fit, h("span", {}, size)),
      h("p", { class: "small-text muted" }, model.requirements.slice(1).join(" "))),
    model.is_loaded ? h("span", { class: "good-text model-mark" }, "Loaded")
      : button("Switch", { "aria-label": `Switch to ${model.title}`, onclick: () => switchTo(model.name) }));
}

function showStatus() {
  const { loading, message, share, error } = status;
  ui.progress.hidden = !loading && !error;
  ui.message.textContent = error || (loading ? message : "");
  ui.message.className = error ? "error-text" : "";
  ui.bar.root.hidden = !loading;
  ui.bar.set(share);
  for (const element of ui.others.querySelectorAll("button")) element.disabled = Boolean(loading) && !element.classList.contains("term-mark");
}

/** Load another model; gigabytes are asked about first. */
async function switchTo(name, agreed = false) {
  ui.hub.error("");
  let answer;
  try {
    answer = await api.post("/app/models/switch", { name, agreed });
  } catch (error) {
    if (ui.hub.value !== "" && ui.hub.value === name) return ui.hub.error(error.text ?? String(error));
    throw error;
  }
  if (!answer.question) {
    ui.hub.value = "";
    status = { loading: answer.loading, message: `Loading ${answer.loading}`, share: null, error: "" };
    return showStatus();
  }
  if (await confirmDialog({ title: "Download this model?", text: answer.question, yes: "Download" })) return switchTo(name, true);
  toast("Nothing was downloaded.");
}
