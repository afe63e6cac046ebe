"""The prompt language: what is a word, what is text, and what is told to whoever got it wrong."""

import math
import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpersonal.errors import UserError, printable
from sdpersonal.prompts import (
    MAX_PROMPT,
    BlockWeights,
    Break,
    ConceptRef,
    Mention,
    Prompt,
    Region,
    Text,
    Token,
    format_prompt,
    parse,
)
from sdpersonal.prompts.block_weights import FORMS
from sdpersonal.prompts.concept_options import OPTIONS as OPTION_NAMES

DUCK, CAT = Token("me", "duck"), Token("me", "cat")


def only_word(text):
    (word,) = parse(text).pieces
    return word


def test_a_prompt_is_parsed_into_text_and_concept_references():
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
def test_special_characters_without_syntax_are_text(text):
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
def test_backslashes_escape_special_characters(typed, text):
    assert "".join(piece.text for piece in parse(typed).pieces) == text


def test_tokens_in_prompts_are_lowercased():
    assert parse("<Me/Duck-V2>").mentions[0].token == Token("me", "duck", 2)


STRENGTHS = {
    "0": 0.0, "0.8": 0.8, ".5": 0.5, "2": 2.0, "1.": 1.0, "5": 5.0, "-5": -5.0, "-1": -1.0, "-.5": -0.5, "-1.": -1.0,
    "+1": 1.0, "+ .5": None, "1e0": 1.0, "5E-1": 0.5, "-2e+0": -2.0, "- 1": None, "\u22121.5": -1.5, "\u20132": -2.0,
    "\uff0d1": -1.0, " -1 ": -1.0, "-0": 0.0, "00.5": 0.5, "1e-999": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("strength", [text for text, value in STRENGTHS.items() if value is not None])
def test_valid_strengths_are_parsed(strength):
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
def test_invalid_strengths_are_refused_with_a_valid_example(strength):
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
def test_windows_blends_and_weights_are_parsed(text, word):
    assert only_word(text) == word


def test_a_blend_of_three_gives_each_concept_a_third():
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
def test_invalid_concept_references_are_refused(text, problem):
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
def test_a1111_lora_tags_are_refused_with_a_replacement(pasted, instead):
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
def test_invalid_tokens_are_refused_with_a_valid_proposal(word, proposal):
    with pytest.raises(UserError) as caught:
        parse(f"a <{word}> here")
    assert proposal.lower() in caught.value.hint.lower() or proposal == "Write it like"


def test_look_alike_letters_are_refused_by_name():
    with pytest.raises(UserError, match="CYRILLIC SMALL LETTER U"):
        parse("<m\u0443-cat>")


@pytest.mark.parametrize(
    "name", ["con", "NUL", "com1", "a" * 65, "", " ", "a\nb", "a\u200bb", "\u202ecat", "dog.", "a--b", "a-", "cat:2"]
)
def test_invalid_concept_names_are_refused(name):
    with pytest.raises(UserError):
        Token.parse(name)


def test_tokens_match_their_versions_and_short_forms():
    cat = Token("me", "cat", 3)
    assert [str(token) for token in (cat, cat.unversioned(), Token(None, "cat"))] == [
        "<me/cat-v3>",
        "<me/cat>",
        "<cat>",
    ]
    assert all(Token.parse(text).matches(cat) for text in ("cat", "<cat-v3>", "me/cat", "<me/cat-v3>"))
    assert not any(Token.parse(text).matches(cat) for text in ("cats", "<cat-v2>", "you/cat"))
    assert cat.slug == "me-cat"


def test_too_long_prompts_are_refused():
    with pytest.raises(UserError, match="2,001 characters"):
        parse("x" * (MAX_PROMPT + 1))


def test_printable_escapes_control_characters():
    assert printable("a\x1b[2Jb\x00\u202e\udcff") == r"a\x1b[2Jb\x00\u202e\udcff"
    assert len(printable("x" * 500)) == 80


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "guidance", "region"),
    [
        ("<me/duck:guidance=2>", 2.0, None),
        ("<me/duck:0.8:GUIDANCE = .5>", 0.5, None),
        ("<me/duck:at=left>", None, Region(0.0, 0.0, 0.5, 1.0)),
        ("<me/duck: At = Top-Right >", None, Region(0.5, 0.0, 1.0, 0.5)),
        ("<me/duck:at=centre>", None, Region(0.25, 0.25, 0.75, 0.75)),
        ("<me/duck:box=0.5,0.2,1,0.9>", None, Region(0.5, 0.2, 1.0, 0.9)),
        ("<me/duck:box= 0 , .5, 1 , 1 :guidance=0@0-0.6>", 0.0, Region(0.0, 0.5, 1.0, 1.0)),
        ("<me/duck+me/cat:guidance=3:at=bottom>", 3.0, Region(0.0, 0.5, 1.0, 1.0)),
        ("<me/duck:at=bottom+me/cat:guidance=3>", 3.0, Region(0.0, 0.5, 1.0, 1.0)),
        ("<me/duck:0.7:guidance=3+me/cat:0.3:at=right@0-0.6>", 3.0, Region(0.5, 0.0, 1.0, 1.0)),
    ],
)
def test_guidance_and_region_belong_to_the_whole_reference(text, guidance, region):
    reference = only_word(text)
    assert (reference.guidance, reference.region) == (guidance, region)
    plain = parse(text.split(":at")[0].split(":guidance")[0] + ">") if "+" not in text else None
    assert plain is None or reference.parts[0].token == plain.mentions[0].token
    assert all(part.blocks is None and part.ramp == (1, 1) for part in reference.parts)


