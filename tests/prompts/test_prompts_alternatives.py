"""Alternatives and lists: what they can become is held to a list of all, what is drawn to the weights."""

import itertools
import os
import re
import time
from collections import Counter
from contextlib import contextmanager
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prompts import TYPED

from sdpersonal.errors import UserError
from sdpersonal.prompts import (
    MAX_PROMPT,
    Wildcards,
    all_prompts,
    combinatorics,
    count_prompts,
    format_prompt,
    has_alternatives,
    nth_prompt,
    parse,
    sample_prompt,
)

NONE = Wildcards(None)
LISTS = {
    "colour.txt": "# of cars\nred\n2::blue\n\n{dark|light} green\n",
    "animals/cats.txt": "\ufeff__colour__ cat\r\ntiger\r\n",
    "animals/north_dogs.txt": "husky\n",
    "often.txt": "9::a\n1::b\n0::never\n",
    "subjects.txt": "<me/duck>\n<me/cat:0.5>\n",
}


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    for name, text in LISTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


@pytest.fixture(scope="module")
def wildcards(lists):
    wildcard_lists = Wildcards(lists)
    wildcard_lists.lines("colour")  # the first text that is read loads Python's own module for its encoding
    return wildcard_lists


# --- what a template can become --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        ("plain", ["plain"]),
        ("", [""]),
        ("{samurai|cowboy|saint}", ["samurai", "cowboy", "saint"]),
        ("a{b|c}d{e|f}", ["abde", "abdf", "acde", "acdf"]),
        ("{a|{b|c}|}", ["a", "b", "c", ""]),
        ("a duck{ in rain|}", ["a duck in rain", "a duck"]),
        ("{2::a|.5::b|0::c}", ["a", "b"]),
        ("{a|b|a}", ["a", "b"]),  # twice is twice as often, not twice
        ("{2$$a|b|c}", ["a, b", "a, c", "b, a", "b, c", "c, a", "c, b"]),
        ("{2$$ and $$a|b}", ["a and b", "b and a"]),
        ("{2$$$$a|b}", ["ab", "ba"]),
        ("{1-2$$a|b}", ["a", "b", "a, b", "b, a"]),
        ("{-1$$a|b}", ["a", "b"]),
        ("{2-$$a|b}", ["a, b", "b, a"]),
        ("{2-1$$a|b}", ["a", "b", "a, b", "b, a"]),
        ("{0-1$$a|b}", ["", "a", "b"]),
        ("{9$$a|b}", ["a, b", "b, a"]),
        ("{2$$a|{b|c}}", ["a, b", "a, c", "b, a", "c, a"]),
        ("{}{x}", ["x"]),
        ("{<me/a>|<me/b:0.5>}", ["<me/a>", "<me/b:0.5>"]),
        ("<me/{a|b}:{0.5|1}>", ["<me/a:0.5>", "<me/a:1>", "<me/b:0.5>", "<me/b:1>"]),
        (r"\{a|b\} {\||\}} \_\_colour\_\_", [r"\{a|b\} \| \_\_colour\_\_", r"\{a|b\} \} \_\_colour\_\_"]),
        (r"\\{a|b}", [r"\\a", r"\\b"]),
        ("a | b } $ _ __ c__", ["a | b } $ _ __ c__"]),
        ("{{{masterpiece}}}", ["masterpiece"]),
        ("__colour__", ["red", "blue", "dark green", "light green"]),
        ("__animals/cats__", ["red cat", "blue cat", "dark green cat", "light green cat", "tiger"]),
        ("{2$$__animals/north_dogs__}", ["husky"]),
        ("{2$$ __subjects__ }", ["<me/duck>, <me/cat:0.5>", "<me/cat:0.5>, <me/duck>"]),
        ("{2$$__often__|__subjects__}", [f"{x}, {y}" for x in "ab" for y in ("<me/duck>", "<me/cat:0.5>")]
         + [f"{y}, {x}" for y in ("<me/duck>", "<me/cat:0.5>") for x in "ab"]),
    ],
)  # fmt: skip
def test_a_template_expands_to_all_its_prompts(template, prompts, wildcards):
    assert list(all_prompts(template, wildcards)) == prompts
    assert count_prompts(template, wildcards) == len(prompts)
    assert [nth_prompt(template, i, wildcards) for i in range(len(prompts))] == prompts
    assert {sample_prompt(template, seed, wildcards) for seed in range(200)} == set(prompts)
    assert has_alternatives(template) == (prompts != [template])


