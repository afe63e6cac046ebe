"""What the trained concept is called and how it is taught: the fields of the Make tab, and the plan that they make."""

from __future__ import annotations

import gradio as gr

from ...backend.train.form import KINDS, METHODS, PRIORS, kind_of
from ...backend.train.page import Workshop
from ..shared import QUICK, Shared, line, user_of

KIND, METHOD, PRIOR = next(iter(KINDS)), next(iter(METHODS)), next(iter(PRIORS))
OBJECT_EXAMPLE, PERSON_EXAMPLE, STYLE_EXAMPLE = (
    "for example: toy duck",
    "for example: woman",
    "for example: watercolour",
)


class Fields:
    """The fields by name, in one order: `inputs` for an event, `read` for what its handler gets."""

    def __init__(self):
        self.components: dict[str, gr.components.Component] = {}

    @property
    def inputs(self) -> list[gr.components.Component]:
        return list(self.components.values())

    def read(self, values: tuple) -> dict:
        return dict(zip(self.components, values, strict=True))


def form_box(owner: str) -> tuple[Fields, gr.Textbox]:
    """The fields, and the line about the name. owner: who is proposed."""
    fields = Fields()
    put = fields.components
    put["kind"] = gr.Radio(list(KINDS), value=KIND, label="What do the photos share?", elem_id="make-kind")
    put["noun"] = gr.Textbox(
        label="What is it?",
        placeholder=OBJECT_EXAMPLE,
        max_length=100,
        elem_id="make-noun",
        lines=1,
        info="The most ordinary word for it.",
    )
    with gr.Row():
        put["owner"] = gr.Textbox(
            owner, label="Your name", max_length=64, max_lines=1, scale=1, min_width=110, elem_id="make-owner"
        )
        put["name"] = gr.Textbox(
            label="Its name",
            placeholder="my-cat",
            max_length=64,
            max_lines=1,
            scale=2,
            min_width=140,
            elem_id="make-name",
        )
    note = line("", "make-name-note")
    put["agrees"] = gr.Checkbox(
        label="This person agrees to being in pictures made with it", visible=False, elem_id="make-agrees"
    )
    with gr.Accordion("More", open=False, elem_id="make-more"):
        _more(put)
    return fields, note


def _more(put: dict) -> None:
    put["method"] = gr.Radio(list(METHODS), value=METHOD, label="Method")
    put["crop"] = gr.Checkbox(label="Cut each photo where its subject seems to be, not in the middle")
    put["flip"] = gr.Checkbox(label="Also learn from mirrored photos (not for faces or writing)")
    put["early_stop"] = gr.Checkbox(True, label="End where there is no more to learn")
    put["text_encoder"] = gr.Checkbox(label="Teach the text encoder too: closer, but mixes worse")
    put["prior"] = gr.Radio(list(PRIORS), value=PRIOR, label="Also keep", info="A step then takes twice as long.")
    with gr.Row():
        put["steps"] = _number("Steps, at most", "what suits", "make-steps")
        put["lr"] = _number("Learning rate", "what suits", "make-lr")
    with gr.Row():
        put["rank"] = _number("LoRA rank", "16", "make-rank")
        put["resolution"] = _number("Side in pixels", "the base's own", "make-side")
        put["seed"] = _number("Seed", "0", "make-seed")


def _number(label: str, placeholder: str, name: str) -> gr.Textbox:
    """Text, since a number field cannot be empty."""
    return gr.Textbox(label=label, placeholder=placeholder, max_lines=1, max_length=20, min_width=110, elem_id=name)


def connect_form(workshop: Workshop, shared: Shared, fields: Fields, note, plan, photos_changed: list) -> None:
    """The name is checked and the plan written anew whenever something they depend on changes."""
    put = fields.components

    def on_kind(kind):
        person, style = kind_of(kind) == "person", kind_of(kind) == "style"
        example = STYLE_EXAMPLE if style else PERSON_EXAMPLE if person else OBJECT_EXAMPLE
        label = "What is the style, in a word or two?" if style else "What is it?"
        return gr.update(placeholder=example, label=label), gr.update(visible=person)

    def on_change(request: gr.Request, *values):
        form = fields.read(values)
        return workshop.naming(form), workshop.plan(request.session_hash, user_of(request), form)

    def on_open(owner, request: gr.Request):
        return user_of(request) or owner

    shared.page.load(on_open, put["owner"], put["owner"], **QUICK)
    put["kind"].change(on_kind, put["kind"], [put["noun"], put["agrees"]], **QUICK)
    changes = [each.change for each in fields.inputs] + photos_changed + [shared.base.change]
    gr.on(changes, on_change, fields.inputs, [note, plan], trigger_mode="always_last", **QUICK)
