// Ctrl+Enter generates; after "<" the matching concepts are offered, to be chosen by arrows and Enter, or a click.
(() => {
  const list = document.createElement("ul");
  list.id = "completion";
  list.setAttribute("role", "listbox");
  list.hidden = true;
  let box = null, found = [], at = 0;

  const tokens = () => (document.querySelector("#tokens textarea, #tokens input")?.value ?? "").split("\n");

  function close() {
    list.hidden = true;
    box?.setAttribute("aria-expanded", "false");
    box = null;
  }

  function show() {
    list.replaceChildren(...found.map((token, i) => {
      const item = document.createElement("li");
      item.id = `completion-${i}`;
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", i === at);
      item.textContent = token;
      item.addEventListener("mousedown", event => { event.preventDefault(); choose(i); });
      return item;
    }));
    const place = box.getBoundingClientRect();
    list.style.left = `${place.left + scrollX}px`;
    list.style.top = `${place.bottom + scrollY}px`;
    list.style.minWidth = `${Math.min(place.width, 240)}px`;
    list.hidden = false;
    box.setAttribute("aria-expanded", "true");
    box.setAttribute("aria-controls", "completion");
    box.setAttribute("aria-activedescendant", `completion-${at}`);
    list.children[at]?.scrollIntoView({ block: "nearest" });
  }

  function choose(i) {
    const before = box.value.slice(0, box.selectionStart), after = box.value.slice(box.selectionStart);
    const start = before.lastIndexOf("<");
    const text = before.slice(0, start) + found[i];
    const field = box;
    close();
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(field, text + after);
    field.setSelectionRange(text.length, text.length);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  document.addEventListener("input", event => {
    const field = event.target;
    if (!field.matches?.("#prompt textarea, #negative textarea")) return;
    const begun = /<([a-z0-9\/-]*)$/i.exec(field.value.slice(0, field.selectionStart));
    const part = begun?.[1].toLowerCase();
    found = begun ? tokens().filter(token => token.includes(part)).slice(0, 8) : [];
    if (!found.length) return close();
    box = field;
    at = 0;
    show();
  });

  document.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      close();
      document.querySelector("#generate")?.click();
    } else if (!list.hidden && event.target === box) {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step) {
        at = (at + step + found.length) % found.length;
        show();
      } else if (event.key === "Enter" || event.key === "Tab") choose(at);
      else if (event.key === "Escape") close();
      else return;
      event.preventDefault();
      event.stopPropagation();
    }
  }, true);

  // On a phone the images are below everything else.
  document.addEventListener("click", event => {
    if (innerWidth < 768 && event.target.closest?.("#generate, #endless, #generate-grid")) {
      document.querySelector("#status")?.scrollIntoView({ behavior: "smooth" });
    }
  });

  document.addEventListener("focusout", event => { if (event.target === box) close(); });
  document.addEventListener("DOMContentLoaded", () => document.body.append(list));
  if (document.body) document.body.append(list);
})();
