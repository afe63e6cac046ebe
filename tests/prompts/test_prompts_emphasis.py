"""Emphasis is A1111's, sign by sign: by a second reading of its rule, and by its own module where a checkout is named.

SDPERSONAL_A1111=stable-diffusion-webui pytest tests/prompts/test_prompts_emphasis.py
"""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sdpersonal.errors import UserError
from sdpersonal.prompts import MAX_DEPTH, Break, ConceptRef, Mention, Text, Token, parse
from support import a1111_emphasis
from support.a1111_emphasis import BREAK

CORPUS = [
    "normal text",
    "an (important) word",
    "(unbalanced",
    r"\(literal\]",
    "(unnecessary)(parens)",
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
    "(masterpiece:1.2), best quality, ((ultra-detailed)), [[lowres]], 1girl, (solo)",
    "portrait of a woman, (freckles:0.8), [smile], film grain, (bokeh: 1.4 ), 85mm",
    "(worst quality, low quality:1.4), (bad-hands-5:0.8), text) , signature]",
    "8k uhd, ratio 16:9, f/1.8, (16:9), time 10:30, smile :) and :( and :D",
    "a (b [c) d] e",
    "[a (b] c) d",
    "((a) (b:0.5) [c] d:1.5)",
    "()a[]b(:1.2)c",
    "(a:1.1)(b:1.1) (c:1.10)",
    "(a\\",
    r"\\(a\\)",
    r"a\:1.2) (\[b\]:1.3)",
    "(a:+1.2) (b:.5) (c:2.)",
    "a BREAK b",
    "a\nBREAK\n\nb, BREAKFAST at a BREAK.",
    "BREAK BREAK (a:1.2) BREAK[b]BREAK c",
    "x:BREAK)y BREAK ] z",
    "日本の(猫:1.2)、[犬]",
    "(a:1.2:1.3)",
    "(a :1.2 )b",
    "[a:b] [c:]",  # no number: not a change in A1111 either
    "tabs\t(and\u00a0spaces\n:1.2\n)",
]


def ours(prompt: str) -> list[tuple[str, float]]:
    weights = []
    for piece in parse(prompt).pieces:
        weights += [(BREAK, 0.0)] if piece == Break() else [(sign, piece.weight) for sign in piece.text]
    return weights


@pytest.mark.parametrize("prompt", CORPUS)
def test_weights_match_the_reference_implementation(prompt):
    assert ours(prompt) == a1111_emphasis.signs(prompt)


SIGNS = [*"()[]:\\,. ab19+-\n", "(", ")", "[", "]", ":1.2)", ": 0.7 )", "word ", " BREAK ", "BREAK", "\\(", "é"]
BRACKETS = st.lists(st.sampled_from(SIGNS), max_size=40).map("".join)


def accepted(prompt):
    """Ours, unless it is one of the things that we refuse and A1111 does not."""
    try:
        return ours(prompt)
    except UserError as error:
        refused = ("weight", "changes words", "brackets are open")
        assert any(words in error.message for words in refused), error
        assume(False)