@st.composite
def trees(draw, depth=2):
    """(template, all its prompts): built together, neither read from the other."""
    template, parts = "", []
    for _ in range(draw(st.integers(1, 3))):
        text, prompts = draw(braces(depth - 1)) if depth and draw(st.booleans()) else (None, [])
        if text is None or prod(map(len, [*parts, prompts])) > 500:
            text = draw(st.text("xyz ", max_size=3))
            prompts = [text]
        template, parts = template + text, [*parts, prompts]
    return template, ["".join(picked) for picked in itertools.product(*parts)]


def picks(options, k):
    if k == 0:
        yield ()
        return
    for i, prompts in enumerate(options):
        for prompt in prompts:
            yield from ((prompt, *rest) for rest in picks(options[:i] + options[i + 1 :], k - 1))


@st.composite
def braces(draw, depth):
    options = draw(st.lists(trees(depth), min_size=1, max_size=3, unique_by=lambda one: one[0]))
    low, high = sorted((draw(st.integers(0, 3)), draw(st.integers(1, 3))))
    joiner = draw(st.sampled_from([", ", " and ", ""]))
    if draw(st.booleans()):
        header, low, high = "", 1, 1
    else:
        header = f"{low}-{high}$$" + ("" if joiner == ", " else f"{joiner}$$")
    some = (
        joiner.join(picked)
        for k in range(min(low, len(options)), min(high, len(options)) + 1)
        for picked in picks([prompts for _, prompts in options], k)
    )
    return "{" + header + "|".join(text for text, _ in options) + "}", list(itertools.islice(some, 501))


@settings(max_examples=150, deadline=None)
@given(trees())
def test_nested_templates_expand_to_all_combinations(tree):
    template, prompts = tree
    assert list(all_prompts(template, NONE)) == prompts
    assert count_prompts(template, NONE) == len(prompts)
    assert nth_prompt(template, len(prompts) // 2, NONE) == prompts[len(prompts) // 2]
    assert sample_prompt(template, 3, NONE) in prompts


def test_nth_prompt_does_not_enumerate_the_prompts(monkeypatch):
    template = "{a|b|c|d|e|f|g|h|i|j}" * 30 + "{3$$x|y|z|{u|v}|w}"
    assert count_prompts(template, NONE) == 10**30 * (24 + 36 * 2)
    calls = Counter()
    for kind in (combinatorics.VariantNode, combinatorics.SequenceNode):
        real = kind.nth
        monkeypatch.setattr(kind, "nth", lambda self, i, real=real: (calls.update(["nth"]), real(self, i))[1])
    assert nth_prompt(template, 10**30 * 96 - 1, NONE) == "j" * 30 + "w, v, z"
    assert nth_prompt(template, 96 * 12345, NONE).startswith("a" * 25 + "bcdef")
    assert calls["nth"] < 200  # one for each node, twice
    assert next(all_prompts(template, NONE)) == "a" * 30 + "x, y, z"


def test_every_index_gives_a_different_prompt():
    template = "{a|b|c}{1-3$$ $$d|e|{f|g}}{h|i}"
    number = count_prompts(template, NONE)
    assert len({nth_prompt(template, i * 7919 % number, NONE) for i in range(number)}) == number


def test_an_index_out_of_range_is_refused():
    for i in (-1, 2, 10**40):
        with pytest.raises(UserError, match="has 2 prompts"):
            nth_prompt("{a|b}", i, NONE)


# --- chance ----------------------------------------------------------------------------------------------------------


def test_a_seed_always_samples_the_same_prompt():
    """Pictures drawn once are drawn again from their seeds: these must never change."""
    template = "{a|b|c} {2$$u|v|w|x} {5::often|seldom} {d{1|2|3}|e{1|2|3}}"
    assert [sample_prompt(template, seed, NONE) for seed in (0, 1, 2, -1, 10**20)] == PINNED


PINNED = ["b v, w often d3", "b v, u often e3", "c x, w often e2", "b x, v often e1", "a u, x often d1"]


def shares(template, wildcards=NONE, draws=4000):
    drawn = Counter(sample_prompt(template, seed, wildcards) for seed in range(draws))
    return {prompt: times / draws for prompt, times in drawn.items()}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{a|b|c|d}", dict.fromkeys("abcd", 1 / 4)),
        ("{6::a|2.5::b|1.5::c|0::d}", {"a": 0.6, "b": 0.25, "c": 0.15}),
        ("{a|a|b}", {"a": 2 / 3, "b": 1 / 3}),
        ("{a|{b|c}}", {"a": 1 / 2, "b": 1 / 4, "c": 1 / 4}),  # by options, not by what they can become
        ("{1-2$$a|b}", {"a": 1 / 4, "b": 1 / 4, "a, b": 1 / 4, "b, a": 1 / 4}),
        # Without putting back: 1/2 * 2/3 and so on.
        ("{2$$,$$2::a|b|c}", {"a,b": 1/4, "a,c": 1/4, "b,a": 1/6, "c,a": 1/6, "b,c": 1/12, "c,b": 1/12}),
        ("__often__", {"a": 0.9, "b": 0.1}),
        ("__colour__", {"red": 1/4, "blue": 1/2, "dark green": 1/8, "light green": 1/8}),
    ],
)  # fmt: skip
def test_sampled_prompts_follow_the_weights(template, expected, wildcards):
    got = shares(template, wildcards)
    assert got.keys() == expected.keys()
    for prompt, share in expected.items():  # four standard deviations
        assert abs(got[prompt] - share) < 4 * (share * (1 - share) / 4000) ** 0.5, prompt


