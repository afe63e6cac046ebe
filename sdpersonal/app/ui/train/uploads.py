"""Lay out the photos of the Train tab: upload, checks, rotation, captions, and leaving photos out."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ...backend.train.page import TrainPage
from ...backend.train.uploads import sample_sets
from ..shared import QUICK_EVENT, text_line
from .form import TrainForm

UPLOAD_HINT = "4 to 10 photos of one thing, each in another place. They stay on this machine."
CLICK_HINT = (
    "Click a photo to turn it, leave it out or describe it. Only what is inside its yellow square is learned from."
)


@dataclass(frozen=True)
class PhotoComponents:
    """Components that handlers use. chosen: number of the photo that was clicked, None without one."""

    drop: gr.File
    folder: gr.UploadButton
    samples: list[gr.Button]
    tiles: gr.Gallery
    words: gr.Textbox
    advice: gr.Button
    clear: gr.Button
    chosen: gr.State
    click: gr.Textbox
    panel: gr.Column
    name: gr.Textbox
    out: gr.Button
    turns: dict[int, gr.Button]
    caption: gr.Textbox
    count: gr.State


def photos_box() -> PhotoComponents:
    """Lay out the photos and their actions."""
    drop = gr.File(label="Drop photos here", file_count="multiple", height=150, elem_id="make-drop", type="filepath")
    text_line(UPLOAD_HINT, "make-hint")
    with gr.Row():
        folder = gr.UploadButton(
            "A whole folder", file_count="directory", size="sm", min_width=120, elem_id="make-folder"
        )
        sets = [
            gr.Button(f"Try with: {title}", size="sm", min_width=120, elem_id=f"make-sample-{number}")
            for number, title in enumerate(sample_sets())
        ]
    tiles = gr.Gallery(
        label="Your photos",
        show_label=False,
        columns=4,
        height="auto",
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=False,
        object_fit="contain",
        elem_id="make-tiles",
    )
    click = text_line(CLICK_HINT, "make-click", visible=False)
    with gr.Column(visible=False, elem_id="make-photo") as panel:
        name = text_line("", "make-photo-name")
        with gr.Row():
            out = gr.Button("Leave out", size="sm", min_width=90, elem_id="make-out")
            turns = {
                1: gr.Button("Turn left", size="sm", min_width=90, elem_id="make-left"),
                3: gr.Button("Turn right", size="sm", min_width=90, elem_id="make-right"),
            }
        caption = gr.Textbox(
            label="What else is in it? (if you like)",
            placeholder="{} in the snow",
            lines=1,
            max_lines=4,
            max_length=2000,
            info="Write {} where your subject's word goes. What is named here, the word need not learn.",
            elem_id="make-caption",
        )
    words = text_line("", "make-verdict", max_lines=16)
    with gr.Row():
        advice = gr.Button("Do what I can about it", size="sm", min_width=140, visible=False, elem_id="make-advice")
        clear = gr.Button("Remove all photos", size="sm", min_width=140, visible=False, elem_id="make-clear")
    return PhotoComponents(
        drop,
        folder,
        sets,
        tiles,
        words,
        advice,
        clear,
        gr.State(None),
        click,
        panel,
        name,
        out,
        turns,
        caption,
        gr.State(0),
    )


def connect_photos(workshop: TrainPage, photos: PhotoComponents, fields: TrainForm) -> None:
    """Connect the photos' events: every change ends in a new review of the whole set."""
    shown = [photos.tiles, photos.click, photos.words, photos.advice, photos.clear, photos.count]

    def looked(values, page, said=""):
        review = workshop.review_photos(page, fields.read(values), said)
        has_photos = bool(review.tiles)
        tiles = gr.update(value=review.tiles, visible=has_photos, selected_index=None)
        visibility = gr.update(visible=has_photos)
        return tiles, visibility, review.summary, gr.update(visible=review.has_advice), visibility, review.count

    def on_drop(paths, request: gr.Request, *values):
        page = request.session_hash
        return None, *looked(values, page, workshop.add_photos(page, paths))

    def on_folder(paths, request: gr.Request, *values):
        page = request.session_hash
        return looked(values, page, workshop.add_photos(page, paths))

    def on_click(chosen: gr.SelectData, request: gr.Request):
        photo = workshop.select_photo(request.session_hash, chosen.index)
        out = "Leave out" if photo.used else "Put back"
        return chosen.index, gr.update(visible=bool(photo.name)), photo.name, out, photo.caption

    def on_out(chosen, request: gr.Request, *values):
        page = request.session_hash
        error = workshop.toggle_photo(page, chosen)
        return "Leave out" if workshop.select_photo(page, chosen).used else "Put back", *looked(values, page, error)

    def on_caption(chosen, text, request: gr.Request, *values):
        page = request.session_hash
        return looked(values, page, workshop.set_caption(page, chosen, text))

    def on_advice(request: gr.Request, *values):
        page = request.session_hash
        return None, gr.update(visible=False), *looked(values, page, workshop.apply_advice(page, fields.read(values)))

    def on_clear(request: gr.Request, *values):
        page = request.session_hash
        return None, gr.update(visible=False), *looked(values, page, workshop.clear(page))

    def on_look(request: gr.Request, *values):
        return looked(values, request.session_hash)

    slow = QUICK_EVENT | {"show_progress": "minimal", "show_progress_on": photos.words, "concurrency_limit": 2}
    photos.drop.upload(on_drop, [photos.drop, *fields.inputs], [photos.drop, *shown], **slow)
    photos.folder.upload(on_folder, [photos.folder, *fields.inputs], shown, **slow)
    photos.tiles.select(
        on_click, None, [photos.chosen, photos.panel, photos.name, photos.out, photos.caption], **QUICK_EVENT
    )
    photos.out.click(on_out, [photos.chosen, *fields.inputs], [photos.out, *shown], **slow)
    gr.on(
        [photos.caption.submit, photos.caption.blur],
        on_caption,
        [photos.chosen, photos.caption, *fields.inputs],
        shown,
        **slow,
    )
    for button, work in ((photos.advice, on_advice), (photos.clear, on_clear)):
        button.click(work, fields.inputs, [photos.chosen, photos.panel, *shown], **slow)
    review_events = [fields.components[name].change for name in ("kind", "crop")] + [fields.components["noun"].blur]
    gr.on(review_events, on_look, fields.inputs, shown, trigger_mode="always_last", **slow)
    for quarters, button in photos.turns.items():
        _connect_rotation(workshop, photos, fields, looked, quarters, button, shown, slow)
    for title, button in zip(sample_sets(), photos.samples, strict=True):
        _connect_samples(workshop, photos, fields, looked, title, button, shown, slow)


def _connect_rotation(workshop, photos, fields, looked, quarters, button, shown, slow) -> None:
    def on_turn(chosen, request: gr.Request, *values):
        page = request.session_hash
        return looked(values, page, workshop.rotate_photo(page, chosen, quarters))

    button.click(on_turn, [photos.chosen, *fields.inputs], shown, **slow)


def _connect_samples(workshop, photos, fields, looked, title, button, shown, slow) -> None:
    def on_sample(request: gr.Request, *values):
        page = request.session_hash
        return None, gr.update(visible=False), *looked(values, page, workshop.use_sample_photos(page, title))

    button.click(on_sample, fields.inputs, [photos.chosen, photos.panel, *shown], **slow)
