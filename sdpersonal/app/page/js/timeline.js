// The timeline of a training: a card for each step at which samples were generated.

import { h, icon, updateList } from "./dom.js";
import { openSampleViewer } from "./sample_viewer.js";
import { button } from "./ui.js";

const ASPECTS = { shape: "shape", colour: "colours", detail: "detail", fidelity: "prompt" };

/** The parts of a score that are shown: [[name, share from 0 to 1]]. */
function scoreParts(scores) {
  const parts = Object.entries(ASPECTS).filter(([key]) => typeof scores?.[key] === "number").map(([key, name]) => [name, scores[key]]);
  if (parts.length || typeof scores?.score !== "number") return parts;
  return [["likeness", scores.likeness ?? scores.score]];
}

/** Make the timeline. keep(step): make the concept from that step; details(): the training as the server has it.
 * Returns {root, update(training)}. */
export function timeline({ keep, details }) {
  const list = h("ol", { class: "timeline", id: "timeline" });
  const hint = h("p", { class: "muted small-text" });
  const title = h("h3", {}, "Samples");
  const root = h("section", { class: "timeline-section", "aria-label": "Samples" }, h("div", { class: "row spread" }, title, hint), list);
  const open = (step, index) => openSampleViewer({ training: details(), step, index });
  return {
    root,
    update(training) {
      const entries = training.timeline ?? [];
      root.hidden = !entries.length;
      hint.textContent = starText(training, entries);
      const atEnd = list.scrollLeft + list.clientWidth >= list.scrollWidth - 40;
      const before = list.childElementCount;
      updateList(list, entries, entry => entry.step, entry => makeCard(entry, open, keep, training), (card, entry) => fillCard(card, entry, open, training));
      if (atEnd && list.childElementCount > before) list.scrollLeft = list.scrollWidth;
    },
  };
}

function starText(training, entries) {
  const compare = "Click an image to compare.";
  if (!entries.some(entry => entry.best)) return compare;
  return `${training.state === "done" ? "The star marks the step that was kept." : "The star marks the step that would be kept."} ${compare}`;
}

const SHOWN = 4; // images of a card; the viewer has all

/** Choose images for a card: the user's own prompts first, one of each prompt before a second one of any. */
function cardImages(images) {
  const all = images.map((image, index) => ({ ...image, index })), seen = new Set();
  const rank = image => {
    const again = seen.has(image.prompt);
    seen.add(image.prompt);
    return (again ? 2 : 0) + (image.own ? 0 : 1);
  };
  const ranked = all.map(image => [rank(image), image]).sort(([a, first], [b, second]) => a - b || first.index - second.index);
  return ranked.slice(0, SHOWN).map(([, image]) => image).sort((a, b) => a.index - b.index);
}

function makeCard(entry, open, keep, training) {
  const images = h("div", { class: "timeline-images" });
  const star = h("span", { class: "timeline-star", hidden: true }, icon("star", { filled: true }), h("span", { class: "visually-hidden" }, "the best so far"));
  const all = button("+", { small: true, kind: "quiet", hidden: true, onclick: () => open(entry.step, 0) });
  const scores = h("dl", { class: "timeline-scores" });
  const keeper = button("", { small: true, class: "button small timeline-keep", dataset: { step: entry.step }, onclick: () => keep(entry.step) });
  const savedAs = h("p", { class: "small-text", hidden: true });
  const card = h("li", { class: "timeline-card", "aria-label": `Step ${entry.step}` },
    images, h("div", { class: "row spread nowrap" }, h("h4", {}, `Step ${entry.step.toLocaleString()}`), h("span", { class: "row nowrap" }, all, star)), scores, savedAs, keeper);
  card.parts = { images, all, star, scores, savedAs, keeper };
  fillCard(card, entry, open, training);
  return card;
}

function fillCard(card, entry, open, training) {
  const { images, all, star, scores, savedAs, keeper } = card.parts;
  updateList(images, cardImages(entry.images), image => image.url, image => makeImage(image, entry.step, open));
  images.classList.toggle("single", entry.images.length === 1);
  const hidden = entry.images.length - images.childElementCount;
  all.hidden = hidden <= 0;
  all.querySelector("span").textContent = `+${hidden}`;
  all.setAttribute("aria-label", `Show all ${entry.images.length} images of step ${entry.step}`);
  star.hidden = !entry.best;
  card.classList.toggle("best", entry.best);
  updateList(scores, scoreParts(entry.scores), ([name]) => name, makeScore, fillScore);
  const token = training.kept?.[entry.step];
  savedAs.hidden = !token;
  savedAs.textContent = token ? `In the library as ${token}` : "";
  const running = training.state === "training";
  keeper.hidden = !entry.can_keep;
  const words = running ? "Keep this one and stop" : "Make the concept from this step";
  const label = keeper.querySelector("span");
  if (label.textContent !== words) label.textContent = words;
  keeper.setAttribute("aria-label", `${words}: step ${entry.step}`);
}

const makeImage = ({ url, prompt, index }, step, open) => h("button", {
  type: "button", class: "timeline-image", title: prompt || null, "aria-label": `Enlarge image ${index + 1} of step ${step}${prompt ? `: ${prompt}` : ""}`,
  onclick: () => open(step, index),
}, h("img", { src: url, alt: "", loading: "lazy" }));

function makeScore(part) {
  const value = h("span", { class: "score-value" }), fillBar = h("span", { class: "score-fill" });
  const element = h("div", { class: "score" }, h("dt", {}), h("dd", {}, h("span", { class: "score-bar", "aria-hidden": "true" }, fillBar), value));
  element.parts = { value, fillBar, name: element.firstChild };
  fillScore(element, part);
  return element;
}

function fillScore({ parts }, [name, share]) {
  const percent = Math.round(100 * Math.max(0, Math.min(1, share)));
  parts.name.textContent = name;
  parts.value.textContent = `${percent} %`;
  parts.fillBar.style.setProperty("width", `${percent}%`);
}