def test_alternatives_are_sampled_independently():
    pairs = shares("{a|b|c}{a|b|c}")
    assert all(abs(share - 1 / 9) < 0.02 for share in pairs.values()) and len(pairs) == 9
    twice = shares("__often__ __often__", Wildcards(_folder_of_often()))
    assert abs(twice["b b"] - 0.01) < 0.007
    inner = Counter(sample_prompt("{x{a|b}|y{a|b}}", seed, NONE) for seed in range(4000))
    assert all(abs(times / 4000 - 1 / 4) < 0.03 for times in inner.values())


def _folder_of_often():
    Path("often.txt").write_text(LISTS["often.txt"])
    return Path.cwd()


def test_surrounding_text_does_not_change_the_sampled_alternative():
    for seed in range(50):
        first, second = sample_prompt("{a|b|c} {d|e|f}", seed, NONE).split()
        assert (
            sample_prompt("a photo of {a|b|c} and (of {d|e|f}:1.2)", seed, NONE)
            == f"a photo of {first} and (of {second}:1.2)"
        )


# --- bounds and mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("a {b|c", "the brace before 'b|c' is never closed"),
        ("{a|{b|c}", "never closed"),
        ("{", "never closed"),
        ("{2$$", "never closed"),
        ("{0::a|0::b}", "have the weight 0"),
        ("{1000001::a|b}", "weighs too much"),
        ("{" * 11 + "}" * 11, "more than 10 deep"),
        ("{1-$$" + "|".join(map(str, range(21))) + "}", "picks up to 21 at once"),
        ("{20$$" + "|".join("abcdefghijklmnopqrst") + "}" + "{8$${a|b}|c|d|e|f|g|h|i}" * 40, "choices for one prompt"),
        ("${season=winter}", "a variable"),
        ("x" * 2001, "2,001 characters"),
        ("{a|b}" + "x" * 1996, "2,001 characters"),
        ("__colour__", "No folder of wildcards"),
    ],
)
def test_invalid_templates_are_refused(template, problem):
    for ask in (
        lambda: sample_prompt(template, 0, NONE),
        lambda: count_prompts(template, NONE),
        lambda: nth_prompt(template, 0, NONE),
    ):
        with pytest.raises(UserError, match=problem):
            ask()


def test_an_expanded_prompt_that_is_too_long_is_refused(tmp_path):
    (tmp_path / "long.txt").write_text("y" * 1990)
    lists = Wildcards(tmp_path)
    assert len(sample_prompt("__long__ and more", 0, lists)) == MAX_PROMPT - 1
    for ask in (sample_prompt, nth_prompt):
        with pytest.raises(UserError, match="With its alternatives the prompt has 2,004"):
            ask("__long__ and much more", 0, lists)


