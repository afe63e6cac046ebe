// The loss curve: axes with values, the samples' steps marked, and a readout for the pointer and the keyboard.

import { fill, h, svg } from "./dom.js";

const NARROW = matchMedia("(max-width: 760px)").matches;
const WIDTH = NARROW ? 360 : 720, HEIGHT = 164, LEFT = 48, RIGHT = 12, TOP = 12, BOTTOM = 26;
const Y_MARKS = 4, X_MARKS = NARROW ? 3 : 6;

/** Make the plot. Returns {root, update({curve, steps, samples: [step], best})}. */
export function lossCurve() {
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "curve", tabindex: 0, role: "img" });
  const readout = h("p", { class: "curve-readout", "aria-live": "polite" });
  const root = h("figure", { class: "curve-figure" }, h("figcaption", { class: "row spread" }, h("h3", {}, "Loss"), readout), plot);
  const state = { data: null, index: -1, text: "" };
  const cursor = svg("g", { class: "curve-cursor", visibility: "hidden" }, svg("line", { y1: TOP, y2: HEIGHT - BOTTOM }), svg("circle", { r: 4 }));
  const point = index => {
    const { scale, average } = state.data;
    const [step, loss] = average[index];
    state.index = index;
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("transform", `translate(${scale.x(step)} 0)`);
    cursor.lastChild.setAttribute("cy", scale.y(loss));
    readout.textContent = `Step ${step}: ${numberText(loss)}`;
  };
  const leave = () => { cursor.setAttribute("visibility", "hidden"); readout.textContent = state.text; state.index = -1; };
  plot.addEventListener("pointermove", event => {
    if (!state.data) return;
    const area = plot.getBoundingClientRect(), x = ((event.clientX - area.left) / area.width) * WIDTH;
    point(nearest(state.data.average, state.data.scale.step(x)));
  });
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("focus", () => state.data && point(state.data.average.length - 1));
  plot.addEventListener("keydown", event => {
    const last = (state.data?.average.length ?? 0) - 1, by = event.shiftKey ? 10 : 1;
    const index = { ArrowLeft: state.index - by, ArrowRight: state.index + by, Home: 0, End: last }[event.key];
    if (index === undefined || last < 0) return;
    event.preventDefault();
    point(Math.max(0, Math.min(last, index)));
  });
  return {
    root,
    update({ curve, steps, samples, best }) {
      const points = curve?.points ?? [], average = curve?.average?.length ? curve.average : points;
      root.hidden = points.length < 2;
      if (root.hidden) return;
      const scale = makeScale(points, average, steps);
      state.data = { scale, average };
      fill(plot, axes(scale), line(points, scale, "curve-points"), line(average, scale, "curve-average"),
        samples.map(step => mark(step, average, scale, step === best)), cursor);
      const [first, last] = [average[0], average.at(-1)];
      state.text = `${numberText(first[1])} at step ${first[0]}, ${numberText(last[1])} at step ${last[0]}`;
      plot.setAttribute("aria-label", `Loss by step: ${state.text}. Left and right arrow keys read the values.`);
      if (state.index < 0) readout.textContent = state.text;
    },
  };
}

/** Three digits, without the exponents of very small numbers where they are not needed. */
function numberText(value) {
  if (value === 0) return "0";
  return Math.abs(value) >= 0.001 && Math.abs(value) < 10000 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

/** A step between marks that people can read: 1, 2 or 5 times a power of ten. */
function niceStep(range, marks) {
  const rough = range / Math.max(1, marks), power = 10 ** Math.floor(Math.log10(rough || 1));
  return [1, 2, 5, 10].map(factor => factor * power).find(step => step >= rough * 0.999);
}

function makeScale(points, average, steps) {
  // A few wild losses at the start must not flatten the rest: the axis ends above the curve and most of the points.
  const losses = points.map(([, loss]) => loss).sort((a, b) => a - b);
  const most = losses[Math.floor(0.98 * (losses.length - 1))];
  const max = Math.max(most, ...average.map(([, loss]) => loss)) || 1;
  const yStep = niceStep(max, Y_MARKS), top = Math.ceil(max / yStep - 1e-9) * yStep;
  const last = Math.max(steps || 0, points.at(-1)[0], 1), xStep = Math.max(1, niceStep(last, X_MARKS));
  const clamp = loss => Math.max(0, Math.min(top, loss));
  return {
    top, last, yStep, xStep,
    x: step => LEFT + (step / last) * (WIDTH - LEFT - RIGHT),
    y: loss => HEIGHT - BOTTOM - (clamp(loss) / top) * (HEIGHT - TOP - BOTTOM),
    step: x => ((x - LEFT) / (WIDTH - LEFT - RIGHT)) * last,
  };
}

function axes({ top, last, yStep, xStep, x, y }) {
  const parts = [];
  for (let value = 0; value <= top * 1.001; value += yStep) {
    parts.push(svg("line", { class: "curve-grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { class: "curve-label", x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, numberText(value)));
  }
  for (let step = 0; step <= last; step += xStep) {
    parts.push(svg("text", { class: "curve-label", x: x(step), y: HEIGHT - 8, "text-anchor": step ? "middle" : "start" }, step.toLocaleString()));
  }
  return parts;
}

const line = (points, { x, y }, className) =>
  svg("polyline", { class: className, points: points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ") });

function mark(step, average, { x, y }, isBest) {
  const [, loss] = average[nearest(average, step)];
  return svg("circle", { class: isBest ? "curve-sample best" : "curve-sample", cx: x(step), cy: y(loss), r: isBest ? 6 : 4 },
    svg("title", {}, `Samples at step ${step}${isBest ? ", the best so far" : ""}`));
}

function nearest(points, step) {
  let best = 0;
  points.forEach(([other], index) => { if (Math.abs(other - step) < Math.abs(points[best][0] - step)) best = index; });
  return best;
}
