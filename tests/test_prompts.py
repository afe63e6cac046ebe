"""The prompt language: what is a token, what is text, and what is told to whoever got it wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpersonal.errors import PersonalError
from sdpersonal.prompts import MAX_PROMPT, Mention, Token, parse, show


def test_a_prompt_is_cut_into_text_and_mentions():
    prompt = parse("a photo of <karpathy/cool-object-v7> in the style of <trippystyle:0.8>.")
    assert prompt.pieces == (
        "a photo of ",
        Mention(Token("karpathy", "cool-object", 7), 1.0),
        " in the style of ",
        Mention(Token(None, "trippystyle"), 0.8),
        ".",
    )


@pytest.mark.parametrize(
    "text", ["a < b and c > d", "1 <2", "i <3 you", "", "<", ">", "< me/duck>", "{7*7} __import__('os')"]
)
def test_what_opens_no_word_is_text(text):
    assert parse(text).mentions == ()
    assert "".join(parse(text).pieces) == text


def test_capitals_are_folded_in_prompts():
    assert parse("<Me/Duck-V2>").mentions[0].token == Token("me", "duck", 2)


@pytest.mark.parametrize(("strength", "value"), [("0", 0.0), ("0.8", 0.8), (".5", 0.5), ("2", 2.0), ("1.", 1.0)])
def test_strengths(strength, value):
    assert parse(f"<me/duck:{strength}>").mentions[0].strength == value


@pytest.mark.parametrize("strength", ["nan", "inf", "1e9", "-1", "", ".5:.5", "2.01", "0x1", "1_0", "١", "0.8@0-0.6"])
def test_other_strengths_are_refused(strength):
    with pytest.raises(PersonalError, match="must be a number from 0 to 2"):
        parse(f"a <me/duck:{strength}>")


@pytest.mark.parametrize(
    ("word", "proposal"),
    [
        ("My Cat", "<me/my-cat>"),
        ("me/my cat.v2", "<me/my-cat-v2>"),
        ("\uff2dy-cat", "<me/my-cat>"),  # full width
        ("|endoftext|", "<me/endoftext>"),
        ("cat_1", "<me/cat-1>"),
        ("a/b/c", "<a/b>"),
        ("../../etc", "Write it like"),
        ("-", "Write it like"),
    ],
)
def test_a_word_that_cannot_be_a_token_is_refused_with_one_that_can(word, proposal):
    with pytest.raises(PersonalError) as caught:
        parse(f"a <{word}> here")
    assert proposal.lower() in caught.value.fix.lower() or proposal == "Write it like"


def test_look_alikes_are_named():
    with pytest.raises(PersonalError, match="CYRILLIC SMALL LETTER U"):
        parse("<m\u0443-cat>")


@pytest.mark.parametrize(
    "name", ["con", "NUL", "com1", "a" * 65, "", " ", "a\nb", "a\u200bb", "\u202ecat", "dog.", "a--b", "a-", "cat:2"]
)
def test_names_that_no_concept_can_have(name):
    with pytest.raises(PersonalError):
        Token.parse(name)


def test_version_and_ways_of_writing():
    cat = Token("me", "cat", 3)
    assert [str(token) for token in (cat, cat.unversioned(), Token(None, "cat"))] == [
        "<me/cat-v3>",
        "<me/cat>",
        "<cat>",
    ]
    assert all(Token.parse(text).matches(cat) for text in ("cat", "<cat-v3>", "me/cat", "<me/cat-v3>"))
    assert not any(Token.parse(text).matches(cat) for text in ("cats", "<cat-v2>", "you/cat"))
    assert cat.slug == "me-cat"


def test_a_prompt_has_a_bound():
    with pytest.raises(PersonalError, match="2,001 characters"):
        parse("x" * (MAX_PROMPT + 1))


def test_nothing_printed_can_steer_a_terminal():
    assert show("a\x1b[2Jb\x00\u202e\udcff") == r"a\x1b[2Jb\x00\u202e\udcff"
    assert len(show("x" * 500)) == 80


@settings(max_examples=2000, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>/:-@.v019aZ \n\x00\x1bу🙂{}()|_'\""), max_size=40))
def test_any_text_is_a_prompt_or_a_personal_error(text):
    try:
        prompt = parse(text)
    except PersonalError as error:
        assert all(line.isprintable() for line in str(error).split("\n"))
        return
    for mention in prompt.mentions:
        assert Token.parse(str(mention.token)) == mention.token
        assert 0 <= mention.strength <= 2