def test_large_prompt_counts_can_be_printed():
    many = "{" + "|".join("abcdefghij") + "}"
    assert f"{count_prompts(many * 90, NONE):,}"


# --- lists -----------------------------------------------------------------------------------------------------------


def test_wildcard_files_are_read_line_by_line(wildcards):
    assert wildcards.lines("colour") == ["red", "2::blue", "{dark|light} green"]
    assert wildcards.lines("animals/cats") == ["__colour__ cat", "tiger"]
    assert wildcards.names() == ["colour", "often", "subjects", "animals/cats", "animals/north_dogs"][: len(LISTS)]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("color", "Did you mean __colour__?"),
        ("cat", "Did you mean __animals/cats__?"),
        ("animals/dogs", "__animals/north_dogs__"),
        ("quite different", "There are __colour__, "),
    ],
)
def test_a_missing_wildcard_gets_a_suggestion(name, fix, wildcards):
    with pytest.raises(UserError, match=f"There is no list {name}.txt in") as caught:
        sample_prompt(f"a __{name}__", 0, wildcards)
    assert fix in caught.value.hint


OUTSIDE = ["../secret", "/etc/passwd", "a/../../b", "..", "con", "a/NUL", "a//b", "a/", ".hidden", "a*", "a(b=c)"]


@pytest.mark.parametrize("name", [*OUTSIDE, "a\x00b", "a\\b", "x" * 5000, "日" * 200])
def test_wildcard_names_outside_the_folder_are_refused(name, lists):
    (lists.parent / "secret.txt").write_text("told")
    with pytest.raises(UserError):
        Wildcards(lists).lines(name)


def test_links_out_of_the_wildcard_folder_are_refused(tmp_path):
    folder = tmp_path / "lists"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("told")
    (folder / "inner" / "real.txt").write_text("fine")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "within.txt").symlink_to(folder / "inner" / "real.txt")
    (folder / "nowhere.txt").symlink_to(folder / "gone.txt")
    lists = Wildcards(folder)
    for name in ("out", "up/secret"):
        with pytest.raises(UserError, match="not inside"):
            lists.lines(name)
    with pytest.raises(UserError):
        lists.lines("nowhere")
    assert lists.lines("within") == ["fine"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"# only\n\n  \n", "is empty"),
        (b"caf\xe9\n", "not UTF-8"),
        (b"\x80\x04\x95pickle", "not UTF-8"),
        (b"a\n" + b"x" * 2001 + b"\n", "Line 2 of it.txt has more than 2,000 characters"),
        (b"a\n" * 50_001, "has 50,001 lines"),
        (b"a" * 2_000_001, "larger than 2.0 MB"),
        (b"fine\n{a|b", "In __it__: the brace before 'a|b' is never closed"),
        (b"0::a\n0::b", "have the weight 0"),
        (b"__it__ again", r"__it__ leads back to itself: it > it"),
        (b"__other__", r"__it__ leads back to itself: it > other > it"),
        (b"__nothing__", "no list nothing.txt"),
    ],
)
def test_invalid_wildcard_files_are_refused(content, problem, tmp_path):
    (tmp_path / "it.txt").write_bytes(content)
    (tmp_path / "other.txt").write_text("x\n{y|__it__}")
    with pytest.raises(UserError, match=problem.replace("(", r"\(")):
        sample_prompt("a __it__", 0, Wildcards(tmp_path))


