// Places of the subjects in the prompt, drawn as boxes: by pointer, touch or keyboard. The prompt has them; this shows it.

import { fill, h, uniqueId, updateList } from "./dom.js";
import { form } from "./form.js";
import { announce, button } from "./ui.js";

const GRID = 0.05; // of the image's width and height
const MIN_SIDE = 0.15;
const KEY_PAUSE = 350; // milliseconds after the last key, until the prompt is changed
const CORNERS = ["nw", "ne", "sw", "se"];
const COLOURS = 6;
const ANYWHERE = "auto";

/** Return the class with the colour of a subject; number: among the subjects of the prompt. */
export const subjectClass = number => `subject-${number % COLOURS}`;

const snap = share => Math.round(share / GRID) * GRID;
const tidy = share => Math.round(share * 1e4) / 1e4;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const boxText = box => box.map(tidy).join(",");

/** A box at another place: its upper left corner on the grid, its size as before. */
function movedBox([left, top, right, bottom], x, y) {
  const width = right - left, height = bottom - top;
  const newLeft = clamp(snap(x), 0, 1 - width), newTop = clamp(snap(y), 0, 1 - height);
  return [newLeft, newTop, newLeft + width, newTop + height].map(tidy);
}

/** The part of a side between a fixed end and one that follows the pointer, on the grid. */
function span(fixed, at) {
  let end = clamp(snap(at), 0, 1);
  if (tidy(Math.abs(end - fixed)) < MIN_SIDE) {
    const shortest = at >= fixed ? MIN_SIDE : -MIN_SIDE;
    end = tidy(fixed + shortest) < 0 || tidy(fixed + shortest) > 1 ? fixed - shortest : fixed + shortest;
  }
  return [Math.min(fixed, end), Math.max(fixed, end)];
}

/** The box between two corners. */
function spannedBox(fixed, at) {
  const [left, right] = span(fixed.x, at.x), [top, bottom] = span(fixed.y, at.y);
  return [left, top, right, bottom].map(tidy);
}

/** A box after an arrow key. isResize: its right and lower sides move; those that are at the edge of the image leave it
 * to the opposite ones. */
function boxAfterKey(box, [x, y], isResize) {
  if (!isResize) return movedBox(box, box[0] + x * GRID, box[1] + y * GRID);
  const grown = (start, end, step) => {
    if (step > 0 && end >= 1) return [clamp(snap(start - GRID), 0, 1), end];
    return [start, clamp(snap(end + step * GRID), Math.min(1, start + MIN_SIDE), 1)];
  };
  const [left, right] = x ? grown(box[0], box[2], x) : [box[0], box[2]];
  const [top, bottom] = y ? grown(box[1], box[3], y) : [box[1], box[3]];
  return [left, top, right, bottom].map(tidy);
}

const percent = share => `${Math.round(100 * share)}`;
const boxWords = ([left, top, right, bottom]) => `${percent(left)}–${percent(right)} % across, ${percent(top)}–${percent(bottom)} % down`;

/** Make the editor. edit(token, change): change the prompt; undo(isRedo): take back its last change.
 * Returns {root, show(places of a check)}. */