def weights(**blocks):
    """What the text says, block by block: IN, MID, OUT and BASE for groups, else names of blocks; 0 for others."""
    names = ["BASE", *(f"IN{i:02}" for i in range(12)), "MID", *(f"OUT{i:02}" for i in range(12))]
    return tuple(blocks.get(name, blocks.get(name.rstrip("0123456789"), 0.0)) for name in names)


def listed(numbers):
    return ",".join(map(str, numbers))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("in=0.2:mid=1:out=1", weights(BASE=1.0, IN=0.2, MID=1.0, OUT=1.0)),
        ("OUT=-1", weights(BASE=1.0, IN=1.0, MID=1.0, OUT=-1.0)),
        ("base=0:mid=\u22120.5", weights(BASE=0.0, IN=1.0, MID=-0.5, OUT=1.0)),
        ("lbw=outall", weights(BASE=1.0, OUT=1.0)),
        ("lbw=MID", weights(MID=1.0)),
        ("lbw=NIN04", weights(BASE=1.0, IN=1.0, IN04=0.0, MID=1.0, OUT=1.0)),
        ("lbw=ALL0.5", weights(BASE=0.5, IN=0.5, MID=0.5, OUT=0.5)),
        ("lbw=1,2,3,4,5,.5,.25,+1,0,0,0,-1", weights(
            BASE=1.0, IN04=2.0, IN05=3.0, IN07=4.0, IN08=5.0, MID=0.5, OUT00=0.25, OUT01=1.0, OUT05=-1.0)),
        (f"lbw={listed(range(-5, 6))},1,2,3,4,5,0", weights(
            BASE=-5.0, IN01=-4.0, IN02=-3.0, IN04=-2.0, IN05=-1.0, IN07=0.0, IN08=1.0, MID=2.0,
            OUT03=3.0, OUT04=4.0, OUT05=5.0, OUT06=1.0, OUT07=2.0, OUT08=3.0, OUT09=4.0, OUT10=5.0, OUT11=0.0)),
        (f"lbw={listed([1] * 10)},{listed([2] * 10)}", weights(
            BASE=1.0, IN=1.0, IN09=0.0, IN10=0.0, IN11=0.0, MID=2.0, OUT=2.0, OUT09=0.0, OUT10=0.0, OUT11=0.0)),
        (f"lbw={listed([1] * 13)},0.5,{listed([2] * 12)}", weights(BASE=1.0, IN=1.0, MID=0.5, OUT=2.0)),
    ],
)  # fmt: skip
def test_block_weights_are_parsed(options, expected):
    for text in (f"<me/ink:{options}>", f"<me/ink:0.8:{options}@0-0.5>", f"<me/duck:{options}+me/cat>"):
        [mention, *others] = parse(text).mentions
        assert mention.blocks == BlockWeights(expected) and not any(part.blocks for part in others)
        assert parse(format_prompt(parse(text))) == parse(text)


@pytest.mark.parametrize("options", ["in=1:mid=1:out=1", "lbw=ALL", "ramp=1-1", f"lbw={listed([1] * 26)}"])
def test_options_without_effect_are_dropped(options):
    assert parse(f"<me/duck:{options}>") == parse("<me/duck>")


EXTENSION_PRESETS = {  # the default ones of A1111's LoRA Block Weight, in its form of 17
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": listed([0.5] * 17),
    "IN05": "0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0",
    "NOUT03": "1,1,1,1,1,1,1,1,0,1,1,1,1,1,1,1,1",
}


@pytest.mark.parametrize("name", EXTENSION_PRESETS)
def test_block_weight_presets_match_the_a1111_extension(name):
    ours, theirs = (
        parse(f"<a:0.5:lbw={value}>").mentions[0].blocks or BlockWeights() for value in (name, EXTENSION_PRESETS[name])
    )
    assert [ours[block] for block in FORMS[17]] == [theirs[block] for block in FORMS[17]]


