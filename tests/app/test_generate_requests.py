"""Requests from anywhere, made of anything: a picture, or one sentence about what is wrong. Never a traceback, never a
hang, never anything that is evaluated."""

import math
import os
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.library import Library
from sdpersonal.config import MAX_WORK, GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.generation import Generator
from sdpersonal.prompts import Token

EXAMPLES = int(os.environ.get("SDPERSONAL_FUZZ_EXAMPLES", "60"))
ODD = (math.nan, math.inf, -math.inf, -1, 0, 1e308, 2.5, "7", True, None, 2**64, [1], {}, "", "1" * 5000, b"7", 1e-320)
NUMBERS = ("num_images", "seed", "steps", "guidance", "rescale", "strength", "hires_scale")
NUMBERS += ("variation_strength", "variation_seed")
BITS = ("<me/duck>", "<duck:0.5@0-0.4>", "<me/duck+me/ink>", "<me/gone>", "<|endoftext|>", "<", ">", "(", ")", "[", "]")
BITS += (
    "(x:1.3)",
    "{a|b}",
    "{2$$a|b|c}",
    "{",
    "}",
    "|",
    "__x__",
    "BREAK",
    "\\",
    "\\(",
    ":",
    "@",
    "+",
    "\x00",
    "\n",
    "é",
)
BITS += ("<duck:at=left>", "<me/ink:guidance=2@0-0.5>", " by <me/ink>", "<me/cat:0.5:box=0,0.9,1,1>", " and ", "<cat>")
BITS += ("{{7*7}}", "__import__('os')", "a cat", ", ", "🦆", "<lora:x:0.8>", "AND", "\u202e", "duck " * 90)


@pytest.fixture(scope="module")
def library(tmp_path_factory, tiny):
    library = Library(tmp_path_factory.mktemp("requests"))
    for number, (name, kind) in enumerate((("duck", "object"), ("ink", "style"), ("cat", "object"))):
        rows = np.random.default_rng(number).normal(size=(2, tiny.widths["clip_l"])).astype(np.float32) * 0.05
        library.add(Concept(Token("me", name), Card(base="tiny", class_noun="duck", kind=kind), {"clip_l": rows}))
    return library


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_invalid_numbers_are_refused_with_a_single_sentence(name, value):
    try:
        request = GenerateRequest(prompt="x", **{name: value})
    except UserError as error:
        assert name in error.message and "\n" not in error.message and len(str(error)) < 400
        assert "Traceback" not in str(error)
    else:
        assert isinstance(value, int | float | None) and not isinstance(value, bool)
        assert value is None or (math.isfinite(value) and getattr(request, name) == value)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "8192x8192"},
        {"size": "7x7"},
        {"size": "513x512"},
        {"num_images": 10_000},
        {"steps": 10**6},
        {"num_images": 100, "steps": 150, "size": "2048x2048"},
        {"num_images": 100, "steps": 150, "size": "1024x1024", "hires_scale": 4},
        {"mask": "mask.png"},
        {"init_image": "a.png", "hires_scale": 2},
        {"fast": "<../x>"},
        {"fast": 7},
        {"colour": "red"},
        {"prompt": "x" * 400_000},
        {"negative": "{" * 30 + "a|b" + "}" * 30 + "(" * 2000},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_excessive_or_invalid_requests_are_refused_quickly(fields):
    began = time.process_time()
    with pytest.raises(UserError) as refused:
        GenerateRequest(**({"prompt": "x"} | fields))
    assert time.process_time() - began < 2 and refused.value.hint is not None


def test_a_large_request_is_within_the_work_limit():
    request = GenerateRequest(prompt="x", num_images=100, steps=50, size="1024x1024")
    assert request.num_images * request.denoising_steps * 1024 * 1024 <= MAX_WORK


prompts = st.lists(st.sampled_from(BITS) | st.text(max_size=6), max_size=8).map("".join)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    prompt=prompts,
    negative=prompts,
    every=st.booleans(),
    seed=st.sampled_from((0, 7, 2**32 - 1, 2**64 - 1)),
    near=st.sampled_from((None, None, 0.3)),
    guidance=st.sampled_from((None, 1, 1.0, 7.5, 30)),
)
def test_any_prompt_is_generated_or_refused_with_a_message(
    tiny, library, prompt, negative, every, seed, near, guidance
):
    began = time.monotonic()
    try:
        fields = {
            "all_combinations": every,
            "seed": seed,
            "variation_strength": near,
            "guidance": guidance,
            "size": "64x64",
        }
        request = GenerateRequest(prompt=prompt, negative=negative, num_images=2, steps=1, **fields)
        first = next(iter(Generator(tiny, library).generate(request)))
    except UserError as error:
        assert str(error) and "\x00" not in str(error) and "\u202e" not in str(error)
        return
    finally:
        assert time.monotonic() - began < 60
    assert first.image.size == (64, 64)
    assert first.recipe.request().prompt == first.recipe.prompt
    assert all(slot.down is None for slot in tiny.adapters._adapters.values())


def test_a_removed_concept_is_named_in_the_error_message(tiny, library, tmp_path):
    copy = Library(tmp_path)
    copy.add(library.get(Token("me", "duck")))
    generator = Generator(tiny, copy)
    request = GenerateRequest(prompt="<me/duck>", num_images=1, steps=1, size="64x64")
    list(generator.generate(request))
    copy.remove(Token("me", "duck"))
    with pytest.raises(UserError, match="<me/duck>"):
        list(generator.generate(request))
    list(generator.generate(request.model_copy(update={"prompt": "a duck"})))
