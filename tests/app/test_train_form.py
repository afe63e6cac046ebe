"""The form of a training: its settings, its plan, and the names that are made of what is typed."""

import pytest

from sdpersonal.app.backend.train.concept_name import make_name, make_token, make_word
from sdpersonal.app.backend.train.train_form import TrainForm, form_of_settings, make_plan, parse_settings
from sdpersonal.concepts.library import Library
from sdpersonal.config import TextualInversionSettings
from sdpersonal.errors import FieldError
from sdpersonal.prompts import Token


class Base:
    name, kind, device, resolution = "tiny", "tiny", "cpu", 128


def form(**values):
    return TrainForm(**{"name": "bear", "noun": "bear"} | values)


def test_a_form_is_parsed_or_refused_with_a_message_on_its_field():
    made = parse_settings(form(), Base)
    assert (made.token, made.class_noun, made.method, made.base) == ("<me/bear>", "bear", "lora", "tiny")
    assert made.steps is None and made.consent == "unknown" and made.early_stop
    assert parse_settings(form(), Base, "anna").token == "<anna/bear>"
    for text in ("0,001", "1,5", "1,00"):  # in other places of the world a comma is no mark of thousands
        with pytest.raises(FieldError, match="Learning rate must be"):
            parse_settings(form(lr=text), Base)
    typed = parse_settings(form(steps="1,000", lr="1e-4", rank="8", resolution=64, seed=" 7 "), Base)
    assert (typed.steps, typed.lr, typed.rank, typed.resolution, typed.seed) == (1000, 1e-4, 8, 64, 7)
    person = parse_settings(form(kind="person", consent=True), Base)
    assert person.consent == "yes" and person.kind == "person"
    inversion = parse_settings(form(method="textual-inversion", steps=""), Base)
    assert isinstance(inversion, TextualInversionSettings) and inversion.init == "bear" and inversion.steps is None
    for change, field, words in (
        ({"noun": "  "}, "noun", "class noun is empty"),
        ({"noun": "x" * 101}, "noun", "Class noun must be|Class noun has"),
        ({"name": ""}, "name", "name is empty"),
        ({"name": " 🦆 "}, "name", "Type a name with letters or digits"),
        ({"owner": "!!"}, "owner", "Type an owner with letters or digits"),
        ({"kind": "person"}, "consent", "consent of this person is not ticked"),
        ({"steps": 2.5}, "steps", "Steps must be"),
        ({"steps": "nan"}, "steps", "Steps must be"),
        ({"lr": -1}, "lr", "Learning rate must be"),
        ({"rank": "x"}, "rank", "LoRA rank must be"),
        ({"rank": "1e999"}, "rank", "LoRA rank must be"),
        ({"lr": "nan"}, "lr", "Learning rate must be"),
        ({"resolution": 100}, "resolution", "Resolution must be"),
        ({"seed": 2**64}, "seed", "Seed must be"),
        ({"sample_prompts": ["<me/duck> at sea"]}, "sample_prompts", "no other concept"),
    ):
        with pytest.raises(FieldError, match=words) as error:
            parse_settings(form(**change), Base)
        assert error.value.field == field, change


@pytest.mark.parametrize("method", ["lora", "pivotal", "textual-inversion"])
def test_settings_become_an_equivalent_form(method):
    written = form(kind="person", consent=True, crop="subject", flip=True, early_stop=False, method=method, seed="7")
    written = written.with_values({"lr": 0.0005, "steps": 1000, "resolution": "128", "sample_prompts": ["{} at sea"]})
    settings = parse_settings(written, Base)
    again = form_of_settings(settings)
    assert parse_settings(again, Base) == settings
    assert (again.lr, again.steps, again.owner) == ("0.0005", "1000", "me")


def test_a_plan_estimates_steps_time_and_memory(tmp_path):
    library = Library(tmp_path)
    plan = make_plan(form(), 5, Base, library, {})
    text = "\n".join(plan.lines)
    assert "At most 320 steps" in text and "an estimate" in text and "GB of memory" in text and not plan.problem
    assert "At most 640 steps" in make_plan(form(), 20, Base, library, {}).lines[1]
    measured = {"tiny lora own": {"step": 60.0, "held": 3e9}}
    text = "\n".join(make_plan(form(), 5, Base, library, measured).lines)
    assert "as measured in the last training here" in text and "about 3.0 GB" in text
    plan = make_plan(form(), 0, Base, library, {})
    assert (plan.lines, plan.field) == ((), "photos") and "photos" in plan.problem
    plan = make_plan(form(name=""), 5, Base, library, {})
    assert (plan.lines, plan.field) == ((), "name") and "The concept name is empty" in plan.problem


@pytest.mark.parametrize(
    "typed,word",
    [
        ("Rex the Dog", "rex-the-dog"),
        ("  My  cat!  ", "my-cat"),
        ("Über-Bär 🐻", "uber-bar"),
        ("Straße", "strasse"),
        ("Łódź", "lodz"),
        ("Åse Øster", "ase-oster"),
        ("L'été", "lete"),
        ("İstanbul ısı", "istanbul-isi"),
        ("Мишка", "mishka"),
        ("Ёлка", "yolka"),
        ("Αθήνα", "athina"),
        ("さくら", "sakura"),
        ("サクラ", "sakura"),
        ("ﾈｺ", "neko"),
        ("나비", "nabi"),
        ("Nguyễn", "nguyen"),
        ("a/b", "a-b"),
        ("<me/duck>", "me-duck"),
        ("../../etc", "etc"),
        ("Cat-v2", "cat"),
        ("cat v2 v3", "cat"),
        ("v2", "v2"),
        ("CON", "con-1"),
        ("١٢", "12"),
        ("x" * 100, "x" * 64),
        ("x" * 61 + " v2", "x" * 61),
        ("x" * 63 + " y", "x" * 63),
        ("🦆", ""),
        ("猫", ""),
        ("---", ""),
        ("\ud83d", ""),
    ],
)
def test_a_token_name_is_made_from_typed_text(typed, word):
    assert make_word(typed) == word
    if word:
        token = make_token("", typed)
        assert token == Token.parse(str(token)) == Token("me", word)
        assert make_token(typed, "duck").owner == word


def test_the_note_on_a_name_states_its_token_or_next_version(tmp_path, monkeypatch):
    library = Library(tmp_path)
    named = make_name("", "Rex the Dog", library, "anna")
    assert str(named.token) == "<anna/rex-the-dog>" and named.note == "Write <anna/rex-the-dog> in prompts."
    monkeypatch.setattr(library, "versions", lambda token: [Token("me", "rex", 2), Token("me", "rex", 4)])
    assert "will be version 5" in make_name("me", "Rex", library).note
    assert make_name("me", "", library).problem == "The concept name is empty."
    assert make_name("me", "🦆", library).problem == "Type a name with letters or digits."
    assert make_name("🦆", "rex", library).field == "owner"