def test_ramps_are_parsed():
    assert only_word("<me/ink:0.8:ramp=0.2 - 1@0-0.5>").parts == (Mention(Token("me", "ink"), 0.8, ramp=(0.2, 1.0)),)
    [first, second] = parse("<me/duck:ramp=0\u20132:in=.5+me/cat>").mentions
    assert first == Mention(DUCK, 0.5, BlockWeights(weights(BASE=1.0, IN=0.5, MID=1.0, OUT=1.0)), (0.0, 2.0))
    assert second == Mention(CAT, 0.5)


@pytest.mark.parametrize(
    ("inner", "problem"),
    [
        ("me/duck:size=2", "unknown option, size"),
        ("me/duck:gidance=2", "unknown option, gidance"),
        ("me/duck:=2", "unknown option"),
        ("me/duck:at=left:AT=left", "the option at twice"),
        ("me/duck:at=left+me/cat:at=left", "the option at twice"),
        ("me/duck:guidance=1+me/cat:guidance=1", "the option guidance twice"),
        ("me/duck:in=1:in=1", "the option in twice"),
        ("me/duck:at=left:box=0,0,1,1", "both at and box"),
        ("me/duck:at=left+me/cat:box=0,0,1,1", "both at and box"),
        ("me/duck:lbw=ALL:mid=1", "both lbw and mid"),
        ("me/duck:at=", "at .*must be left, right"),
        ("me/duck:at=above", "at .*must be left, right"),
        *(
            (f"me/duck:guidance={number}", "from 0 to 20")
            for number in ("", "-1", "20.1", "nan", "inf", "1e9", "9" * 400)
        ),
        *(
            (f"me/duck:box={box}", "left,top,right,bottom")
            for box in (
                "",
                "0,0,1",
                "0,0,1,1,1",
                "1,0,0,1",
                "0,0.5,1,0.5",
                "0,0,1,1.1",
                "-1,0,1,1",
                "0,0,nan,1",
                "0,,1,1",
            )
        ),
        *(
            (f"me/duck:ramp={ramp}", "two factors")
            for ramp in ("", "1", "0-", "0-6", "-1-1", "nan-1", "0-1-2", "0-1e9")
        ),
        *((f"me/duck:in={weight}", "from -5 to 5") for weight in ("", "6", "-5.1", "inf", "nan", "1e99", "R", "a,b")),
        ("me/duck:lbw=", "or a preset"),
        ("me/duck:lbw=OUTALLS", "or a preset"),
        ("me/duck:lbw=1,2,3", "has 3 numbers"),
        ("me/duck:lbw=" + listed([1] * 11) + ",R", "has 'R'"),
        ("me/duck:lbw=" + listed([1] * 11) + ",", "has ''"),
        ("me/duck:lbw=" + listed([1] * 900), "has 900 numbers"),
        ("me/duck@0-0.6:at=left", "after its window"),
        ("me/duck:0.8:left", "from -5 to 5"),
        ("me/duck:at=left:0.8:0.9", "from -5 to 5"),
        ("me/duck:at=left+me/cat:0.3", "some have none"),
    ],
)
def test_invalid_options_are_refused(inner, problem):
    with pytest.raises(UserError, match=problem) as caught:
        parse(f"a photo of <{inner}>, at dawn")
    assert inner.lower()[:50] in caught.value.message.lower()
    assert parse(example_in(caught.value))
    if "unknown" in problem:
        assert all(name in caught.value.hint for name in OPTION_NAMES)


@pytest.mark.parametrize("sign", [":", "+", "=", ",", ":+", ":at=", ":0.", "+:", ":1e+", ":in=+", " ", "@", "-"])
def test_long_concept_references_are_parsed_quickly(sign):
    text, begin = sign * (1900 // len(sign)), time.perf_counter()
    for prompt in (f"<a{text}>", f"<a:lbw={text}>", f"<a:0.8{text}0>"):
        with suppress(UserError):
            parse(prompt)
    assert time.perf_counter() - begin < 2  # milliseconds


@pytest.mark.parametrize(
    ("pasted", "instead"),
    [
        ("<lora:x:0.8:lbw=OUTS>", "<me/x:0.8:lbw=OUTS>"),
        ("<lora:x:1:OUTALL>", "<me/x:in=0:mid=0>"),
        ("<lora:x:1:0.5:lbw=IN04:stop=10>", "<me/x:lbw=IN04>"),
        ("<lyco:x:1:1:lbw=0,0,0,0,0,0,0,0,1,1,1,0>", "<me/x:lbw=0,0,0,0,0,0,0,0,1,1,1,0>"),
        ("<lora:x:0.8:lbw=ALL>", "<me/x:0.8>"),
        ("<lora:x:0.8:lbw=MYSETS>", "<me/x:0.8>"),
    ],
)
def test_the_proposed_replacement_keeps_a1111_block_weights(pasted, instead):
    with pytest.raises(UserError) as caught:
        parse(pasted)
    assert caught.value.hint.endswith(f"then write {instead}.")
    assert parse(instead)


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
        ("<a : AT = Left:0.5>", "<a:0.5:at=left>"),
        ("<a:box=0,0,.5,1+b:IN=0.20@0-.6>", "<a+b:in=0.2:at=left@0-0.6>"),
        ("<a:ramp=.2-1:guidance=2.0:lbw=inall>", "<a:mid=0:out=0:ramp=0.2-1:guidance=2>"),
        ("<a:lbw=ind:box=0,0,.4,1>", "<a:lbw=IND:box=0,0,0.4,1>"),
    ],
)
def test_format_prompt_writes_the_canonical_form(typed, again):
    assert format_prompt(parse(typed)) == again
    assert parse(again) == parse(typed)


