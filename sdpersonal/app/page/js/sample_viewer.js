// A sample at its full size, beside the photos and what the class noun gives without the concept.

import { fill, h } from "./dom.js";
import { segmented } from "./fields.js";
import { thumbs } from "./training_side.js";
import { plainToken } from "./train_data.js";
import { announce, button, openDialog } from "./ui.js";

/** Open the viewer at an image of a step. Left and right: the images of the step; up and down: the same image at the
 * steps before and after. */
export function openSampleViewer({ training, step, index }) {
  const entries = training.timeline.filter(entry => entry.images.length);
  const state = { step: Math.max(0, entries.findIndex(entry => entry.step === step)), index };
  const image = h("img", { class: "viewer-image", alt: "" });
  const caption = h("p", { class: "viewer-caption" });
  const sentences = h("div", { class: "viewer-sentences" });
  const aside = h("div", { class: "viewer-compare" });
  const others = comparisons(training, () => entries[state.step - 1]?.images[state.index]);
  const compare = segmented({ label: "Compare with", value: others[0]?.value ?? "none", choices: [...others, { value: "none", label: "Nothing" }], onChange: () => show() });
  const show = () => {
    const entry = entries[state.step];
    const sample = entry.images[Math.min(state.index, entry.images.length - 1)];
    image.src = sample.url;
    const words = [`Step ${entry.step}, image ${state.index + 1} of ${entry.images.length}`, sample.prompt, sample.seed === undefined || sample.seed === null ? "" : `seed ${sample.seed}`].filter(Boolean);
    caption.textContent = words.join(". ");
    image.alt = caption.textContent;
    fill(sentences, (entry.sentences ?? []).map(sentence => h("p", {}, sentence)));
    const images = others.find(other => other.value === compare.value)?.images(state.index) ?? [];
    aside.hidden = !images.length;
    fill(aside, images.map(url => h("img", { src: url, alt: compare.value === "photos" ? "A photo" : "For comparison" })));
  };
  const move = (bySample, byStep) => {
    state.step = Math.max(0, Math.min(entries.length - 1, state.step + byStep));
    const count = entries[state.step].images.length;
    state.index = (Math.min(state.index, count - 1) + bySample + count) % count;
    show();
    announce(caption.textContent);
  };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  return openDialog({
    title: `Samples of ${plainToken(training)}`, wide: true, className: "sample-viewer",
    content: [
      h("div", { class: "viewer-images" }, h("figure", {}, image), aside),
      caption, sentences,
      h("div", { class: "row spread" },
        h("div", { class: "row" },
          button("Previous image", { iconName: "left", iconOnly: true, onclick: () => move(-1, 0) }),
          button("Next image", { iconName: "right", iconOnly: true, onclick: () => move(1, 0) }),
          button("Earlier step", { iconName: "up", iconOnly: true, onclick: () => move(0, -1) }),
          button("Later step", { iconName: "down", iconOnly: true, onclick: () => move(0, 1) })),
        compare.root),
      h("p", { class: "muted small-text" }, "Left and right: the other images of this step. Up and down: the same image at other steps."),
    ],
    onOpen(dialog) {
      show();
      dialog.addEventListener("keydown", event => {
        const by = arrows[event.key];
        if (!by || event.target.type === "radio") return;
        event.preventDefault();
        move(...by);
      });
    },
  });
}

/** What a sample can be compared with: [{value, label, images(index)}]. */
function comparisons(training, before) {
  const photos = thumbs(training), classImages = (training.class_images ?? []).map(image => image.url);
  return [
    photos.length && { value: "photos", label: "The photos", images: () => photos.slice(0, 6) },
    classImages.length && { value: "class", label: `Any ${training.noun || "other"}`, images: index => [classImages[index % classImages.length]] },
    training.timeline.length > 1 && { value: "before", label: "The step before", images: () => [before()?.url].filter(Boolean) },
  ].filter(Boolean);
}
