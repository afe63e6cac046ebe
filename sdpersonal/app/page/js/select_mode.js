// Selecting many images: favourite, download, delete, compare two.

import { h } from "./dom.js";
import { deleteImages, downloadZip, images, setFavourite } from "./images.js";
import { openCompare } from "./lightbox.js";
import { button, menuButton } from "./ui.js";

/** Make the mode and its bar. onChange: called when what is selected changes. */
export function selectMode({ onChange }) {
  const chosen = new Set();
  const count = h("span", { class: "small-text grow", role: "status" });
  let isOn = false, lastId = null;
  const ids = () => images.order.filter(id => chosen.has(id));
  const act = work => async () => { await work(ids()); mode.clear(); };
  const buttons = [
    button("Favourite", { iconName: "star", small: true, onclick: act(list => setFavourite(list, !list.every(id => images.get(id).favourite))) }),
    menuButton("Download", () => [
      { label: "As a zip file", iconName: "download", run: () => downloadZip(ids(), true) },
      { label: "Without recipes (nothing but pixels)", iconName: "download", run: () => downloadZip(ids(), false) },
    ], { iconName: "download", iconOnly: false, small: true, kind: "" }),
    button("Compare", { iconName: "compare", small: true, onclick: () => { openCompare(...ids()); } }),
    button("Delete", { iconName: "trash", small: true, kind: "danger", onclick: act(deleteImages) }),
  ];
  const compare = buttons[2];
  const all = button("Select all", { small: true, kind: "quiet", onclick: () => { images.order.forEach(id => chosen.add(id)); update(); } });
  const info = h("div", { class: "row nowrap grow select-info", hidden: true }, count, all);
  const root = h("div", { class: "row select-bar", role: "toolbar", "aria-label": "Selected images", hidden: true }, buttons);

  function update() {
    for (const id of chosen) if (!images.order.includes(id)) chosen.delete(id);
    count.textContent = chosen.size ? `${chosen.size} selected` : "Click images to select them";
    for (const element of buttons) (element.querySelector("button") ?? element).disabled = !chosen.size;
    compare.disabled = chosen.size !== 2;
    compare.title = "Compare exactly two images with a slider";
    onChange();
  }
  const mode = {
    root, info, onToggle: () => {},
    get isOn() { return isOn; },
    has: id => chosen.has(id),
    toggle() {
      isOn = !isOn;
      root.hidden = info.hidden = !isOn;
      chosen.clear();
      mode.onToggle(isOn);
      update();
    },
    clear() { chosen.clear(); update(); },
    /** Select or unselect an image; with Shift all from the last one to it. */
    toggleImage(id, isRange) {
      const from = images.order.indexOf(lastId), to = images.order.indexOf(id);
      if (isRange && from >= 0) images.order.slice(Math.min(from, to), Math.max(from, to) + 1).forEach(other => chosen.add(other));
      else if (!chosen.delete(id)) chosen.add(id);
      lastId = id;
      update();
    },
  };
  return mode;
}