def test_folders_and_pipes_are_refused_as_wildcard_files(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("folder", "pipe"):
        with pytest.raises(UserError):
            Wildcards(tmp_path).lines(name)


def test_deeply_nested_wildcards_are_refused(tmp_path):
    for i in range(12):
        (tmp_path / f"n{i}.txt").write_text(f"__n{i + 1}__\n" if i < 11 else "end\n")
    assert sample_prompt("__n2__", 0, Wildcards(tmp_path)) == "end"
    for template in ("__n0__", "{{__n2__|a}|b}"):
        with pytest.raises(UserError, match="deep"):
            sample_prompt(template, 0, Wildcards(tmp_path))


def test_wildcards_with_too_many_choices_are_refused(tmp_path):
    """200^8 empty choices would make no long prompt, and no end."""
    for i in range(8):
        (tmp_path / f"n{i}.txt").write_text(f"__n{i + 1}__" * 200)
    (tmp_path / "n8.txt").write_text("{|}")
    for ask in (
        lambda: sample_prompt("__n0__", 0, Wildcards(tmp_path)),
        lambda: count_prompts("__n0__", Wildcards(tmp_path)),
    ):
        with pytest.raises(UserError, match="choices for one prompt"):
            ask()


def test_a_long_wildcard_file_is_counted_and_sampled(tmp_path):
    (tmp_path / "tags.txt").write_text("\n".join(f"tag {i}" for i in range(50_000)))
    lists = Wildcards(tmp_path)
    assert count_prompts("{3$$__tags__}", lists) == 50_000 * 49_999 * 49_998
    assert nth_prompt("{2$$__tags__}", 50_000 * 49_999 - 1, lists) == "tag 49999, tag 49998"
    assert len(set(sample_prompt("{20$$,$$__tags__}", 0, lists).split(","))) == 20


def test_a_wildcard_file_is_read_only_once(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    lists = Wildcards(tmp_path)
    assert sample_prompt("__a__", 0, lists) == "one"
    (tmp_path / "a.txt").write_text("two")
    assert sample_prompt("__a__", 0, lists) == "one"
    assert sample_prompt("__a__", 0, Wildcards(tmp_path)) == "two"


NAMES = [
    "auks,_murres",
    "przevalski's",
    "a & b",
    "c(d)",
    "e.g",
    "1girl",
    "2d-art",
    "Grüße",
    "日本",
    "UPPER",
    "#1",
    "a+b",
]
NAMES += [
    "white space",
    "mix_of-all.v2",
    "100%",
    "what!",
    "a [b]",
    "R&B/soul, funk",
    "x/1/2/3",
    "e\u0301t\u00e9",
    "a@b",
    "~tilde",
]


@pytest.mark.parametrize("name", NAMES)
def test_common_wildcard_names_are_accepted(name, tmp_path):
    file = tmp_path / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("red\n2::blue")
    lists = Wildcards(tmp_path)
    assert lists.lines(name) == ["red", "2::blue"] and lists.names() == [name]
    assert list(all_prompts(f"a __{name}__ b", lists)) == ["a red b", "a blue b"]
    assert list(all_prompts(f"{{2$$__{name}__}}", lists)) == ["red, blue", "blue, red"]


@pytest.mark.parametrize("name", ["a__b", "_ab", "ab_", "__a/b", "{ab}", "-ab", "a___b"])
def test_the_suggestion_for_an_unusual_wildcard_name_works(name, tmp_path):
    lists = write_lists(tmp_path, {f"{name}.txt": "red"})
    with pytest.raises(UserError) as caught:
        lists.lines(name.strip("_") + "x")
    proposed = re.search("__.*__", caught.value.hint)[0]
    assert list(all_prompts(f"a {proposed}", lists)) == ["a red"], proposed


def test_sampling_signs_before_a_wildcard_are_read_or_refused(tmp_path):
    lists = write_lists(tmp_path, {"colour.txt": "red", "@home.txt": "blue"})
    assert list(all_prompts("__~colour__ __@home__", lists)) == ["red blue"]
    for sign in "@!":
        with pytest.raises(UserError, match="one option after the other") as caught:
            sample_prompt(f"__{sign}colour__", 0, lists)
        assert caught.value.hint == "Write __colour__."
    assert list(all_prompts("really __!__ and #__#__", lists)) == ["really __!__ and #__#__"]


def test_a_wildcard_name_accepts_its_file_extension(tmp_path):
    lists = write_lists(tmp_path, {"x/colour.txt": "red", "moods.json": '["sad"]'})
    assert lists.lines("x/Colour.txt") == ["red"] and lists.lines("moods.json") == ["sad"]


def test_a_pattern_ignores_empty_wildcard_files(tmp_path):
    lists = write_lists(tmp_path, {"x/a.txt": "red", "x/b.txt": "# none\n", "y/c.txt": ""})
    assert lists.lines("x/*") == ["red"]
    with pytest.raises(UserError, match=r"Every list that matches __y/\*__ is empty"):
        lists.lines("y/*")


def write_lists(folder, lists):
    for name, text in lists.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8") if isinstance(text, str) else (folder / name).write_bytes(text)
    return Wildcards(folder)


TREE = {
    "artists/oil/old.txt": "a", "artists/oil/new.txt": "b", "artists/ink.txt": "c", "cats.txt": "d",
    "art/catfish.txt": "e", "art/b/cat.txt": "f", ".hidden/cat.txt": "g", "artists/notes.md": "h",
}  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "options"),
    [
        ("artists/*", "c"),
        ("artists/**", "cba"),
        ("artists/*/*", "ba"),
        ("artists/**/*", "cba"),
        ("**/cat*", "fed"),
        ("cat*", "d"),
        ("art/**/cat*", "fe"),
        ("art*/*", "ec"),
        ("artists/oil/???", "ba"),
        ("ARTISTS/oil/O*", "a"),
        ("*/ink", "c"),
    ],
)
def test_a_pattern_expands_to_all_matching_wildcards(pattern, options, tmp_path):
    lists = write_lists(tmp_path, TREE)
    assert sorted(all_prompts(f"__{pattern}__", lists)) == sorted(options)
    assert count_prompts(f"{{2$$__{pattern}__}}", lists) == (len(options) * (len(options) - 1) or 1)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("*", "matches every list"),
        ("**", "matches every list"),
        ("**/*", "matches every list"),
        ("dogs/*", "No list in .* matches"),
        ("../*", "is not a valid name"),
        ("*/../x", "is not a valid name"),
        ("artists", "is a group of 3 lists"),
        ("artists/oil", "group of 2 lists"),
        ("old(v=1)", "passes a value"),
        ("a:b*", "is not a valid name"),
        ("a*\x00", "is not a valid name"),
    ],
)
def test_invalid_patterns_and_groups_are_refused(name, problem, tmp_path):
    with pytest.raises(UserError, match=problem):
        write_lists(tmp_path, TREE).lines(name)
    assert has_alternatives("a __*__ b") and has_alternatives("__**/cat*__")


