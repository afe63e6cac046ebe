// Build elements. Text always goes in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. props: attributes; `on…` functions are listeners, `class`, `dataset`, `style` (an object) and the
 * properties of PROPERTIES are set as such; null and false are left out. children: nodes, texts, arrays of them, null. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  setProps(element, props);
  append(element, children);
  return element;
}

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "multiple", "readOnly"]);

function setProps(element, props) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || (value === false && !PROPERTIES.has(name))) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.setAttribute("class", Array.isArray(value) ? value.filter(Boolean).join(" ") : value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (PROPERTIES.has(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

/** Replace all children. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

/** Update a list of children by key, keeping the elements of items that stay, so that focus, scroll position and loaded
 * images stay too. make(item) makes an element, update(element, item) refreshes one that stays. */
export function updateList(container, items, key, make, update = () => {}) {
  const old = new Map([...container.children].map(element => [element.dataset.key, element]));
  const focused = container.contains(document.activeElement) ? document.activeElement : null;
  let place = container.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let element = old.get(name);
    old.delete(name);
    if (element) update(element, item);
    else {
      element = make(item);
      element.dataset.key = name;
    }
    if (element === place) place = place.nextElementSibling;
    else container.insertBefore(element, place);
  }
  for (const element of old.values()) element.remove();
  if (focused?.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true }); // it was moved
}

const ICONS = {
  star: "M12 3.6l2.6 5.3 5.8.8-4.2 4.1 1 5.8-5.2-2.7-5.2 2.7 1-5.8L3.6 9.7l5.8-.8z",
  download: "M12 4v11m0 0l-4.5-4.5M12 15l4.5-4.5M4.5 19.5h15",
  trash: "M4.5 7h15M9.5 7V4.5h5V7m-7.5 0l.8 12.5h8.4L17 7M10 10.5v5.5m4-5.5v5.5",
  close: "M6 6l12 12M18 6L6 18",
  plus: "M12 5v14M5 12h14",
  check: "M5 12.5l4.5 4.5L19 7.5",
  left: "M14.5 5.5L8 12l6.5 6.5",
  right: "M9.5 5.5L16 12l-6.5 6.5",
  up: "M5.5 14.5L12 8l6.5 6.5",
  down: "M5.5 9.5L12 16l6.5-6.5",
  rotateLeft: "M5 5v5h5M5.6 9.8A7.5 7.5 0 1 1 4.5 14",
  rotateRight: "M19 5v5h-5M18.4 9.8A7.5 7.5 0 1 0 19.5 14",
  search: "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13zM15.5 15.5L20 20",
  image: "M4.5 5.5h15v13h-15zM4.5 16l4.5-4.5 3.5 3.5 2.5-2.5 4.5 4.5M15.5 9.5h.01",
  menu: "M4.5 7h15M4.5 12h15M4.5 17h15",
  more: "M5.5 12a.5.5 0 1 0 1 0 .5.5 0 1 0-1 0M11.5 12a.5.5 0 1 0 1 0 .5.5 0 1 0-1 0M17.5 12a.5.5 0 1 0 1 0 .5.5 0 1 0-1 0",
  undo: "M8.5 5L4.5 9l4 4M5 9h9a5 5 0 0 1 0 10h-4",
  edit: "M5 19l.8-3.8L15.5 5.5l3 3-9.7 9.7z",
  copy: "M9 9h10.5v10.5H9zM15 9V4.5H4.5V15H9",
  boxes: "M4.5 4.5h6.5v9H4.5zM13 9.5h6.5v10H13z",
  crop: "M7.5 3v13.5H21M3 7.5h13.5V21",
  play: "M8 5.5v13l10-6.5z",
  stop: "M7 7h10v10H7z",
  info: "M12 20.5a8.5 8.5 0 1 0 0-17 8.5 8.5 0 0 0 0 17zM12 11v5M12 8h.01",
  brush: "M19.5 4.5l-8 8M11.5 12.5c-3-1-5 1-5 3.5 0 1.5-1 2.5-2.5 3 3 1 8.5.5 8.5-3.5 0-1.5-.5-2.5-1-3z",
  enlarge: "M4.5 10V4.5H10M19.5 14v5.5H14M4.5 4.5l6 6M19.5 19.5l-6-6",
  shuffle: "M4 7.5h3.5l8 9H20M4 16.5h3.5l2.5-2.8M13 10.3l2.5-2.8H20M17.5 5L20 7.5 17.5 10M17.5 14l2.5 2.5-2.5 2.5",
  compare: "M12 4v16M4.5 6.5H10v11H4.5zM14 6.5h5.5v11H14z",
  upload: "M12 15V4m0 0L7.5 8.5M12 4l4.5 4.5M4.5 19.5h15",
  warning: "M12 4.5l8.5 15h-17zM12 10.5v4M12 17h.01",
};

/** Make an icon. filled: a solid one, such as a star that is on. */
export function icon(name, { filled = false } = {}) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name] ?? ICONS.info);
  path.setAttribute("class", filled ? "filled" : "");
  svg.append(path);
  return svg;
}

/** Make an SVG element, for plots and overlays. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) element.setAttribute(name, value);
  append(element, children);
  return element;
}

/** Return a function that runs `work` once, `milliseconds` after the last call; `.now()` runs it at once if it waits. */
export function debounce(work, milliseconds) {
  let timer = null, last = [];
  const run = () => { timer = null; work(...last); };
  const later = (...values) => { last = values; clearTimeout(timer); timer = setTimeout(run, milliseconds); };
  later.now = () => { if (timer !== null) { clearTimeout(timer); run(); } };
  later.cancel = () => { clearTimeout(timer); timer = null; };
  return later;
}

let count = 0;
/** Return an id that no other element has. */
export const uniqueId = (prefix = "id") => `${prefix}-${++count}`;
