"""Lay out the generated images, and the actions on the selected one."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import gradio as gr

from ....errors import UserError
from ....html import data_url
from ...backend import App, JobView
from ...backend.generate import image_actions
from ...backend.generation_service import IDLE_MESSAGE
from ...backend.render_job import SessionImage
from ..form import GenerateForm
from ..shared import QUICK_EVENT, SharedComponents, text_line, user_name

_MAX_SHOWN = 60  # images on the page at once
_MAX_IN_ORDER = 16  # if there are more, the newest come first


@dataclass(frozen=True)
class ResultComponents:
    """Components of the results. status, live, pictures, results: the outputs of a job, in this order; selected: the
    selected image."""

    status: gr.Textbox
    live: gr.HTML
    pictures: gr.Gallery
    results: gr.State
    selected: gr.State

    @property
    def outputs(self) -> list:
        return [self.status, self.live, self.pictures, self.results]


def results_box(name: str = "") -> ResultComponents:
    """Lay out the images of a job."""
    status = text_line(IDLE_MESSAGE, "status", label="Status")
    live = gr.HTML("", elem_id="live")
    gallery = gr.Gallery(
        show_label=False,
        label="Pictures",
        columns=2,
        object_fit="contain",
        interactive=False,
        buttons=["fullscreen"],
        elem_id="pictures",
    )
    return ResultComponents(status, live, gallery, gr.State(()), gr.State(None))


def view_updates(views: Iterable[JobView]) -> Iterator[tuple]:
    """Convert views to updates of `ResultComponents.outputs`."""
    before = None
    for view in views:
        results = view.results[-_MAX_SHOWN:]
        results = results[::-1] if len(view.results) > _MAX_IN_ORDER else results
        image_updates = (
            (gr.skip(), gr.skip()) if view.results == before or not results else (gallery_items(results), results)
        )
        before = view.results
        yield view.message, _progress_html(view), *image_updates


def gallery_items(results: Iterable[SessionImage]) -> list[tuple[str, str]]:
    """Return the results as a gallery takes them: (file, caption)."""
    return [(str(result.served), result.caption) for result in results]


def _progress_html(view: JobView) -> str:
    """Make the progress bar and the preview as HTML. It contains no user text, so nothing has to be escaped."""
    if view.progress >= 1:
        return ""
    previews = "".join(f'<img alt="The picture so far" src="{_data_url(image)}">' for image in view.preview)
    bar = f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuenow="{100 * view.progress:.0f}">'
    return f'{bar}<div style="width: {view.progress:.1%}"></div></div><div class="so-far">{previews}</div>'


def _data_url(image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return data_url(buffer.getvalue(), "image/jpeg")


def actions_box(app: App, shared: SharedComponents, results: ResultComponents, form: GenerateForm) -> None:
    """Lay out the actions on the selected image, and connect them."""
    selected, generation, folders = results.selected, app.generation, app.workspace
    with gr.Column(visible=False, elem_id="actions") as box:
        with gr.Row():
            star = gr.Button("☆ Favourite", size="sm", min_width=110, elem_id="star")
            variations_button = gr.Button("Variations", size="sm", min_width=110, elem_id="vary")
            hires_button = gr.Button("Twice as large", size="sm", min_width=110, elem_id="enlarge")
            init_button = gr.Button("Begin from it", size="sm", min_width=110, elem_id="begin")
            settings_button = gr.Button("Use its settings", size="sm", min_width=110, elem_id="use-settings")
        with gr.Row():
            download = gr.DownloadButton("Download", size="sm", min_width=110, elem_id="download")
            private = gr.DownloadButton("Download without recipe", size="sm", min_width=110, elem_id="download-private")
        with gr.Accordion("More variations", open=False):
            distance = gr.Slider(0.05, 1, value=0.15, step=0.05, label="How far from it", info="0.1 is close.")
            change = gr.Textbox(
                "",
                label="Change",
                max_length=500,
                info="<me/duck>=0.6,0.8,1 for strengths; beach=snow|space for words.",
            )
            vary = gr.Button("Draw with that change", size="sm")
        recipe = gr.Textbox(
            label="Recipe", lines=6, max_lines=20, interactive=False, buttons=["copy"], elem_id="recipe"
        )

    def on_picked(picked, request: gr.Request):
        if picked is None:
            return gr.update(visible=False), "", gr.skip(), gr.skip(), gr.skip()
        files = [
            image_actions.make_download(folders, request.session_hash, picked, private) for private in (False, True)
        ]
        starred = image_actions.is_favourite(folders.user_outputs(user_name(request)), picked)
        return gr.update(visible=True), image_actions.recipe_text(picked.saved), _star_update(starred), *map(str, files)

    def on_star(picked, request: gr.Request):
        outputs = folders.user_outputs(user_name(request))
        return image_actions.toggle_favourite(outputs, picked), _star_update(
            image_actions.is_favourite(outputs, picked)
        )

    def drawn(order, request: gr.Request):
        yield from view_updates(generation.submit(order, request.session_hash, user_name(request)))

    def on_near(picked, share, request: gr.Request):
        yield from drawn(lambda: image_actions.variation_job(folders, picked, share), request)

    def on_change(picked, change, request: gr.Request):
        yield from drawn(lambda: image_actions.change_job(folders, picked, change), request)

    def on_large(picked, request: gr.Request):
        yield from drawn(lambda: image_actions.hires_job(folders, picked, 2.0), request)

    def on_take(picked):
        try:
            settings = image_actions.read_settings(picked and picked.saved)
        except UserError as error:
            return str(error), gr.skip(), *form.updates({})
        return image_actions.settings_note(settings), False, *form.updates(dict(settings.fields))

    long = {"trigger_mode": "once", "concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    selected.change(on_picked, selected, [box, recipe, star, download, private], **QUICK_EVENT)
    star.click(on_star, selected, [results.status, star], **QUICK_EVENT)
    variations_button.click(on_near, [selected, distance], results.outputs, **long)
    vary.click(on_change, [selected, change], results.outputs, **long)
    hires_button.click(on_large, selected, results.outputs, **long)
    init_button.click(lambda picked: picked and str(picked.served), selected, form.editor, **QUICK_EVENT)
    settings_button.click(
        on_take, selected, [results.status, form.random_seed, *form.components.values()], **QUICK_EVENT
    )


def _star_update(on: bool):
    return gr.update(value="★ Favourite" if on else "☆ Favourite")