export function placeEditor({ edit, undo }) {
  const id = uniqueId("places");
  const opener = button("Draw places", { small: true, iconName: "boxes", busyWhile: false, "aria-expanded": "false", "aria-controls": id, onclick: () => toggle() });
  const stage = h("div", { class: "place-stage", role: "group", "aria-label": "Places in the image" });
  const list = h("ul", { class: "place-list" });
  const note = h("p", { class: "field-help", hidden: true });
  const panel = h("div", { class: "place-panel", id, hidden: true }, stage, note, list, h("p", { class: "field-help" },
    "Drag a box to move it, a corner to resize it; drag across a dashed one to draw it. By keyboard: the arrow keys move it, with Shift they resize it, Delete removes it."));
  const root = h("section", { class: "places", "aria-label": "Places of the subjects", hidden: true }, opener, panel);
  let places = []; // as shown; each with `isChanged` until the prompt has its change
  let checked = []; // as the prompt has them

  function toggle() {
    panel.hidden = !panel.hidden;
    opener.setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden) panel.scrollIntoView({ block: "nearest" });
  }
  const redraw = () => {
    updateList(stage, places, place => place.key, makeBox, showBox);
    updateList(list, places, place => place.key, makeRow, showRow);
  };
  const change = (place, box) => { Object.assign(place, { box, is_given: true, isChanged: true }); redraw(); };
  /** Write a place into the prompt. A check that was sent before that does not know it yet. */
  const write = async place => {
    const region = place.is_given ? boxText(place.box) : ANYWHERE;
    place.isChanged = true;
    announce(describe(place));
    await edit(place.token, { region, mention: place.number });
    if (!place.timer && region === (place.is_given ? boxText(place.box) : ANYWHERE)) place.isChanged = false;
  };
  const remove = place => { place.is_given = false; redraw(); write(place); };
  const add = place => { change(place, place.box.map(snap).map(tidy)); write(place); };
  const find = element => places.find(place => place.key === element?.closest("[data-key]")?.dataset.key);

  function makeBox(place) {
    const box = h("div", { tabindex: 0, role: "application", "aria-roledescription": "movable box" },
      h("span", { class: "place-name" }), CORNERS.map(corner => h("span", { class: `place-handle ${corner}`, dataset: { corner } })));
    showBox(box, place);
    return box;
  }
  function showBox(box, place) {
    box.className = ["place-box", subjectClass(places.indexOf(place)), !place.is_given && "anywhere"].filter(Boolean).join(" ");
    box.firstElementChild.textContent = place.name;
    box.setAttribute("aria-label", describe(place));
    const [left, top, right, bottom] = place.box;
    for (const [name, share] of [["left", left], ["top", top], ["width", right - left], ["height", bottom - top]]) box.style.setProperty(name, `${100 * share}%`);
  }
  function makeRow(place) {
    const action = h("button", { type: "button", class: "button small", onclick: event => { const own = find(event.target); (own.is_given ? remove : add)(own); } });
    const row = h("li", { class: "place-row" }, h("span", { class: "place-swatch", "aria-hidden": "true" }), h("span", { class: "grow" }), action);
    showRow(row, place);
    return row;
  }
  function showRow(row, place) {
    const [swatch, text, action] = row.children;
    swatch.className = `place-swatch ${subjectClass(places.indexOf(place))}`;
    fill(text, h("strong", {}, place.name), h("span", { class: "muted" }, place.is_given ? ` ${boxWords(place.box)}` : " any place"));
    action.textContent = place.is_given ? "Remove" : "Add";
    action.setAttribute("aria-label", `${action.textContent} the box of ${place.name}`);
  }

  followPointer(stage, { find, places: () => places, change, write, restore: (place, former) => { Object.assign(place, former); redraw(); } });
  stage.addEventListener("keydown", event => {
    const place = find(event.target), arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!place || event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrow) {
      change(place, boxAfterKey(place.is_given ? place.box : place.box.map(snap), arrow, event.shiftKey));
      clearTimeout(place.timer);
      place.timer = setTimeout(() => { place.timer = null; write(place); }, KEY_PAUSE);
    } else if (event.key === "Delete" || event.key === "Backspace") remove(place);
    else if (event.key === "Enter" && !place.is_given) add(place);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  panel.addEventListener("keydown", event => {
    const key = event.key.toLowerCase();
    if (!(event.ctrlKey || event.metaKey) || (key !== "z" && key !== "y")) return;
    event.preventDefault();
    const waiting = places.filter(place => place.timer);
    for (const place of waiting) {
      clearTimeout(place.timer);
      Object.assign(place, { timer: null, isChanged: false });
    }
    if (waiting.length) show(checked);
    else undo(key === "y" || event.shiftKey);
  });
  const showForm = () => {
    const { width, height, init, compose } = form.values;
    const ratio = Number(width) / Number(height);
    stage.style.setProperty("--ratio", Number.isFinite(ratio) ? clamp(ratio, 0.25, 4) : 1);
    const blended = checked.find(place => place.has_window);
    note.textContent = init ? "The starting image is the layout: places do not count while it is used."
      : compose === false ? "Places count only with “Compose”, under Advanced."
        : blended ? `Places do not count: ${blended.name} acts in a part of the sampling only (@).` : "";
    note.hidden = !note.textContent;
  };
  form.onChange(showForm);
  showForm();
  function show(newest) {
    checked = newest;
    root.hidden = checked.length < 2 && !checked.some(place => place.is_given);
    places = checked.map(place => {
      const key = `${place.number} ${place.name}`, former = places.find(other => other.key === key) ?? { key };
      return former.isChanged ? former : Object.assign(former, place);
    });
    redraw();
    showForm();
  }
  return { root, show };
}

const describe = place => `${place.name}, ${place.is_given ? boxWords(place.box) : "any place"}`;

/** Dragging: a box moves, its corners resize it, and across a dashed one or an empty part of the image a box is drawn. */
function followPointer(stage, { find, places, change, write, restore }) {
  stage.addEventListener("pointerdown", event => {
    const onBox = find(event.target), place = onBox ?? places().find(other => !other.is_given);
    if (event.button !== 0 || !place) return;
    event.preventDefault();
    stage.querySelector(`[data-key="${CSS.escape(place.key)}"]`).focus({ preventScroll: true });
    const area = stage.getBoundingClientRect(), former = { box: place.box, is_given: place.is_given, isChanged: place.isChanged };
    const at = moved => ({ x: (moved.clientX - area.left) / area.width, y: (moved.clientY - area.top) / area.height });
    const drag = dragger(place, at(event), event.target.dataset.corner);
    let isMoved = false;
    const onMove = moved => {
      if (!isMoved && Math.hypot(moved.clientX - event.clientX, moved.clientY - event.clientY) < 4) return;
      isMoved = true;
      change(place, drag(at(moved)));
    };
    const end = ended => {
      stage.removeEventListener("pointermove", onMove);
      for (const name of ["pointerup", "pointercancel"]) stage.removeEventListener(name, end);
      if (ended.type === "pointercancel") restore(place, former);
      else if (isMoved) write(place);
    };
    stage.setPointerCapture(event.pointerId);
    stage.addEventListener("pointermove", onMove);
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, end);
  });
}

/** Return the function from where the pointer is to the box. */
function dragger({ box, is_given: isGiven }, start, corner) {
  const [left, top, right, bottom] = box;
  if (!isGiven) return point => spannedBox({ x: snap(start.x), y: snap(start.y) }, point);
  if (!corner) return point => movedBox(box, left + point.x - start.x, top + point.y - start.y);
  const fixed = { x: corner.includes("w") ? right : left, y: corner.includes("n") ? bottom : top };
  return point => spannedBox(fixed, point);
}
