// Cropping a photo by hand: a square over it, to drag, to resize at its corners, and to move with the keyboard.
//
// A crop is [left, top, side]: left as a share of the photo's width, top of its height, side of its shorter side.

import { h } from "./dom.js";

const MIN_PIXELS = 64, MIN_SHARE = 0.1; // of the smallest square, the latter of the photo's shorter side
const STEP = 0.02; // of the shorter side, per key
const CORNERS = ["nw", "ne", "sw", "se"];

/** A crop as a square in pixels of the photo. */
function toSquare([left, top, side], width, height) {
  return { x: left * width, y: top * height, side: side * Math.min(width, height) };
}

const minSide = shorter => Math.min(shorter, Math.max(MIN_PIXELS, Math.ceil(MIN_SHARE * shorter)));

/** A square in pixels, moved and shrunk until it is inside the photo, as a crop. */
function toCrop({ x, y, side }, width, height) {
  const shorter = Math.min(width, height);
  const length = Math.min(shorter, Math.max(minSide(shorter), side));
  const left = Math.min(width - length, Math.max(0, x)), top = Math.min(height - length, Math.max(0, y));
  const rounded = value => Math.round(value * 1e6) / 1e6;
  return [rounded(left / width), rounded(top / height), rounded(length / shorter)];
}

/** Lay a square over a photo. element: positioned in percent of the photo. */
export function placeSquare(element, crop, width, height) {
  const { x, y, side } = toSquare(crop, width, height);
  const set = (name, share) => element.style.setProperty(name, `${100 * share}%`);
  set("left", x / width);
  set("top", y / height);
  set("width", side / width);
  set("height", side / height);
}

/** Make the editor. crop: or null while the photo has none; onChange(crop): when a change is complete.
 * Returns {root, focus(), set({url, crop, name})}. */
export function cropEditor({ onChange }) {
  const image = h("img", { alt: "", draggable: "false" });
  const box = h("div", { class: "crop-box", tabindex: 0, role: "group", "aria-roledescription": "crop square" },
    CORNERS.map(corner => h("span", { class: `crop-handle ${corner}`, dataset: { corner } })));
  const square = h("span", { class: "crop-lit" });
  const frame = h("div", { class: "crop-frame" }, image, h("span", { class: "crop-shade" }, square), box);
  const state = { crop: [0, 0, 1], name: "" };
  const size = () => [image.naturalWidth || 1, image.naturalHeight || 1];
  const show = () => {
    box.hidden = !image.naturalWidth;
    for (const element of [box, square]) placeSquare(element, state.crop, ...size());
    const [left, top, side] = state.crop.map(share => Math.round(100 * share));
    box.setAttribute("aria-label", `Crop of ${state.name}: ${left} percent from the left, ${top} percent from the top, ${side} percent of the shorter side. Arrow keys move it, plus and minus resize it.`);
  };
  const change = square => { state.crop = toCrop(square, ...size()); show(); };
  image.addEventListener("load", show);
  followPointer(frame, box, { size, square: () => toSquare(state.crop, ...size()), change, done: () => onChange(state.crop) });
  box.addEventListener("keydown", event => {
    const square = moveByKey(event, toSquare(state.crop, ...size()), Math.min(...size()));
    if (!square) return;
    event.preventDefault();
    event.stopPropagation();
    change(square);
    onChange(state.crop);
  });
  return {
    root: h("div", { class: "crop-stage" }, frame),
    /** Focus the square, once the photo is there. */
    focus() {
      if (box.hidden) image.addEventListener("load", () => box.focus(), { once: true });
      else box.focus();
    },
    set({ url, crop, name }) {
      Object.assign(state, { crop: crop ?? [0, 0, 1], name });
      if (image.getAttribute("src") !== url) image.src = url;
      image.alt = name;
      show();
    },
  };
}

/** The square after a key; null for keys that mean nothing here. */
function moveByKey(event, { x, y, side }, shorter) {
  const step = (event.shiftKey ? 5 : 1) * STEP * shorter;
  const grow = by => ({ x: x - by / 2, y: y - by / 2, side: side + by });
  switch (event.key) {
    case "ArrowLeft": return { x: x - step, y, side };
    case "ArrowRight": return { x: x + step, y, side };
    case "ArrowUp": return { x, y: y - step, side };
    case "ArrowDown": return { x, y: y + step, side };
    case "+": case "=": return grow(2 * STEP * shorter);
    case "-": case "_": return grow(-2 * STEP * shorter);
    default: return null;
  }
}

/** Dragging: the square moves, its corners resize it, and elsewhere on the photo a new square begins. */
function followPointer(frame, box, { size, square, change, done }) {
  frame.addEventListener("pointerdown", event => {
    if (event.button !== 0) return;
    event.preventDefault();
    box.focus({ preventScroll: true });
    const area = frame.getBoundingClientRect();
    const at = moved => ({ x: ((moved.clientX - area.left) / area.width) * size()[0], y: ((moved.clientY - area.top) / area.height) * size()[1] });
    const start = at(event), first = square(), corner = event.target.dataset?.corner;
    const drag = corner ? resizer(first, corner, size) : event.target === box ? mover(first, start) : resizer({ ...start, side: 0 }, "se", size);
    const onMove = moved => change(drag(at(moved)));
    const onUp = () => { frame.removeEventListener("pointermove", onMove); done(); };
    frame.setPointerCapture(event.pointerId);
    frame.addEventListener("pointermove", onMove);
    frame.addEventListener("pointerup", onUp, { once: true });
    frame.addEventListener("pointercancel", onUp, { once: true });
  });
}

const mover = (first, start) => point => ({ x: first.x + point.x - start.x, y: first.y + point.y - start.y, side: first.side });

/** Resize from the opposite corner, which stays where it is; no larger than the photo allows. */
function resizer(first, corner, size) {
  const fixed = { x: first.x + (corner.includes("w") ? first.side : 0), y: first.y + (corner.includes("n") ? first.side : 0) };
  return point => {
    const [width, height] = size();
    const right = first.side ? corner.includes("e") : point.x >= fixed.x, down = first.side ? corner.includes("s") : point.y >= fixed.y;
    const room = Math.min(right ? width - fixed.x : fixed.x, down ? height - fixed.y : fixed.y);
    const reach = Math.max(right ? point.x - fixed.x : fixed.x - point.x, down ? point.y - fixed.y : fixed.y - point.y);
    const side = Math.max(minSide(Math.min(width, height)), Math.min(reach, room));
    return { x: right ? fixed.x : fixed.x - side, y: down ? fixed.y : fixed.y - side, side };
  };
}
