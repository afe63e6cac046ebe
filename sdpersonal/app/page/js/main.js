// Start the page: the header, the tabs with their addresses, the theme, and the queue at the foot.
//
// A tab's module exports `mount(root)`, called when the tab is shown first. It may return {show(path), hide()}: path are
// the parts of the address after the tab's name, so that #train/abc shows the training "abc".

import { api, app, emit, events, saved } from "./api.js";
import { fill, h } from "./dom.js";
import { menuButton, showError, toast } from "./ui.js";

const TABS = {
  generate: { load: () => import("./generate.js"), styles: ["generate"] },
  train: { load: () => import("./train.js"), styles: ["train"] },
  library: { load: () => import("./library.js"), styles: ["library"] },
  models: { load: () => import("./models.js"), styles: ["library"] },
};
const mounted = new Map();
let current = null;

/** Load a style sheet once; those of other tabs would delay the first paint. */
function loadStyle(name) {
  const url = new URL(`../css/${name}.css`, import.meta.url).href;
  if ([...document.styleSheets].some(sheet => sheet.href === url)) return null;
  return new Promise((resolve, reject) => {
    document.head.append(h("link", { rel: "stylesheet", href: url, onload: resolve, onerror: () => reject(new Error("A style sheet could not be loaded.")) }));
  });
}

/** Go to a tab: go("train", "abc"). */
export function go(tab, ...path) {
  const target = `#${[tab, ...path].map(encodeURIComponent).join("/")}`;
  if (location.hash === target) show();
  else location.hash = target;
}

function readAddress() {
  const [tab, ...path] = location.hash.slice(1).split("/").map(part => { try { return decodeURIComponent(part); } catch { return ""; } });
  return TABS[tab] ? { tab, path } : { tab: app.state.start ?? "generate", path: [] };
}

async function show() {
  const { tab, path } = readAddress();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close(); // the browser's Back leaves them too
  if (current !== tab) mounted.get(current)?.hide?.();
  current = tab;
  document.body.dataset.tab = tab;
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.dataset.tab === tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const root = document.getElementById(`tab-${tab}`);
  for (const section of document.querySelectorAll("main > .tab")) section.hidden = section !== root;
  if (!mounted.has(tab)) {
    document.getElementById("loading").hidden = false;
    mounted.set(tab, {});
    try {
      const [module] = await Promise.all([TABS[tab].load(), ...TABS[tab].styles.map(loadStyle)]);
      mounted.set(tab, module.mount(root) ?? {});
    } catch (error) {
      mounted.delete(tab);
      showError(error);
      fill(root, h("p", { class: "empty" }, "This tab could not be loaded. Reload the page."));
    }
  }
  document.getElementById("loading").hidden = true;
  if (current === tab) mounted.get(tab)?.show?.(path);
}

const theme = saved("theme", "system");

function applyTheme(choice) {
  // theme.js reads this before the page knows its user.
  try { localStorage.setItem("sdpersonal.theme", JSON.stringify(choice)); } catch { /* no storage */ }
  theme.set(choice);
  if (choice === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
}

function headerMenu() {
  const choice = (value, label) => ({ label, checked: theme.value === value, run: () => applyTheme(value) });
  return menuButton("Page menu", () => [
    choice("system", "Theme: as the system"), choice("light", "Theme: light"), choice("dark", "Theme: dark"),
    ...(menuItems.length ? [null, ...menuItems.flatMap(make => make())] : []),
    ...(app.state.user ? [null, { label: `Log out ${app.state.user}`, run: () => { location.href = "/logout"; } }] : []),
  ], { iconName: "menu" });
}

const menuItems = [];
/** Add items to the page's menu. make: as for `menuButton`. */
export const addMenuItems = make => menuItems.push(make);

function showModel(model) {
  app.state.model = model;
  const place = model.device === "cuda" ? "GPU" : "CPU";
  fill(document.getElementById("model-chip"), h("span", { class: "visually-hidden" }, "Loaded model: "),
    h("strong", {}, model.name), h("span", { class: "model-detail" }, ` ${model.resolution} px, ${model.precision}, ${place}`));
}

async function start() {
  app.state = await api.get("/app/state");
  showModel(app.state.model);
  fill(document.getElementById("header-menu"), headerMenu());
  events.on("model", data => {
    if (data.model) showModel(data.model);
    if (!data.loading) emit("model-loaded", {});
  });
  let lost = false;
  events.on("lost", () => { lost = true; document.body.classList.add("offline"); });
  events.on("connected", () => {
    document.body.classList.remove("offline");
    if (lost) toast("The app answers again.", { kind: "good", seconds: 3 });
    lost = false;
  });
  events.on("closing", () => toast("The app is closing. What was finished is saved.", { seconds: 30 }));
  addEventListener("hashchange", show);
  for (const name of ["dragover", "drop"]) { // a file that misses its place would be opened instead of the page
    addEventListener(name, event => { if (event.dataTransfer?.types.includes("Files")) event.preventDefault(); });
  }
  await show();
  await import("./queue.js").then(module => module.mountQueue(document.getElementById("queue"))).catch(showError);
  events.connect(); // "connected" then asks for the queue
}

start().catch(error => {
  showError(error);
  document.getElementById("loading").hidden = true;
  fill(document.getElementById("tab-generate"), h("p", { class: "empty" }, `${error.message ?? error} `,
    h("button", { class: "button", type: "button", onclick: () => location.reload() }, "Try again"))).hidden = false;
});
