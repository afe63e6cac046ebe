"""The prompt language: what is a word, what is text, and what is told to whoever got it wrong."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpersonal.errors import UserError, printable
from sdpersonal.prompts import MAX_PROMPT, Break, ConceptRef, Mention, Prompt, Text, Token, format_prompt, parse

DUCK, CAT = Token("me", "duck"), Token("me", "cat")


def only_word(text):
    (word,) = parse(text).pieces
    return word


def test_a_prompt_is_cut_into_text_and_words():
    prompt = parse("a photo of <karpathy/cool-object-v7> in the style of <trippystyle:0.8>.")
    assert prompt.pieces == (
        Text("a photo of "),
        ConceptRef((Mention(Token("karpathy", "cool-object", 7)),)),
        Text(" in the style of "),
        ConceptRef((Mention(Token(None, "trippystyle"), 0.8),)),
        Text("."),
    )
    assert prompt.mentions == (Mention(Token("karpathy", "cool-object", 7)), Mention(Token(None, "trippystyle"), 0.8))


@pytest.mark.parametrize(
    "text",
    ["a < b and c > d", "1 <2", "i <3 you", "", "<", ">", "< me/duck>", "{7*7} __import__", "a | b", "8:45", "a\nb"],
)
def test_what_opens_no_word_is_text(text):
    assert parse(text).pieces == ((Text(text),) if text else ())


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (r"\<me/duck\>", "<me/duck>"),
        (r"\(a\) \[b\] \{c\|d\} \_\_e\_\_ \\", r"(a) [b] {c|d} __e__ " + "\\"),
        (r"a\b", "ab"),  # a lone backslash is nothing, as in A1111
        ("a\\", "a"),
        (r"(x:1\.5)", "x:1.5"),
        (r"B\REAK and A\ND", "BREAK and AND"),
    ],
)
def test_escapes(typed, text):
    assert "".join(piece.text for piece in parse(typed).pieces) == text


def test_capitals_are_folded_in_prompts():
    assert parse("<Me/Duck-V2>").mentions[0].token == Token("me", "duck", 2)


STRENGTHS = {
    "0": 0.0, "0.8": 0.8, ".5": 0.5, "2": 2.0, "1.": 1.0, "5": 5.0, "-5": -5.0, "-1": -1.0, "-.5": -0.5, "-1.": -1.0,
    "+1": 1.0, "+ .5": None, "1e0": 1.0, "5E-1": 0.5, "-2e+0": -2.0, "- 1": None, "\u22121.5": -1.5, "\u20132": -2.0,
    "\uff0d1": -1.0, " -1 ": -1.0, "-0": 0.0, "00.5": 0.5, "1e-999": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("strength", [text for text, value in STRENGTHS.items() if value is not None])
def test_strengths(strength):
    [mention] = parse(f"<me/duck:{strength}>").mentions
    assert mention.strength == STRENGTHS[strength]
    assert math.copysign(1, mention.strength) == 1 or mention.strength < 0  # one zero only
    assert parse(format_prompt(parse(f"a <me/duck:{strength}> b"))) == parse(f"a <me/duck:{strength}> b")


@pytest.mark.parametrize(
    "strength",
    [
        *("nan", "inf", "-inf", "1e9", "-5.01", "5.01", "", "-", "+", "--1", "+-1", "e5", "1e", "1e1", ".5:.5", "0x1"),
        *("1_0", "١", "9" * 400, "-" + "9" * 400, "1e" + "9" * 400, "- 1", "1,5", "1-", "50%"),
    ],
)
def test_other_strengths_are_refused(strength):
    with pytest.raises(UserError, match="must be a number from -5 to 5") as caught:
        parse(f"a <me/duck:{strength}>")
    assert parse(example_in(caught.value))


def example_in(error):
    """The first thing in brackets that the message proposes."""
    fix = error.hint
    return fix[fix.index("<") : fix.index(">") + 1]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<me/ink:0.7@0.4-1>", ConceptRef((Mention(Token("me", "ink"), 0.7),), 0.4, 1.0)),
        ("<me/duck@0-0.6>", ConceptRef((Mention(DUCK),), 0.0, 0.6)),
        ("<me/duck @ .25 - .5>", ConceptRef((Mention(DUCK),), 0.25, 0.5)),
        ("<me/duck+me/cat>", ConceptRef((Mention(DUCK, 0.5), Mention(CAT, 0.5)))),
        ("<me/duck:0.7 + me/cat:0.3>", ConceptRef((Mention(DUCK, 0.7), Mention(CAT, 0.3)))),
        ("<me/duck:0.7+me/cat:0.3@0-0.6>", ConceptRef((Mention(DUCK, 0.7), Mention(CAT, 0.3)), 0.0, 0.6)),
        ("<me/duck:-1>", ConceptRef((Mention(DUCK, -1.0),))),
        ("<me/duck:-1@0-0.6>", ConceptRef((Mention(DUCK, -1.0),), 0.0, 0.6)),
        ("<me/duck:-.5@.4\u20131>", ConceptRef((Mention(DUCK, -0.5),), 0.4, 1.0)),
        ("<me/duck:-1+me/cat:2>", ConceptRef((Mention(DUCK, -1.0), Mention(CAT, 2.0)))),
        ("<me/duck:+1+me/cat:+2>", ConceptRef((Mention(DUCK), Mention(CAT, 2.0)))),
        ("<me/duck: +1e+0 + me/cat:-1e+0@0-.5>", ConceptRef((Mention(DUCK), Mention(CAT, -1.0)), 0.0, 0.5)),
        ("<me/a-1e+me/cat>", ConceptRef((Mention(Token("me", "a-1e"), 0.5), Mention(CAT, 0.5)))),
        ("(<me/duck:-1>:1.3)", ConceptRef((Mention(DUCK, -1.0),), weight=1.3)),
        (
            "<me/duck-v1+me/duck-v2>",
            ConceptRef((Mention(Token("me", "duck", 1), 0.5), Mention(Token("me", "duck", 2), 0.5))),
        ),
        ("(<me/duck>:1.3)", ConceptRef((Mention(DUCK),), weight=1.3)),
    ],
)
def test_windows_blends_and_weights_of_words(text, word):
    assert only_word(text) == word


def test_three_in_a_blend_have_a_third_each():
    assert [part.strength for part in parse("<a+b+c>").mentions] == [1 / 3] * 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<me/duck@>", "two numbers from 0 to 1"),
        ("<me/duck@0.5>", "two numbers from 0 to 1"),
        ("<me/duck@0.6-0.4>", "the smaller first"),
        ("<me/duck@0.5-0.5>", "the smaller first"),
        ("<me/duck@0-1.1>", "from 0 to 1"),
        ("<me/duck@nan-1>", "from 0 to 1"),
        ("<me/duck@-1-1>", "from 0 to 1"),
        ("<me/duck@+0-1>", "two numbers|a blend has one"),
        ("<me/duck:-1+me/cat>", "some have none"),
        ("<me/duck:-1+>", "not a concept's token|some have none"),
        ("<me/duck:->", "from -5 to 5"),
        ("<me/duck:+>", "from -5 to 5"),
        ("<me/duck@0-0.5@0.5-1>", "two numbers from 0 to 1"),
        ("<me/duck@0-0.5:0.7>", "two numbers from 0 to 1"),
        ("<me/duck@0-0.5+me/cat>", "a blend has one for all"),
        ("<me/duck+me/cat:0.3>", "some have none"),
        ("<me/duck+me/duck>", "twice"),
        ("<" + "+".join("abcdefghi") + ">", "blends 9 concepts"),
        ("<me/duck+>", "not a concept's token"),
        ("<>", "<> is not a concept's token"),
        ("<<me/duck>>", None),
    ],
)
def test_mistakes_in_words(text, problem):
    if problem is None:  # the inner one is a word, the outer brackets are text
        assert parse(text).pieces == (Text("<"), ConceptRef((Mention(DUCK),)), Text(">"))
        return
    with pytest.raises(UserError, match=problem) as caught:
        parse(f"a photo of {text}, at dawn")
    if text != "<>":
        assert text[1:-1].split("+")[0] in caught.value.message or text.endswith("+>")
    if "<" in caught.value.hint:
        parse(example_in(caught.value))


@pytest.mark.parametrize(
    ("pasted", "instead"),
    [
        ("<lora:add_detail:0.8>", "<me/add-detail:0.8>"),
        ("<lora:Arcane Style v2.1:1>", "<me/arcane-style-v2-1>"),
        ("<lora:x>", "<me/x>"),
        ("<LyCO:x:0.5:0.7>", "<me/x:0.5>"),
        ("<lora:x:te=0.5:unet=0.7>", "<me/x>"),
        ("<lora:x:3>", "<me/x:3>"),
        ("<lora:x:-1.5>", "<me/x:-1.5>"),
        ("<lora:x:\u22122>", "<me/x:-2>"),
        ("<lora:x:+1>", "<me/x>"),
        ("<lora:x:-0>", "<me/x:0>"),
        ("<lora:x:-9>", "<me/x:-5>"),
        ("<lora:x:9>", "<me/x:5>"),
        ("<lora:x:1e400>", "<me/x:5>"),
        ("<lora:slider:-3:0>", "<me/slider:-3>"),
        ("<lora:日本:0.5>", "<me/my-style:0.5>"),
    ],
)
def test_what_a1111_calls_a_lora_gets_its_name_here(pasted, instead):
    with pytest.raises(UserError, match="how A1111 loads a LoRA") as caught:
        parse(f"masterpiece, {pasted}, 1girl")
    assert caught.value.hint.endswith(f"then write {instead}.")
    assert parse(instead).mentions


def test_a_hypernetwork_is_refused():
    with pytest.raises(UserError, match="hypernetwork"):
        parse("<hypernet:anime:1>")


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
    with pytest.raises(UserError) as caught:
        parse(f"a <{word}> here")
    assert proposal.lower() in caught.value.hint.lower() or proposal == "Write it like"


def test_look_alikes_are_named():
    with pytest.raises(UserError, match="CYRILLIC SMALL LETTER U"):
        parse("<m\u0443-cat>")


@pytest.mark.parametrize(
    "name", ["con", "NUL", "com1", "a" * 65, "", " ", "a\nb", "a\u200bb", "\u202ecat", "dog.", "a--b", "a-", "cat:2"]
)
def test_names_that_no_concept_can_have(name):
    with pytest.raises(UserError):
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
    with pytest.raises(UserError, match="2,001 characters"):
        parse("x" * (MAX_PROMPT + 1))


def test_nothing_printed_can_steer_a_terminal():
    assert printable("a\x1b[2Jb\x00\u202e\udcff") == r"a\x1b[2Jb\x00\u202e\udcff"
    assert len(printable("x" * 500)) == 80


# --- written again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        ("a <Me/Duck:0.80> at dawn", "a <me/duck:0.8> at dawn"),
        ("<me/duck:0.5+me/cat:.5@0-.6>", "<me/duck+me/cat@0-0.6>"),
        ("((<me/duck> in rain:1.3))", "(<me/duck> in rain:1.4300000000000002)"),
        ("((<me/duck>) in rain:1.5)", "(<me/duck>:1.6500000000000001)( in rain:1.5)"),
        ("a\n BREAK  b", "a BREAK b"),
        (r"a \BREAK\ b", r"a \BREAK\ b"),  # spaces that BREAK would take
        (r"8:45 \(x\) \{a|b\} \_\_c\_\_ d_e <3", r"8:45 \(x\) \{a|b\} \_\_c\_\_ d_e \<3"),
        ("unclosed [x", "unclosed (x:0.9090909090909091)"),
        ("(x:0.00001)", "(x:0.00001)"),
        ("(x:10)", "(x:10)"),
        (r"A\ND B\REAK SANDY", r"A\ND B\REAK SANDY"),
    ],
)
def test_a_prompt_is_written_again(typed, again):
    assert format_prompt(parse(typed)) == again
    assert parse(again) == parse(typed)


def test_a_changed_prompt_is_written():
    prompt = parse("a (<me/duck>:1.2) here")
    words = tuple(ConceptRef(p.parts, 0.2, 1.0, p.weight) if isinstance(p, ConceptRef) else p for p in prompt.pieces)
    assert format_prompt(Prompt("", words)) == "a (<me/duck@0.2-1>:1.2) here"


ALPHABET = [*"<>/:-@+.()[]{}|\\_,$ \n\x00\x1b019avBREAK", "у", "🙂", "'", "<me/duck", "BREAK", "AND", "__", "::", "$$"]
WORDS = ["<me/duck>", "<a+b@0-.5>", "<a:-1+b:+2>", " BREAK ", ":1.2)"]
TYPED = st.lists(st.sampled_from([*ALPHABET, *WORDS]), max_size=30).map("".join)


@settings(max_examples=2000, deadline=None)
@given(TYPED)
def test_any_text_is_a_prompt_or_a_personal_error(text):
    try:
        prompt = parse(text)
    except UserError as error:
        assert all(line.isprintable() for line in str(error).split("\n"))
        return
    for mention in prompt.mentions:
        assert Token.parse(str(mention.token)) == mention.token
        assert -5 <= mention.strength <= 5
    assert all(piece == Break() or 0 <= piece.weight <= 10 for piece in prompt.pieces)
    for piece, after in pairwise(prompt.pieces):
        assert not (isinstance(piece, Text) and isinstance(after, Text) and piece.weight == after.weight)
    again = format_prompt(prompt)
    assert parse(again) == prompt
    assert format_prompt(parse(again)) == again