def test_a_pattern_refuses_outside_links_and_cycles(tmp_path):
    (tmp_path / "secret.txt").write_text("told")
    lists = write_lists(tmp_path / "lists", {"in/a.txt": "x", "in/all.txt": "__in/*__", "b.txt": "y"})
    (tmp_path / "lists" / "in" / "up.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "lists" / "folder").symlink_to(tmp_path)
    with pytest.raises(UserError, match="not inside"):
        lists.lines("in/*")
    assert "folder/secret" not in lists.names()
    (tmp_path / "lists" / "in" / "up.txt").unlink()
    with pytest.raises(UserError, match="leads back to itself: in/\\* > in/\\*"):
        sample_prompt("__in/*__", 0, Wildcards(tmp_path / "lists"))


def test_wildcard_names_match_without_case_and_folder(tmp_path):
    lists = write_lists(
        tmp_path, {"Colour.txt": "a", "x/Dog.txt": "b", "x/DOG.txt": "c", "y/z/one.txt": "d", "z/two.txt": "e"}
    )
    assert lists.lines("COLOUR") == ["a"] and lists.lines("one") == ["d"] and lists.lines("Z/One") == ["d"]
    assert lists.lines("x/DOG") == ["c"]
    with pytest.raises(UserError, match="may be any of __x/DOG__, __x/Dog__"):
        lists.lines("x/dog")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_wildcard_files_accept_unicode_encodings_and_line_ends(encoding, end, tmp_path):
    text = end.join(["# remark", "café", "", "3::日本  ", "{a|b}"]) + end
    assert write_lists(tmp_path, {"it.txt": text.encode(encoding)}).lines("it") == ["café", "3::日本", "{a|b}"]


PACK = """# remark
clothing:
  - T-shirt
  - 2::Pants   # another remark
  - no
  - 1990
  - "{red|blue} __colours__"
  - a: b
  -
artists:
  finnish: [Akseli Gallen-Kallela, "Eero Järnefelt"]
  "dutch, old":
    - >-
      Piet
      Mondrian
  long:
    - |
      # Usage: none
      soft light,
      ${figure:frog} toy
one: just this
weighted:
  - {text: often, weight: 3}
  - content: seldom
colours: &c [red]
again: *c
"""
PACKED = {
    "clothing": ["T-shirt", "2::Pants", "no", "1990", "{red|blue} __colours__", "a: b"],
    "artists/finnish": ["Akseli Gallen-Kallela", "Eero Järnefelt"],
    "artists/dutch, old": ["Piet Mondrian"],
    "artists/long": ["soft light, ${figure:frog} toy"],
    "one": ["just this"],
    "weighted": ["3::often", "seldom"],
    "colours": ["red"],
    "again": ["red"],
}


@pytest.mark.parametrize("ending", ["yaml", "yml", "YAML"])
def test_yaml_wildcard_packs_are_read(ending, tmp_path):
    lists = write_lists(tmp_path, {f"mine.{ending}": PACK, "sub/other.yml": "- x\n- y", "artists/long.txt": "mine"})
    expected = PACKED | {"artists/long": ["mine"]}  # a text file of that name comes first
    assert {name: lists.lines(name) for name in PACKED} == expected
    assert lists.lines("mine/clothing") == PACKED["clothing"]  # by the pack's name too
    assert lists.lines("sub/other") == ["x", "y"]
    assert set(lists.names()) == {*PACKED, "sub/other", "mine/artists/long"}
    assert list(all_prompts("__clothing__", lists))[4:6] == ["red red", "blue red"]
    assert sample_prompt("__mine/artists/long__", 0, Wildcards(tmp_path)) == "soft light, frog toy"
    assert sorted(all_prompts("__mine/artists/fin*__", lists)) == ["Akseli Gallen-Kallela", "Eero Järnefelt"]


def test_json_wildcard_packs_are_read(tmp_path):
    text = '{"clothing": ["T-shirt", 5, true, null, ""], "artists": {"dutch": ["Piet"], "dutch": ["Vincent"]}, "n": {}}'
    lists = write_lists(tmp_path, {"mine.json": text, "list.json": '["a", {"text": "b", "weight": 2.5}]'})
    assert lists.lines("clothing") == ["T-shirt", "5", "True"]
    assert lists.lines("artists/dutch") == ["Piet", "Vincent"] and lists.lines("list") == ["a", "2.5::b"]


def test_umi_wildcard_packs_are_read(tmp_path):
    text = """
Forest Elf:
  Title: Elf
  Description: [for woods]
  Prompts: ["elf, {bow|knife}", "tall elf"]
  Tags: [Fantasy, Person]
  Prefix: [x]
plain:
  prompts: [a]
  other: [b]
"""
    lists = write_lists(tmp_path, {"chars.yaml": text})
    assert lists.lines("Forest Elf") == ["elf, {bow|knife}", "tall elf"] == lists.lines("chars/forest elf")
    assert lists.lines("plain/prompts") == ["a"] and lists.lines("plain/other") == ["b"]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghij")
)
NESTED = [f'"a{number}": ["b"]' for number in range(3000)]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("p.yaml", BOMB, "more than 300,000 keys and options"),
        ("p.yaml", f"b: &b [{'x,' * 20_000}]\n" + "a: *b\n" * 2000, "more than 300,000 keys and options"),
        ("p.yaml", f"b: &b {'x' * 100_000}\na: [{'*b,' * 3000}]", "more than 20,000,000 characters"),
        ("p.json", f'{{"{"x" * 100_000}": {{{", ".join(NESTED)}}}}}', "more than 20,000,000 characters"),
        ("p.json", '{"a": ["b"]' + ', "a": ["b"]' * 200_000 + "}", "no list x|more than"),
        ("p.yaml", "a: &a [*a]", "itself a part of"),
        ("p.yaml", "a: [*b]", "line|itself a part of"),
        ("p.yaml", "a: " + "[" * 50_000, "more than 32 deep"),
        ("p.yaml", "".join(" " * i + f"k{i}:\n" for i in range(60)), "32 deep|no list"),
        ("p.json", "[" * 200_000, "more than 32 deep"),
        ("p.json", "[" * 40 + '"a"' + "]" * 40, "more than 32 deep"),
        ("p.json", '{"a": [1,}', "cannot be read as JSON; line 1"),
        ("p.yaml", "a:\n\t- b", "cannot be read as YAML; line 2"),
        ("p.yaml", "!!python/object/apply:os.system ['echo told > told']", "no list x"),
        ("p.yaml", b"caf\xe9: [a]", "not UTF-8"),
        ("p.yaml", "a" * 10_000_001, "larger than 10.0 MB"),
        ("p.yaml", "", "no list x"),
        ("p.json", "3", "no list x"),
    ],
)
def test_invalid_wildcard_packs_are_refused(name, text, problem, tmp_path):
    lists = write_lists(tmp_path, {name: text, "good.txt": "fine"})
    began = time.process_time()
    with pytest.raises(UserError, match=problem) as caught:
        lists.lines("x")
    assert time.process_time() - began < 10 and str(caught.value).replace("\n", "").isprintable()
    assert lists.lines("good") == ["fine"] and lists.lines("goo*") == ["fine"]
    assert not (tmp_path / "told").exists() and not Path("told").exists()