@settings(max_examples=1000, deadline=None)
@given(BRACKETS)
@example("(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH)
def test_weights_of_random_brackets_match_the_reference(prompt):
    assert accepted(prompt) == a1111_emphasis.signs(prompt)


@pytest.mark.thorough
@settings(max_examples=20_000, deadline=None)
@given(BRACKETS)
def test_weights_of_many_random_brackets_match_the_reference(prompt):
    assert accepted(prompt) == a1111_emphasis.signs(prompt)


# --- A1111 itself ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def their_rule():
    """`parse_prompt_attention` of a checkout. lark, of which it makes a parser for something else, may be missing."""
    folder = os.environ.get("SDPERSONAL_A1111")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no checkout of A1111: set SDPERSONAL_A1111 to its folder")
    lark = ModuleType("lark")
    lark.Lark = lambda grammar: None
    missing = importlib.util.find_spec("lark") is None
    if missing:
        sys.modules["lark"] = lark
    try:
        spec = importlib.util.spec_from_file_location("prompt_parser", Path(folder) / "modules" / "prompt_parser.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        if missing:
            del sys.modules["lark"]

    def signs(prompt):
        weights = []
        for text, weight in module.parse_prompt_attention(prompt):
            # A BREAK in brackets has their factor too; A1111 then takes it for the word. Here it stays a BREAK.
            is_break = text == "BREAK" and str(weight).startswith("-")
            weights += [(BREAK, 0.0)] if is_break else [(sign, weight) for sign in text]
        return weights

    return signs


@pytest.mark.parametrize("prompt", CORPUS)
def test_weights_match_a1111(prompt, their_rule):
    assert ours(prompt) == their_rule(prompt)


@settings(max_examples=1000, deadline=None)
@given(prompt=BRACKETS)
def test_weights_of_random_brackets_match_a1111(their_rule, prompt):
    assert accepted(prompt) == their_rule(prompt)


# --- what is ours ----------------------------------------------------------------------------------------------------


def test_emphasis_applies_to_text_and_concepts():
    duck = (Mention(Token("me", "duck")),)
    assert parse("(<me/duck> in the (rain:1.3):1.2) [<me/duck>]").pieces == (
        ConceptRef(duck, weight=1.2),
        Text(" in the ", 1.2),
        Text("rain", 1.3 * 1.2),
        Text(" "),
        ConceptRef(duck, weight=1 / 1.1),
    )


def test_brackets_inside_a_concept_reference_are_refused():
    with pytest.raises(UserError, match="not a concept's token"):
        parse("<me/(duck)>")


def test_break_in_brackets_is_parsed_as_break():
    assert parse("(a BREAK b:1.2) BREAK <duck>").pieces[:3] == (Text("a", 1.2), Break(), Text("b", 1.2))


@pytest.mark.parametrize(
    "bracket", ["(x:1e9)", "(x:nan)", "(x:inf)", "(x:-1)", "(x:-0.5)", "(x:10.1)", "(x:1.2.3)", "(x:1,3)", "(x:.)"]
)
def test_invalid_weights_are_refused_with_an_example(bracket):
    with pytest.raises(UserError, match=r"must be a number from 0 to 10") as caught:
        parse(f"a cat, {bracket}, at dawn")
    assert bracket in caught.value.message
    assert parse(re.search(r"\(.*?\)", caught.value.hint)[0]).pieces == (Text("word", 1.3),)


def test_nested_weights_above_the_limit_are_refused():
    with pytest.raises(UserError, match=r"around 'cat' come to a weight of 12\.1;"):
        parse("(((cat:10)))")
    with pytest.raises(UserError, match="around '<me/duck>' come to"):
        parse("((<me/duck>:4):3)")


def test_too_many_open_brackets_are_refused():
    deep = "(" * (MAX_DEPTH + 1)
    with pytest.raises(UserError, match="More than 20 brackets are open"):
        parse(deep)
    assert parse("()" * 900) and parse(r"\(" * 900)


@pytest.mark.parametrize("prompt", ["[cat|dog]", "a [(big:1.2)|small] cat", "[|x]"])
def test_a1111_alternation_is_refused(prompt):
    with pytest.raises(UserError, match="takes turns") as caught:
        parse(prompt)
    assert "{a|b}" in caught.value.hint


@pytest.mark.parametrize(
    "prompt", ["[cat:dog:0.5]", "[dog:10]", "[cat::.5]", "[:dog: 3 ]", "[(cat:1.2):dog:0.5]", "[cat\\\\:0.5]"]
)
def test_a1111_prompt_editing_is_refused(prompt):
    with pytest.raises(UserError, match="only concepts can come or go") as caught:
        parse(f"a photo, {prompt}")
    assert "<me/duck@0-0.4>" in caught.value.hint


@pytest.mark.parametrize("prompt", ["a|b", "(a|b)", r"[a\|b]", "[(a|b)]", "[a:b]", r"[16\:9]", "[16:9", "a:0.5]"])
def test_text_similar_to_a1111_syntax_is_accepted(prompt):
    assert parse(prompt).pieces


def test_and_between_prompts_is_refused():
    with pytest.raises(UserError, match="joins two prompts"):
        parse("a cat AND a dog:0.5")
    assert parse("SAND, ANDREA, and").pieces == (Text("SAND, ANDREA, and"),)
