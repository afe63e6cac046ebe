// Talk to the server: requests, uploads, the stream of events; and keep the page's state in the browser.

/** An error that the server words for people. message: what is wrong; hint: what to do; field: of the form, or null. */
class ApiError extends Error {
  constructor(message, { hint = "", field = null, status = 0 } = {}) {
    super(message);
    Object.assign(this, { hint, field, status });
  }
  /** Both sentences. */
  get text() { return [this.message, this.hint].filter(Boolean).join(" "); }
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The app does not answer.", { hint: "Is it still running? Nothing typed here is lost." });
  }
  if (response.status === 401) {
    location.reload(); // the login page
    throw new ApiError("You are logged out.", { status: 401 });
  }
  const text = await response.text();
  let content = null;
  try { content = JSON.parse(text); } catch { /* a text of a proxy or of a limit */ }
  if (!response.ok) {
    const message = content?.error ?? content?.detail?.error ?? (text.length < 300 && !text.startsWith("<") ? text : "");
    throw new ApiError(message || `The app answered with an error (${response.status}).`, {
      hint: content?.hint ?? "", field: content?.field ?? null, status: response.status,
    });
  }
  return content;
}

function query(params) {
  const pairs = Object.entries(params ?? {}).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return pairs.length ? `?${new URLSearchParams(pairs)}` : "";
}

export const api = {
  /** GET a path with parameters; signal: of an AbortController. */
  get: (path, params, { signal } = {}) => send(path + query(params), { signal }),
  /** POST a JSON body. keepalive: also if the page is being closed. */
  post: (path, body = {}, { keepalive = false } = {}) =>
    send(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), keepalive }),
  /** Upload Files or Blobs; onProgress(share from 0 to 1). Returns the paths by which requests name them. */
  upload(files, onProgress = () => {}) {
    const form = new FormData();
    for (const file of files) form.append("files", file, file.name ?? "image.png");
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest(); // fetch tells nothing about an upload's progress
      request.open("POST", "/gradio_api/upload");
      request.upload.onprogress = event => event.lengthComputable && onProgress(event.loaded / event.total);
      request.onload = () => {
        if (request.status === 200) return resolve(JSON.parse(request.responseText));
        if (request.status === 401) location.reload();
        reject(new ApiError(request.responseText.slice(0, 300) || "The upload was refused.", { status: request.status }));
      };
      request.onerror = () => reject(new ApiError("The upload broke off.", { hint: "Try again." }));
      request.send(form);
    });
  },
};

const KINDS = ["jobs", "preview", "image", "gallery", "library", "model", "drafts", "draft", "trainings", "training", "closing"]; // of the server
const listeners = new Map();
let source = null, channel = null;

export const events = {
  /** Listen to events of a kind; returns a function that stops that. "connected" and "lost" are about the stream: after
   * "connected" a page should ask again for what it shows, since it may have missed something. */
  on(kind, listener) {
    if (!listeners.has(kind)) listeners.set(kind, new Set());
    listeners.get(kind).add(listener);
    return () => listeners.get(kind).delete(listener);
  },
  /** Receive the server's events. A browser opens at most six connections to a server, so one of its tabs has the stream
   * and hands the events on to the others; when it is closed, another one takes over. Where the browser has no locks,
   * which it has on this machine and over HTTPS only, each tab has a stream of its own. */
  connect() {
    addEventListener("pagehide", () => source?.close()); // a page that is kept for Back would keep its connection
    addEventListener("pageshow", event => { if (event.persisted) location.reload(); });
    if (!navigator.locks || !window.BroadcastChannel) {
      openStream();
      return;
    }
    const name = `sdpersonal.${app.state?.user ?? ""}.events`, hold = () => { openStream(); return new Promise(() => {}); };
    channel = new BroadcastChannel(name);
    channel.onmessage = ({ data: [kind, data] }) => emit(kind, data);
    navigator.locks.request(name, { ifAvailable: true }, lock => {
      if (lock) return hold();
      emit("connected", {});
      navigator.locks.request(name, hold);
      return undefined;
    });
  },
};

/** Open the stream; the browser opens it again by itself when it breaks. */
function openStream() {
  source = new EventSource("/app/events");
  source.addEventListener("hello", () => share("connected", {}));
  source.onerror = () => {
    share("lost", {});
    if (source.readyState === EventSource.CLOSED) setTimeout(openStream, 3000);
  };
  for (const kind of KINDS) source.addEventListener(kind, event => share(kind, JSON.parse(event.data)));
}

/** Give an event to this tab and to the others. */
function share(kind, data) {
  emit(kind, data);
  channel?.postMessage([kind, data]);
}

/** Call the listeners of a kind: also for those that the page sends to itself, such as "model-loaded". */
export function emit(kind, data) {
  for (const listener of listeners.get(kind) ?? []) {
    try { listener(data); } catch (error) { console.error(error); }
  }
}

/** state: everything of GET /app/state, once `main.js` has loaded it. pendingPrompt: see `usePrompt`. */
export const app = { state: null, pendingPrompt: null };

/** Keep a prompt for the form of the Generate tab, which takes it when it is shown next; generate: starts it too. */
export function usePrompt(prompt, generate = false) {
  app.pendingPrompt = { prompt, generate };
}

/** A value kept in this browser, by user. `.value` reads it, `.set(value)` keeps it. Values are JSON. */
export function saved(name, initial) {
  const key = () => `sdpersonal.${app.state?.user ?? ""}.${name}`;
  let memory; // where the browser keeps nothing
  return {
    get value() {
      try {
        const text = localStorage.getItem(key());
        return text === null ? memory ?? initial : JSON.parse(text);
      } catch { return memory ?? initial; }
    },
    set(value) {
      memory = value;
      try { localStorage.setItem(key(), JSON.stringify(value)); } catch { /* full, or forbidden */ }
    },
  };
}