def test_the_missing_wildcard_message_names_the_damaged_pack(tmp_path):
    lists = write_lists(tmp_path, {"bad.yaml": "a: [b", "good.yaml": "c: [d]"})
    assert lists.lines("c") == ["d"]
    with pytest.raises(UserError, match=r"no list a.txt .* bad.yaml cannot be read as YAML"):
        lists.lines("a")


def test_variable_defaults_are_read_and_variables_are_refused(tmp_path):
    assert sample_prompt("a ${figure:felt frog}, ${x: }y", 0, NONE) == "a felt frog,  y"
    for text in ("${figure}", "${a=b}", "${a:=b}", "${a:{b|c}}"):
        with pytest.raises(UserError, match="a variable"):
            sample_prompt(text, 0, NONE)


# --- whatever is typed -----------------------------------------------------------------------------------------------

_watching = []


def _audit(event, arguments):
    if _watching and event in {"exec", "compile", "import", "os.system", "subprocess.Popen", "pickle.find_class"}:
        _watching.append(event)


@contextmanager
def nothing_run():
    """No code is compiled, imported or run meanwhile, by the interpreter's own account."""
    _watching.append("on")
    try:
        yield
        assert _watching == ["on"]
    finally:
        _watching.clear()


@pytest.fixture(scope="module", autouse=True)
def audited():
    import sys

    sys.addaudithook(_audit)  # stays for as long as the process, but watches only inside nothing_run


