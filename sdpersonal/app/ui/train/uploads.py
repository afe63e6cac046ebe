"""Lay out the photos of the Train tab: upload, checks, rotation, captions, and leaving photos out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr
from gradio.components import Component

from ...backend.train.photo_files import sample_sets
from ...backend.train.train_page import TrainPage
from ..components import EVENT, EventOptions, session_id, text_line
from ..file_inputs import FileButton, FileDrop
from .train_form import TrainForm

UPLOAD_HINT = "4 to 10 photos of one subject, each in another place. They stay on this machine."
CLICK_HINT = "Click a photo to rotate it, leave it out or caption it. Only the area in its yellow square is trained on."


@dataclass(frozen=True)
class PhotoComponents:
    """Components that handlers use. chosen: number of the photo that was clicked, None without one."""

    drop: FileDrop
    folder: FileButton
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
    drop = FileDrop(label="Drop photos here", file_count="multiple", height=150, elem_id="photos-drop", type="filepath")
    text_line(UPLOAD_HINT, "photos-hint")
    with gr.Row():
        folder = FileButton("Add a folder", file_count="directory", size="sm", min_width=120, elem_id="photos-folder")
        sets = [
            gr.Button(f"Samples: {title}", size="sm", min_width=120, elem_id=f"sample-photos-{number}")
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


def connect_photos(train_page: TrainPage, photos: PhotoComponents, form: TrainForm) -> None:
    """Connect the photos' events: every change ends in a new review of the whole set."""
    outputs = [photos.tiles, photos.click, photos.summary, photos.advice, photos.clear, photos.count]
    slow: EventOptions = {
        "concurrency_limit": 2,
        "show_progress": "minimal",
        "show_progress_on": photos.summary,
        "api_visibility": "private",
    }

    def review(request: gr.Request, values: tuple, message: str = "") -> tuple:
        result = train_page.review_photos(session_id(request), form.read(values), message)
        tiles = gr.update(value=result.tiles, visible=bool(result.tiles), selected_index=None)
        visibility = gr.update(visible=bool(result.tiles))
        return tiles, visibility, result.summary, gr.update(visible=result.has_advice), visibility, result.count

    def on_drop(paths, request: gr.Request, *values):
        return None, *review(request, values, train_page.add_photos(session_id(request), paths))

    def on_folder(paths, request: gr.Request, *values):
        return review(request, values, train_page.add_photos(session_id(request), paths))

    def on_advice(request: gr.Request, *values):
        message = train_page.apply_advice(session_id(request), form.read(values))
        return None, gr.update(visible=False), *review(request, values, message)

    def on_clear(request: gr.Request, *values):
        return None, gr.update(visible=False), *review(request, values, train_page.clear(session_id(request)))

    def on_refresh(request: gr.Request, *values):
        return review(request, values)

    photos.drop.upload(on_drop, [photos.drop, *form.inputs], [photos.drop, *outputs], **slow)
    photos.folder.upload(on_folder, [photos.folder, *form.inputs], outputs, **slow)
    for button, handler in ((photos.advice, on_advice), (photos.clear, on_clear)):
        button.click(handler, form.inputs, [photos.chosen, photos.panel, *outputs], **slow)
    review_events = [form.components[name].change for name in ("kind", "crop")] + [form.noun.blur]
    gr.on(review_events, on_refresh, form.inputs, outputs, trigger_mode="always_last", **slow)
    for title, button in zip(sample_sets(), photos.samples, strict=True):
        _connect_samples(train_page, photos, form, title, button, review, outputs, slow)
    _connect_panel(train_page, photos, form, review, outputs, slow)


def _connect_samples(
    train_page: TrainPage,
    photos: PhotoComponents,
    form: TrainForm,
    title: str,
    button: gr.Button,
    review: Callable[..., tuple],
    outputs: list[Component],
    slow: EventOptions,
) -> None:
    def on_sample(request: gr.Request, *values):
        message = train_page.use_sample_photos(session_id(request), title)
        return None, gr.update(visible=False), *review(request, values, message)

    button.click(on_sample, form.inputs, [photos.chosen, photos.panel, *outputs], **slow)


def _connect_panel(
    train_page: TrainPage,
    photos: PhotoComponents,
    form: TrainForm,
    review: Callable[..., tuple],
    outputs: list[Component],
    slow: EventOptions,
) -> None:
    """Connect the actions on the photo that was clicked."""

    def on_click(chosen: gr.SelectData, request: gr.Request):
        photo = train_page.select_photo(session_id(request), chosen.index)
        label = "Leave out" if photo.used else "Put back"
        return chosen.index, gr.update(visible=bool(photo.name)), photo.name, label, photo.caption

    def on_leave_out(chosen, request: gr.Request, *values):
        page = session_id(request)
        message = train_page.toggle_photo(page, chosen)
        label = "Leave out" if train_page.select_photo(page, chosen).used else "Put back"
        return label, *review(request, values, message)

    def on_caption(chosen, text, request: gr.Request, *values):
        return review(request, values, train_page.set_caption(session_id(request), chosen, text))

    def turn_handler(quarters: int) -> Callable[..., tuple]:
        def on_turn(chosen, request: gr.Request, *values):
            return review(request, values, train_page.rotate_photo(session_id(request), chosen, quarters))

        return on_turn

    panel = [photos.chosen, photos.panel, photos.name, photos.leave_out, photos.caption]
    photos.tiles.select(on_click, None, panel, **EVENT)
    photos.leave_out.click(on_leave_out, [photos.chosen, *form.inputs], [photos.leave_out, *outputs], **slow)
    caption_events = [photos.caption.submit, photos.caption.blur]
    gr.on(caption_events, on_caption, [photos.chosen, photos.caption, *form.inputs], outputs, **slow)
    for quarters, button in photos.turns.items():
        button.click(turn_handler(quarters), [photos.chosen, *form.inputs], outputs, **slow)