def test_format_prompt_writes_a_changed_prompt():
    prompt = parse("a (<me/duck>:1.2) here")
    words = tuple(ConceptRef(p.parts, 0.2, 1.0, p.weight) if isinstance(p, ConceptRef) else p for p in prompt.pieces)
    assert format_prompt(Prompt("", words)) == "a (<me/duck@0.2-1>:1.2) here"


ALPHABET = [*"<>/:-@+.()[]{}|\\_,$ \n\x00\x1b019avBREAK", "у", "🙂", "'", "<me/duck", "BREAK", "AND", "__", "::", "$$"]
OPTIONS = [":at=left", ":guidance=2", ":in=.5", ":lbw=OUTS", ":ramp=0-1", ":box=0,.1,.5,1", ":out=-1:base=0", "=", ","]
WORDS = [
    "<me/duck>",
    "<a+b@0-.5>",
    "<a:-1+b:+2>",
    " BREAK ",
    ":1.2)",
    "<me/duck:at=left>",
    "<a:lbw=IND+b:in=0:ramp=1-0>",
]
TYPED = st.lists(st.sampled_from([*ALPHABET, *WORDS, *OPTIONS]), max_size=30).map("".join)


UNIT = st.floats(0, 1).map(lambda value: round(value, 6))
STRENGTH = st.floats(-5, 5).map(lambda value: round(value, 6) + 0.0)
BLOCKS = st.none() | st.sampled_from(sorted(FORMS)).flatmap(
    lambda size: st.lists(STRENGTH | st.sampled_from([0.0, 1.0]), min_size=size, max_size=size).map(
        lambda numbers: BlockWeights.of_list(tuple(numbers))
    )
).filter(lambda blocks: blocks != BlockWeights())
REGION = st.builds(Region, UNIT, UNIT, UNIT, UNIT).filter(lambda r: r.left < r.right and r.top < r.bottom)
MENTIONS = st.builds(
    Mention, st.sampled_from([DUCK, CAT, Token(None, "a", 3)]), STRENGTH, BLOCKS, st.tuples(UNIT, UNIT)
)
REFERENCES = st.builds(
    ConceptRef,
    st.lists(MENTIONS, min_size=1, max_size=3, unique_by=lambda mention: mention.token).map(tuple),
    start=st.sampled_from([0.0, 0.1, 0.25]),
    end=st.sampled_from([0.5, 1.0]),
    guidance=st.none() | UNIT.map(lambda value: round(20 * value, 6)),
    region=st.none() | REGION,
)


@settings(max_examples=100, deadline=None)
@given(REFERENCES)
def test_any_concept_reference_round_trips(reference):
    assert parse(format_prompt(Prompt("", (reference,)))).pieces == (reference,)


@settings(max_examples=2000, deadline=None)
@given(TYPED)
def test_any_text_is_parsed_or_refused(text):
    try:
        prompt = parse(text)
    except UserError as error:
        assert all(line.isprintable() for line in str(error).split("\n"))
        return
    for mention in prompt.mentions:
        assert Token.parse(str(mention.token)) == mention.token
        assert -5 <= mention.strength <= 5 and all(0 <= factor <= 5 for factor in mention.ramp)
        assert all(-5 <= weight <= 5 for weight in mention.blocks.values) if mention.blocks else True
    assert all(piece == Break() or 0 <= piece.weight <= 10 for piece in prompt.pieces)
    for piece, after in pairwise(prompt.pieces):
        assert not (isinstance(piece, Text) and isinstance(after, Text) and piece.weight == after.weight)
    again = format_prompt(prompt)
    assert parse(again) == prompt
    assert format_prompt(parse(again)) == again
