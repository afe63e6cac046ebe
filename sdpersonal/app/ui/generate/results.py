"""Lay out the generated images, the actions on the selected one, and the history of earlier images."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import gradio as gr

from ....display.html import data_url
from ....errors import UserError
from ...backend import App, JobView
from ...backend.generate import history, image_actions
from ...backend.generation_service import IDLE_MESSAGE
from ...backend.render_job import SessionImage
from ..components import EVENT, Event, session_id, text_line, thumbnails, user_name
from .generate_form import GenerateForm

_MAX_SHOWN = 60  # images on the page at once
_MAX_IN_ORDER = 16  # if there are more, the newest come first


@dataclass(frozen=True)
class ResultComponents:
    """Components of the results. status, live, gallery, results: the outputs of a job, in this order; selected: the
    selected image."""

    status: gr.Textbox
    live: gr.HTML
    gallery: gr.Gallery
    results: gr.State
    selected: gr.State

    @property
    def outputs(self) -> list:
        return [self.status, self.live, self.gallery, self.results]


def results_box() -> ResultComponents:
    """Lay out the images of a job."""
    status = text_line(IDLE_MESSAGE, "status", label="Status")
    live = gr.HTML("", elem_id="live")
    gallery = gr.Gallery(
        show_label=False,
        label="Images",
        columns=2,
        object_fit="contain",
        interactive=False,
        buttons=["fullscreen"],
        elem_id="images",
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
    previews = "".join(f'<img alt="Preview" src="{_data_url(image)}">' for image in view.preview)
    bar = f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuenow="{100 * view.progress:.0f}">'
    return f'{bar}<div style="width: {view.progress:.1%}"></div></div><div class="so-far">{previews}</div>'


def _data_url(image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return data_url(buffer.getvalue(), "image/jpeg")


def actions_box(app: App, results: ResultComponents, form: GenerateForm) -> None:
    """Lay out the actions on the selected image, and connect them."""
    selected, generation, workspace = results.selected, app.generation, app.workspace
    with gr.Column(visible=False, elem_id="actions") as box:
        with gr.Row():
            star = gr.Button("☆ Favourite", size="sm", min_width=110, elem_id="star")
            variations_button = gr.Button("Variations", size="sm", min_width=110, elem_id="variations")
            hires_button = gr.Button("Hires fix (2x)", size="sm", min_width=110, elem_id="hires")
            init_button = gr.Button("Use as init image", size="sm", min_width=110, elem_id="use-as-init")
            settings_button = gr.Button("Use settings", size="sm", min_width=110, elem_id="use-settings")
        with gr.Row():
            download = gr.DownloadButton("Download", size="sm", min_width=110, elem_id="download")
            private = gr.DownloadButton("Download without recipe", size="sm", min_width=110, elem_id="download-private")
        show_areas = gr.Checkbox(False, label="Show where each concept is", visible=False, elem_id="show-areas")
        areas = gr.Image(
            type="filepath",
            label="Where each concept is",
            show_label=False,
            interactive=False,
            visible=False,
            buttons=["download", "fullscreen"],
            elem_id="areas",
        )
        with gr.Accordion("More variations", open=False):
            strength = gr.Slider(
                0.05, 1, value=0.15, step=0.05, label="Variation strength", info="0.1 is close to the image."
            )
            change = gr.Textbox(
                "",
                label="Change of the prompt",
                max_length=500,
                info="<me/duck>=0.6,0.8,1 for strengths; beach=snow|space for words.",
            )
            vary = gr.Button("Generate with this change", size="sm")
        recipe = gr.Textbox(
            label="Recipe", lines=6, max_lines=20, interactive=False, buttons=["copy"], elem_id="recipe"
        )

    def on_select_image(image, request: gr.Request):
        if image is None:
            return gr.update(visible=False), "", gr.skip(), gr.skip(), gr.skip()
        files = [
            image_actions.make_download(workspace, session_id(request), image, private) for private in (False, True)
        ]
        starred = image_actions.is_favourite(workspace.user_outputs(user_name(request)), image)
        return gr.update(visible=True), image_actions.recipe_text(image.saved), _star_update(starred), *map(str, files)

    def on_areas(image, shown, request: gr.Request):
        is_known = image is not None and image_actions.has_areas(image.saved)
        if not (is_known and shown):
            return gr.update(visible=is_known), gr.update(value=None, visible=False)
        overlay = image_actions.draw_areas(workspace, session_id(request), image)
        return gr.update(visible=True), gr.update(value=str(overlay), visible=True)

    def on_star(image, request: gr.Request):
        outputs = workspace.user_outputs(user_name(request))
        return image_actions.toggle_favourite(outputs, image), _star_update(image_actions.is_favourite(outputs, image))

    def generate(create_job, request: gr.Request):
        yield from view_updates(generation.submit(create_job, session_id(request), user_name(request)))

    def on_variations(image, strength, request: gr.Request):
        yield from generate(lambda: image_actions.variation_job(workspace, image, strength), request)

    def on_change(image, change, request: gr.Request):
        yield from generate(lambda: image_actions.change_job(workspace, image, change), request)

    def on_hires(image, request: gr.Request):
        yield from generate(lambda: image_actions.hires_job(workspace, image, 2.0), request)

    def on_use_settings(image):
        try:
            settings = image_actions.read_settings(image and image.saved)
        except UserError as error:
            return str(error), gr.skip(), *form.updates({})
        return image_actions.settings_note(settings), False, *form.updates(dict(settings.fields))

    selected.change(on_select_image, selected, [box, recipe, star, download, private], **EVENT)
    gr.on([selected.change, show_areas.input], on_areas, [selected, show_areas], [show_areas, areas], **EVENT)
    star.click(on_star, selected, [results.status, star], **EVENT)
    variations_button.click(on_variations, [selected, strength], results.outputs, **EVENT)
    vary.click(on_change, [selected, change], results.outputs, **EVENT)
    hires_button.click(on_hires, selected, results.outputs, **EVENT)
    init_button.click(lambda image: image and str(image.served), selected, form.editor, **EVENT)
    settings_button.click(
        on_use_settings, selected, [results.status, form.random_seed, *form.components.values()], **EVENT
    )


def _star_update(on: bool):
    return gr.update(value="★ Favourite" if on else "☆ Favourite")


def history_box(app: App, tab: gr.Tab, results: ResultComponents) -> None:
    """Lay out the earlier images; a click selects one as among the newest."""
    with gr.Row():
        search = gr.Textbox(label="Search", placeholder="words of the prompt, or a day", scale=3, min_width=160)
        starred = gr.Checkbox(False, label="Favourites only", scale=1, min_width=140)
    gallery = thumbnails("Earlier images", "history")
    with gr.Row(elem_classes="heading"):
        newer, older = gr.Button("Newer", size="sm", min_width=80), gr.Button("Older", size="sm", min_width=80)
        note = text_line("", "history-note")
    number, shown_results = gr.State(0), gr.State(())

    def on_search(search, starred, number, request: gr.Request):
        page = history.find_images(
            app.workspace, session_id(request), user_name(request), search, bool(starred), number
        )
        return gallery_items(page.results), page.note, page.number, page.results

    def on_select(shown, chosen: gr.SelectData, request: gr.Request):
        result = shown[chosen.index] if 0 <= chosen.index < len(shown) else None
        return result and history.publish_image(app.workspace, session_id(request), result)

    search_event: Event = {
        "fn": on_search,
        "inputs": [search, starred, number],
        "outputs": [gallery, note, number, shown_results],
        **EVENT,
    }
    tab.select(**search_event)
    for event in (search.change, starred.change):
        event(lambda: 0, None, number, **EVENT).then(**search_event)
    for button, step in ((newer, -1), (older, 1)):
        button.click(lambda number, step=step: number + step, number, number, **EVENT).then(**search_event)
    gallery.select(on_select, shown_results, results.selected, **EVENT)
