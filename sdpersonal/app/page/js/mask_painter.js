// A canvas over an image, on which a mask is painted. Strokes are kept as points, so that each can be undone.

import { h } from "./dom.js";

const STEP = 8; // pixels that an arrow key moves the brush

/** Make the canvas. picture: an HTMLImageElement; former: an image of the mask to go on from, or null. */
export function maskPainter(picture, former = null) {
  const { naturalWidth: width, naturalHeight: height } = picture;
  const canvas = h("canvas", {
    width, height, class: "paint-canvas", tabindex: 0, role: "application", "aria-label": "Mask over the image", "aria-describedby": "paint-help",
  });
  const cursor = h("span", { class: "paint-cursor", "aria-hidden": "true", hidden: true });
  picture.alt = "";
  const root = h("div", { class: "paint-area" }, picture, canvas, cursor);
  root.style.setProperty("width", `min(100%, ${Math.max(width, 480)}px, calc((100dvh - 330px) * ${width / height}))`);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
  const strokes = [];
  let base = former && paintOf(former, width, height, colour), erasing = false, current = null, at = { x: width / 2, y: height / 2 };
  const painter = {
    root, size: Math.round(Math.max(width, height) / 8), maxSize: Math.round(Math.max(width, height) / 2), onSize: () => {},
    erase(on) { erasing = on; },
    get isEmpty() { return !context.getImageData(0, 0, width, height).data.some((value, place) => place % 4 === 3 && value > 127); },
    undo() { if (!strokes.pop()) base = null; redraw(); },
    clear() { strokes.length = 0; base = null; redraw(); },
    toBlob: () => exportMask(canvas),
    start() { redraw(); canvas.focus(); addEventListener("resize", showCursor); },
    end() { removeEventListener("resize", showCursor); },
  };

  function redraw() {
    context.clearRect(0, 0, width, height);
    if (base) {
      context.globalCompositeOperation = "source-over";
      context.drawImage(base, 0, 0);
    }
    strokes.forEach(stroke => drawStroke(context, stroke, colour));
  }
  function add(point, isNew) {
    at = { x: Math.min(width, Math.max(0, point.x)), y: Math.min(height, Math.max(0, point.y)) };
    if (isNew) strokes.push(current = { points: [], size: painter.size, erase: erasing });
    if (current) {
      current.points.push(at);
      drawStroke(context, { ...current, points: current.points.slice(-2) }, colour);
    }
    showCursor();
  }
  function showCursor() {
    const scale = canvas.clientWidth / width;
    cursor.hidden = false;
    for (const [name, value] of [["left", at.x * scale + canvas.offsetLeft], ["top", at.y * scale + canvas.offsetTop], ["width", painter.size * scale], ["height", painter.size * scale]]) {
      cursor.style.setProperty(name, `${value}px`);
    }
  }
  const place = event => ({ x: (event.offsetX * width) / canvas.clientWidth, y: (event.offsetY * height) / canvas.clientHeight });
  canvas.addEventListener("pointerdown", event => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    add(place(event), true);
  });
  canvas.addEventListener("pointermove", event => add(place(event), false));
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { current = null; });
  canvas.addEventListener("pointerleave", () => { cursor.hidden = true; });
  canvas.addEventListener("focus", showCursor);
  canvas.addEventListener("keydown", event => onKey(event, painter, { get at() { return at; }, add, showCursor, stop: () => { current = null; } }));
  canvas.addEventListener("keyup", event => { if (event.key === " ") current = null; });
  return painter;
}

function onKey(event, painter, brush) {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const move = moves[event.key];
  if (move) {
    const step = STEP * (event.shiftKey ? 4 : 1);
    brush.add({ x: brush.at.x + move[0] * step, y: brush.at.y + move[1] * step }, false); // paints while Space is held
  } else if (event.key === " ") {
    if (!event.repeat) brush.add(brush.at, true);
  } else if (event.key === "[" || event.key === "]") {
    painter.size = Math.min(painter.maxSize, Math.max(4, Math.round(painter.size * (event.key === "]" ? 1.2 : 1 / 1.2))));
    painter.onSize(painter.size);
    brush.showCursor();
  } else if ((event.ctrlKey || event.metaKey) && event.key === "z") painter.undo();
  else return;
  event.preventDefault();
}

function drawStroke(context, { points, size, erase }, colour) {
  context.globalCompositeOperation = erase ? "destination-out" : "source-over";
  Object.assign(context, { strokeStyle: colour, fillStyle: colour, lineWidth: size, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  if (points.length === 1) {
    context.arc(points[0].x, points[0].y, size / 2, 0, 2 * Math.PI);
    context.fill();
    return;
  }
  points.forEach(({ x, y }, place) => (place ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
}

/** Return a canvas with paint where a mask is white. */
function paintOf(mask, width, height, colour) {
  return changed(mask, width, height, (data, place) => data.fill(data[place] > 127 ? 255 : 0, place, place + 4), context => {
    context.globalCompositeOperation = "source-in";
    context.fillStyle = colour;
    context.fillRect(0, 0, width, height);
  });
}

/** Return a copy as a canvas, each pixel changed by change(data, place). */
function changed(source, width, height, change, finish = () => {}) {
  const copy = h("canvas", { width, height }), context = copy.getContext("2d");
  context.drawImage(source, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let place = 0; place < pixels.data.length; place += 4) change(pixels.data, place);
  context.putImageData(pixels, 0, 0);
  finish(context);
  return copy;
}

/** The mask as PNG: painted parts white, the others black. */
function exportMask(canvas) {
  const copy = changed(canvas, canvas.width, canvas.height, (data, place) => {
    data.fill(data[place + 3] > 127 ? 255 : 0, place, place + 3);
    data[place + 3] = 255;
  });
  return new Promise(resolve => copy.toBlob(resolve, "image/png"));
}
