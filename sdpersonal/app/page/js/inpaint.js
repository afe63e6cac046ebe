// The dialog for inpainting: paint over what is to be generated again, with pointer or keyboard.

import { api } from "./api.js";
import { h } from "./dom.js";
import { segmented, slider } from "./fields.js";
import { form } from "./form.js";
import { maskPainter } from "./mask_painter.js";
import { button, openDialog, showError, toast } from "./ui.js";

/** Open the dialog for a starting image, as in the form; more: fields of the form that are set with it. */
export async function openInpaint(init, more = {}) {
  try {
    const picture = await load(init.url);
    const former = form.values.mask && sameImage(form.values.init, init) ? await load(maskUrl(form.values.mask)) : null;
    const painter = maskPainter(picture, former);
    const done = await openDialog({
      title: "Paint what is to be generated again", wide: true, className: "inpaint",
      content: () => [tools(painter), painter.root, h("p", { class: "field-help", id: "paint-help" },
        "Everything else stays as it is. By keyboard: the arrow keys move the brush, Space paints, Shift moves it faster, [ and ] change its size.")],
      buttons: close => [
        button("Cancel", { onclick: () => close() }),
        button("Use this mask", { kind: "primary", onclick: () => (painter.isEmpty ? toast("Nothing is painted yet.", { kind: "error" }) : close(true)) }),
      ],
      onOpen: () => painter.start(),
    });
    painter.end();
    if (!done) return;
    const [upload] = await api.upload([new File([await painter.toBlob()], "mask.png", { type: "image/png" })]);
    const answer = await api.post("/app/init-images", { upload });
    form.set({ init, mask: answer.init.saved, ...more });
    toast("Generate now makes the painted part again, from the prompt in the form.", { kind: "good" });
  } catch (error) {
    showError(error);
  }
}

const sameImage = (a, b) => Boolean(a && b) && a.image === b.image && a.saved === b.saved;
const maskUrl = name => `/app/init-images/${name}.png`;

async function load(url) {
  const picture = new Image();
  picture.src = url;
  try { await picture.decode(); } catch { throw new Error("The starting image is no longer there. Choose another."); }
  return picture;
}

function tools(painter) {
  const tool = segmented({ label: "Tool", hideLabel: true, value: "brush", choices: [{ value: "brush", label: "Brush", iconName: "brush" }, { value: "eraser", label: "Eraser" }], onChange: value => painter.erase(value === "eraser") });
  const size = slider({ label: "Size of the brush", min: 4, max: painter.maxSize, step: 1, value: painter.size, onInput: value => { painter.size = value; } });
  painter.onSize = value => { size.value = value; };
  return h("div", { class: "row paint-tools" }, tool.root, h("div", { class: "grow" }, size.root),
    button("Undo", { iconName: "undo", onclick: () => painter.undo() }),
    button("Clear", { onclick: () => painter.clear() }));
}
