// Beside a training: the verdict, prompts to try or to sample, the photos, the report.

import { api } from "./api.js";
import { fill, h, updateList } from "./dom.js";
import { textField } from "./fields.js";
import { button, toast } from "./ui.js";

const MAX_PROMPTS = 8;

/** Make the column. generate(prompt): in the Generate tab. Returns {root, update(training)}. */
export function trainingSide({ id, details, generate }) {
  const parts = [verdict(), tryPrompts(generate), samplePrompts(id, details), imageSet("Photos", now => thumbs(now)),
    imageSet("For comparison", now => (now.class_images ?? []).map(image => image.url), now => `Any ${now.noun || "other"} without the concept`), report()];
  return {
    root: h("div", { class: "training-side side" }, parts.map(part => part.root)),
    update(now) { for (const part of parts) part.update(now); },
  };
}

/** The thumbnails of a training's photos; the list of trainings has only their number. */
export const thumbs = training => (training.photos ?? []).map(photo => photo.thumb);

const section = (title, ...content) => h("section", { class: "side-section", "aria-label": title, hidden: true }, h("h3", {}, title), content);

function verdict() {
  const list = h("div", { class: "verdict" });
  const root = section("How good is it?", list);
  return {
    root,
    update(now) {
      const sentences = now.verdict ?? [], text = sentences.join("\n");
      root.hidden = !sentences.length;
      if (list.dataset.text === text) return;
      list.dataset.text = text;
      const isNumbers = sentence => /^score [\d.]/.test(sentence), numbers = sentences.filter(isNumbers);
      fill(list, sentences.filter(sentence => !isNumbers(sentence)).map(sentence => h("p", {}, sentence)),
        numbers.length > 0 && h("details", {}, h("summary", {}, "As numbers"), numbers.map(sentence => h("p", { class: "muted small-text" }, sentence))));
    },
  };
}

function tryPrompts(generate) {
  const list = h("div", { class: "try-prompts" });
  const root = section("Prompts to try", list);
  return {
    root,
    update(now) {
      const prompts = now.try_prompts ?? [];
      root.hidden = !prompts.length;
      updateList(list, prompts, prompt => prompt, prompt => button(prompt, { class: "button try-prompt", onclick: () => generate(prompt) }));
    },
  };
}

/** The user's own sample prompts, which count from the next samples on. */
function samplePrompts(id, details) {
  const field = textField({ label: "Own sample prompts", hideLabel: true, rows: 3, maxLength: 8200, placeholder: "{} on the beach", help: `At most ${MAX_PROMPTS}, one a line; {} stands for the concept. They count from the next samples on.` });
  const save = button("Use these prompts", { small: true, onclick: async () => {
    const prompts = field.value.split("\n").map(line => line.trim()).filter(Boolean);
    if (prompts.length > MAX_PROMPTS) return field.error(`At most ${MAX_PROMPTS} prompts.`);
    try {
      await api.post(`/app/trainings/${encodeURIComponent(id)}/prompts`, { prompts });
    } catch (error) {
      return field.error(error.text ?? String(error));
    }
    field.error("");
    edited = false;
    toast("The next samples use these prompts.", { kind: "good" });
    return undefined;
  } });
  let edited = false;
  field.input.addEventListener("input", () => { edited = true; });
  const root = section("Own sample prompts", field.root, h("div", { class: "row" }, save));
  return {
    root,
    update() {
      const now = details();
      root.hidden = !now.can_set_prompts;
      const text = (now.prompts ?? []).join("\n");
      if (!edited && field.value !== text) field.value = text;
    },
  };
}

function imageSet(title, urls, note = () => "") {
  const list = h("div", { class: "side-images" }), words = h("p", { class: "muted small-text" });
  const root = section(title, words, list);
  return {
    root,
    update(now) {
      const images = urls(now);
      root.hidden = !images.length;
      words.textContent = note(now);
      words.hidden = !words.textContent;
      updateList(list, images, url => url, url => h("img", { src: url, alt: title === "Photos" ? "A photo" : note(now), loading: "lazy" }));
    },
  };
}

function report() {
  const link = h("a", { target: "_blank", rel: "noopener" }, "Open the report");
  const root = section("Report", link);
  return {
    root,
    update(now) {
      root.hidden = !now.report;
      if (now.report) link.href = now.report;
    },
  };
}
