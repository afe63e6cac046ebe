"""Lay out the photos of the Train tab: upload, checks, rotation, captions, and leaving photos out."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ...backend.train.photo_files import sample_sets
from ...backend.train.train_page import TrainPage
from ..components import EVENT, EventOptions, session_id, text_line
from .train_form import TrainForm

UPLOAD_HINT = "4 to 10 photos of one subject, each in another place. They stay on this machine."
CLICK_HINT = "Click a photo to rotate it, leave it out or caption it. Only the area in its yellow square is trained on."


@dataclass(frozen=True)
class PhotoComponents:
    """Components that handlers use. chosen: number of the photo that was clicked, None without one."""

    drop: gr.File
    folder: gr.UploadButton
    samples: list[gr.Button]
    tiles: gr.Gallery
    summary: gr.Textbox
    advice: gr.Button
    clear: gr.Button
    chosen: gr.State
    click: gr.Textbox
    panel: gr.Column
    name: gr.Textbox
    leave_out: gr.Button
    turns: dict[int, gr.Button]
    caption: gr.Textbox
    count: gr.State


def photos_box() -> PhotoComponents:
    """Lay out the photos and their actions."""
    drop = gr.File(label="Drop photos here", file_count="multiple", height=150, elem_id="photos-drop", type="filepath")
    text_line(UPLOAD_HINT, "photos-hint")
    with gr.Row():
        folder = gr.UploadButton(
            "Add a folder", file_count="directory", size="sm", min_width=120, elem_id="photos-folder"
        )
        sets = [
            gr.Button(f"Sample photos: {title}", size="sm", min_width=120, elem_id=f"sample-photos-{number}")
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
        elem_id="photos",
    )
    click = text_line(CLICK_HINT, "photos-click", visible=False)
    with gr.Column(visible=False, elem_id="photo") as panel:
        name = text_line("", "photo-name")
        with gr.Row():
            leave_out = gr.Button("Leave out", size="sm", min_width=90, elem_id="photo-leave-out")
            turns = {
                1: gr.Button("Rotate left", size="sm", min_width=90, elem_id="photo-left"),
                3: gr.Button("Rotate right", size="sm", min_width=90, elem_id="photo-right"),
            }
        caption = gr.Textbox(
            label="Caption (optional)",
            placeholder="{} in the snow",
            lines=1,
            max_lines=4,
            max_length=2000,
            info="Name what else is in the photo, so that the concept does not absorb it; {} stands for its token.",
            elem_id="photo-caption",
        )
    summary = text_line("", "photos-review", max_lines=16)
    with gr.Row():
        advice = gr.Button("Apply suggestions", size="sm", min_width=140, visible=False, elem_id="photos-advice")
        clear = gr.Button("Remove all photos", size="sm", min_width=140, visible=False, elem_id="photos-clear")
    return PhotoComponents(
        drop,
        folder,
        sets,
        tiles,
        summary,
        advice,
        clear,
        gr.State(None),
        click,
        panel,
        name,
        leave_out,
        turns,
        caption,
        gr.State(0),
    )


def connect_photos(train_page: TrainPage, photos: PhotoComponents, fields: TrainForm) -> None:
    """Connect the photos' events: every change ends in a new review of the whole set."""
    outputs = [photos.tiles, photos.click, photos.summary, photos.advice, photos.clear, photos.count]

    def review_updates(values, page, message=""):
        review = train_page.review_photos(page, fields.read(values), message)
        has_photos = bool(review.tiles)
        tiles = gr.update(value=review.tiles, visible=has_photos, selected_index=None)
        visibility = gr.update(visible=has_photos)
        return tiles, visibility, review.summary, gr.update(visible=review.has_advice), visibility, review.count

    def on_drop(paths, request: gr.Request, *values):
        page = session_id(request)
        return None, *review_updates(values, page, train_page.add_photos(page, paths))

    def on_folder(paths, request: gr.Request, *values):
        page = session_id(request)
        return review_updates(values, page, train_page.add_photos(page, paths))

    def on_click(chosen: gr.SelectData, request: gr.Request):
        photo = train_page.select_photo(session_id(request), chosen.index)
        label = "Leave out" if photo.used else "Put back"
        return chosen.index, gr.update(visible=bool(photo.name)), photo.name, label, photo.caption

    def on_leave_out(chosen, request: gr.Request, *values):
        page = session_id(request)
        error = train_page.toggle_photo(page, chosen)
        return "Leave out" if train_page.select_photo(page, chosen).used else "Put back", *review_updates(
            values, page, error
        )

    def on_caption(chosen, text, request: gr.Request, *values):
        page = session_id(request)
        return review_updates(values, page, train_page.set_caption(page, chosen, text))

    def on_advice(request: gr.Request, *values):
        page = session_id(request)
        return (
            None,
            gr.update(visible=False),
            *review_updates(values, page, train_page.apply_advice(page, fields.read(values))),
        )

    def on_clear(request: gr.Request, *values):
        page = session_id(request)
        return None, gr.update(visible=False), *review_updates(values, page, train_page.clear(page))

    def on_refresh(request: gr.Request, *values):
        return review_updates(values, session_id(request))

    slow: EventOptions = {
        "concurrency_limit": 2,
        "show_progress": "minimal",
        "show_progress_on": photos.summary,
        "api_visibility": "private",
    }
    photos.drop.upload(on_drop, [photos.drop, *fields.inputs], [photos.drop, *outputs], **slow)
    photos.folder.upload(on_folder, [photos.folder, *fields.inputs], outputs, **slow)
    photos.tiles.select(
        on_click, None, [photos.chosen, photos.panel, photos.name, photos.leave_out, photos.caption], **EVENT
    )
    photos.leave_out.click(on_leave_out, [photos.chosen, *fields.inputs], [photos.leave_out, *outputs], **slow)
    gr.on(
        [photos.caption.submit, photos.caption.blur],
        on_caption,
        [photos.chosen, photos.caption, *fields.inputs],
        outputs,
        **slow,
    )
    for button, work in ((photos.advice, on_advice), (photos.clear, on_clear)):
        button.click(work, fields.inputs, [photos.chosen, photos.panel, *outputs], **slow)
    review_events = [fields.components[name].change for name in ("kind", "crop")] + [fields.noun.blur]
    gr.on(review_events, on_refresh, fields.inputs, outputs, trigger_mode="always_last", **slow)
    for quarters, button in photos.turns.items():
        _connect_rotation(train_page, photos, fields, review_updates, quarters, button, outputs, slow)
    for title, button in zip(sample_sets(), photos.samples, strict=True):
        _connect_samples(train_page, photos, fields, review_updates, title, button, outputs, slow)


def _connect_rotation(train_page, photos, fields, review_updates, quarters, button, outputs, slow) -> None:
    def on_turn(chosen, request: gr.Request, *values):
        page = session_id(request)
        return review_updates(values, page, train_page.rotate_photo(page, chosen, quarters))

    button.click(on_turn, [photos.chosen, *fields.inputs], outputs, **slow)


def _connect_samples(train_page, photos, fields, review_updates, title, button, outputs, slow) -> None:
    def on_sample(request: gr.Request, *values):
        page = session_id(request)
        return None, gr.update(visible=False), *review_updates(values, page, train_page.use_sample_photos(page, title))

    button.click(on_sample, fields.inputs, [photos.chosen, photos.panel, *outputs], **slow)