def survives(typed, lists):
    before = time.process_time()
    with nothing_run():
        try:
            number = count_prompts(typed, lists)
            prompts = [sample_prompt(typed, seed, lists) for seed in (0, 1)] + [nth_prompt(typed, number - 1, lists)]
            if not has_alternatives(typed):
                assert number == 1 and prompts == [typed] * 3
            fixed = [text for text in (format_prompt(parse(prompt)) for prompt in prompts) if len(text) <= MAX_PROMPT]
            assert [sample_prompt(text, 0, lists) for text in fixed] == fixed
        except UserError as error:
            assert all(line.isprintable() for line in str(error).split("\n"))
    assert time.process_time() - before < 5  # what is not linear takes minutes


MORE = [
    "{",
    "|",
    "}",
    "{a|b}",
    "{2$$",
    "1-3$$",
    "$$ and $$",
    "2::",
    "__colour__",
    "__animals/cats__",
    "${",
    "__import__",
]
TYPED_TEMPLATES = st.lists(st.one_of(st.sampled_from(MORE), TYPED), max_size=8).map("".join)
# Half of them closed: most of what is typed at random ends inside a brace.
TEMPLATES = st.builds(lambda typed, braces: typed + "}" * (braces * typed.count("{")), TYPED_TEMPLATES, st.booleans())


@settings(max_examples=300, deadline=None)
@given(typed=TEMPLATES)
def test_any_template_is_expanded_or_refused(wildcards, typed):
    survives(typed, wildcards)


@pytest.mark.thorough
@settings(max_examples=10_000, deadline=None)
@given(typed=TEMPLATES)
def test_many_random_templates_are_expanded_or_refused(wildcards, typed):
    survives(typed, wildcards)


@pytest.mark.parametrize(
    "sign",
    [*"()[]{}<>\\:|_$@+ \n.0a", "__a", "{|", "[(", "<a", "a<", ": ", ":1", "(:", "{1$$", "\\{", "x__", "AND", "[|"],
)
def test_repeated_signs_are_parsed_quickly(sign, wildcards):
    survives((sign * MAX_PROMPT)[:MAX_PROMPT], wildcards)
    survives("(" + (sign * MAX_PROMPT)[: MAX_PROMPT - 2] + ")", wildcards)
