"""Every example in docs/prompts.md."""

import re

import pytest

from conftest import ROOT
from sdpersonal.errors import UserError
from sdpersonal.prompts import ConceptRef, Text, Wildcards, all_prompts, has_alternatives, parse, sample_prompt

PAGE = (ROOT / "docs" / "prompts.md").read_text()
BLOCKS = re.findall(r"^```(\S+)(?: (\S+))?\n(.*?)^```$", PAGE, re.M | re.S)
LISTS = {name: text for kind, name, text in BLOCKS if kind == "list"}


def examples(kind):
    """(what is written, what it is said to be)"""
    lines = [line for label, _, text in BLOCKS if label == kind for line in text.splitlines()]
    return [tuple(part.strip() for part in line.partition("->")[::2]) for line in lines]


@pytest.fixture
def lists(tmp_path):
    for name, text in LISTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return Wildcards(tmp_path)


def read(typed, lists):
    return parse(sample_prompt(typed, 0, lists))


def test_every_documented_block_has_a_known_kind():
    kinds = {"prompt", "emphasis", "plain", "alternatives", "list", "refused"}
    assert {kind for kind, _, _ in BLOCKS} == kinds and len(LISTS) == 3
    assert all(examples(kind) for kind in kinds)


@pytest.mark.parametrize("typed", [typed for typed, _ in examples("prompt")])
def test_documented_prompts_are_parsed(typed, lists):
    assert not has_alternatives(typed) and read(typed, lists).pieces


@pytest.mark.parametrize("typed", re.findall(r"^\| `(<[^`]+>)` \|", PAGE, re.M))
def test_documented_concept_references_are_parsed(typed, lists):
    (word,) = read(typed, lists).pieces
    assert isinstance(word, ConceptRef)
    assert [part.strength for part in word.parts] == ([0.5] * 2 if "+" in typed and ":" not in typed else [
        float(strength) for strength in re.findall(r":([0-9.-]+)", typed)] or [1.0])  # fmt: skip
    window = re.search(r"@([0-9.]+)-([0-9.]+)", typed)
    assert (word.start, word.end) == (tuple(map(float, window.groups())) if window else (0.0, 1.0))


@pytest.mark.parametrize(("typed", "weights"), examples("emphasis"))
def test_documented_emphasis_gives_the_documented_weights(typed, weights):
    pieces = [f"{piece.text.strip()} {piece.weight:.3g}" for piece in parse(typed).pieces if piece.weight != 1]
    assert ", ".join(pieces) == weights


@pytest.mark.parametrize(("typed", "text"), examples("plain"))
def test_documented_escapes_give_plain_text(typed, text, lists):
    assert read(typed, lists).pieces == (Text(text),)


@pytest.mark.parametrize(("typed", "prompts"), examples("alternatives"))
def test_documented_alternatives_expand_as_documented(typed, prompts, lists):
    assert has_alternatives(typed)
    assert list(all_prompts(typed, lists)) == prompts.split(" / ")
    assert all(parse(prompt) for prompt in all_prompts(typed, lists))


@pytest.mark.parametrize(("typed", "fix"), examples("refused"))
def test_documented_mistakes_are_refused_with_the_documented_hint(typed, fix, lists):
    with pytest.raises(UserError) as caught:
        read(typed, lists)
    assert fix in caught.value.hint
