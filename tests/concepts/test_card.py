"""What people fill in, and the versions: the file's identity stays, bad facts are refused in words."""

import json

import pytest

from sdpersonal.cli.main import main
from sdpersonal.concepts.card import edit_card
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.licences import hub_licence, spdx_name
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support.samples import card, concept, embedding

DUCK = Token.parse("<me/duck-v1>")


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path / "concepts")
    library.add(concept())
    return library


def run(library, *argv):
    return main([*argv, "--library", str(library.folder)])


@pytest.mark.parametrize(
    ("message", "known", "hub"),
    [
        ("mit", "MIT", {"license": "mit"}),
        ("apache-2.0 or mit", "Apache-2.0 OR MIT", {"license": "other", "license_name": "Apache-2.0 OR MIT"}),
        ("CreativeML-OpenRAIL-M", "creativeml-openrail-m", {"license": "creativeml-openrail-m"}),
        ("openrail++", "openrail++", {"license": "openrail++"}),
        ("gpl-3.0-or-later", "GPL-3.0-or-later", {"license": "gpl-3.0"}),
        ("LicenseRef-Mine", "LicenseRef-Mine", {"license": "other", "license_name": "LicenseRef-Mine"}),
        ("", "", {}),
    ],
)
def test_licences_are_converted_to_spdx_and_hub_names(message, known, hub):
    assert spdx_name(message) == known and hub_licence(known) == hub


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ("CC BY 4.0", "Did you mean CC-BY-4.0"),
        ("Apache", "Apache-"),
        ("free for all", "For example CC0-1.0"),
        ("<script>", "For example"),
        ("MIT\x1b[31m", "MIT"),
        ("(" * 500, "For example"),
    ],
)
def test_unknown_licences_are_refused_with_a_suggestion(message, fix):
    with pytest.raises(UserError) as caught:
        spdx_name(message)
    assert fix in caught.value.hint and "\x1b" not in str(caught.value) and len(str(caught.value)) < 400


def test_editing_keeps_identity_and_version(library, capsys):
    before = library.get(DUCK)
    argv = ["--title", "My duck", "--licence", "cc-by-4.0", "--kind", "person", "--consent", "yes", "--steps", "300"]
    argv += ["--consent-note", "asked in May", "--prompts", "<me/duck> on ice", "a <me/duck>", "--author", "me"]
    argv += ["--recipe", "lr=0.001", "seed=3", "sampler=DDIM", "--scores", "likeness=0.66", "--class", "toy duck"]
    assert run(library, "concepts", "edit", "duck", *argv) == 0
    assert capsys.readouterr().out == "edited: <me/duck-v1>\n"
    after = library.get(DUCK)
    assert after.identity == before.identity and after.thumbnail == before.thumbnail
    assert [str(entry.token) for entry in library.entries()] == ["<me/duck-v1>"] and library.verify() == []
    made = after.card
    assert (made.title, made.license, made.kind, made.consent) == ("My duck", "CC-BY-4.0", "person", "yes")
    assert made.recipe == {"lr": 0.001, "seed": 3, "sampler": "DDIM"} and made.scores == {"likeness": 0.66}
    assert made.prompts == ("<me/duck> on ice", "a <me/duck>") and made.created == before.card.created
    assert run(library, "concepts", "edit", "duck", "--recipe", "lr=", "--author", "", "--license", "MIT") == 0
    made = library.get(DUCK).card
    assert made.recipe == {"seed": 3, "sampler": "DDIM"} and made.author == "" and made.license == "MIT"
    data = library.find(DUCK).path.read_bytes()
    assert b'"modelspec.license":"MIT"' in data and b'"modelspec.title":"My duck"' in data


def test_editing_an_older_version_changes_only_that_version(library):
    library.add(concept(seed=1))
    library.edit(Token.parse("<me/duck-v1>"), {"title": "old"})
    assert [entry.card.title for entry in library.history(Token.parse("<duck>"))] == ["old", "Toy duck"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "Nothing to change."),
        (["--licence", "whatever"], "is not a known licence"),
        (["--consent", "maybe"], "consent must be one of yes, no, unknown"),
        (["--kind", "animal"], "kind must be one of"),
        (["--title", "x" * 101], "The card's title is not valid"),
        (["--steps", "-1"], "steps"),
        (["--recipe", "lr"], "is not NAME=VALUE"),
        (["--recipe", "L R=1"], "The card's recipe"),
        (["--scores", "likeness=good"], "The card's scores"),
        (["--scores", "likeness=nan"], "The card's scores"),
        (["--prompts", *["x"] * 17], "The card's prompts"),
    ],
)
def test_invalid_card_fields_change_nothing(library, capsys, argv, message):
    before = library.find(DUCK).path.read_bytes()
    try:
        code = run(library, "concepts", "edit", "duck", *argv)
    except SystemExit as end:  # tyro tells what is not one of a list of choices
        code = end.code
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    assert message in err or "invalid choice" in err.lower() or "--" in err
    assert library.find(DUCK).path.read_bytes() == before


def test_only_user_fields_of_a_card_can_be_edited(library):
    for fact in ("base", "token", "created", "colour"):
        with pytest.raises(UserError, match=f"The card's {fact} cannot be changed"):
            edit_card(card(), {fact: "sd1"})
    with pytest.raises(UserError, match="No concept"):
        library.edit(Token.parse("<nobody>"), {"title": "x"})
    path = library.find(DUCK).path
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="refused"):
        library.edit(DUCK, {"title": "x"})


def test_control_characters_are_removed_from_edited_text(library):
    library.edit(DUCK, {"title": "a\x1b[31m\u202eb\nc"})
    assert library.find(DUCK).card.title == "a[31mb c"


def test_history_shows_every_version(library, capsys):
    library.add(concept(seed=1, card=card(method="LoRA", steps=200, scores={"likeness": 0.625})))
    library.add(embedding("<you/duck>"))
    assert run(library, "concepts", "history", "<me/duck>") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["<me/duck-v1>", "<me/duck-v2>"]
    assert "200 steps" in lines[1] and "likeness 0.62" in lines[1] and concept(seed=1).identity[:8] in lines[1]
    assert run(library, "concepts", "history", "<me/duck-v1>", "--json") == 0
    assert [entry["token"] for entry in json.loads(capsys.readouterr().out)] == ["<me/duck-v1>", "<me/duck-v2>"]
    path = library.find(DUCK).path
    path.write_bytes(b"")
    assert run(library, "concepts", "history", "<me/duck>") == 0
    assert "damaged: " in capsys.readouterr().out
    assert run(library, "concepts", "history", "duck") == 2
    assert "Several concepts are called" in capsys.readouterr().err
