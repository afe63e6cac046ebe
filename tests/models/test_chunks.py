"""Long prompts and emphasis: cut and weighed as A1111 does, from a straight reading of its rule; else as ever."""

import random

import numpy as np
import pytest
import torch

from sdpersonal.errors import UserError
from sdpersonal.models import Conditioning, Segment, load_base
from sdpersonal.prompts import Break
from support.narrow import save_narrow

ROOM = 75


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    base = load_base(str(save_narrow("sd2", tmp_path_factory.mktemp("narrow") / "sd2")), "cpu")
    # As trained ones have it: with random weights alone the mean is nearly zero, and A1111's rule means nothing.
    base.encoders["clip_l"].model.final_layer_norm.bias.data.fill_(0.3)
    return base


def as_a1111(units, comma):
    """units: (token id, weight), ([stand-ins], weight) for an embedding, or None for BREAK -> [(ids, weights)].

    Its rule in one loop (modules/sd_hijack_clip.py, tokenize_line; comma_padding_backtrack 20), but for embeddings that
    it would leave behind when it moves the words after a comma: they move too.
    """
    done, ids, weights, last = [], [], [], -1

    def end():
        nonlocal ids, weights, last
        done.append((ids, weights))
        ids, weights, last = [], [], -1

    for unit in units:
        if unit is None:
            end()
            continue
        what, weight = unit
        if what == comma:
            last = len(ids)
        elif len(ids) == ROOM and last != -1 and len(ids) - last <= 20:
            moved = ids[last + 1 :], weights[last + 1 :]
            ids, weights = ids[: last + 1], weights[: last + 1]
            end()
            ids, weights = moved
        if len(ids) == ROOM:
            end()
        block = what if isinstance(what, list) else [what]
        if isinstance(what, list) and len(ids) + len(block) > ROOM:
            end()
        ids, weights = ids + block, weights + [weight] * len(block)
    if ids or not done:
        end()
    return done


def random_prompt(encoder, chance):
    """Spans, and the same as units."""
    spans, units = [], []
    for _ in range(chance.randint(1, 40)):
        weight = chance.choice([1.0, 1.0, 1.1, 1.3, 0.7])
        kind = chance.random()
        if kind < 0.04:
            spans.append(Break())
            units.append(None)
        elif kind < 0.2:
            rows = torch.randn(chance.choice([1, 2, 8, 30]), encoder.width)
            spans.append(Segment({"clip_l": rows}, weight))
            units.append(([0] * len(rows), weight))
        else:
            words = [chance.choice(["duck", "a", "red", ",", ",", "umbrella"]) for _ in range(chance.randint(1, 12))]
            spans.append(Segment(" ".join(words), weight))
            units += [(token, weight) for token in encoder.ids(" ".join(words))]
    return spans, units


@pytest.mark.parametrize("seed", range(60))
def test_prompts_are_split_into_chunks_as_in_a1111(tiny, seed):
    encoder, chance = tiny.encoders["clip_l"], random.Random(seed)
    spans, units = random_prompt(encoder, chance)
    chunks = encoder.chunks(spans)
    expected = as_a1111(units, encoder.ids(",")[0])
    assert len(chunks) == len(expected)
    tokens = encoder.tokenizer
    for chunk, (ids, weights) in zip(chunks, expected, strict=True):
        left = ROOM - len(ids)
        assert chunk.ids == [tokens.bos_token_id, *ids, tokens.eos_token_id] + [tokens.pad_token_id] * left
        assert chunk.weights == [1.0, *weights] + [1.0] * (left + 1)
        assert all(set(chunk.ids[at : at + len(rows)]) == {0} for at, rows in chunk.vectors)
    assert sum(len(chunk.vectors) for chunk in chunks) == sum(
        isinstance(item, Segment) and not isinstance(item.content, str) for item in spans
    )


def test_long_prompts_are_split_at_a_nearby_comma(tiny):
    encoder = tiny.encoders["clip_l"]
    assert len(encoder.ids("cat")) == 1
    first, second = encoder.chunks([Segment("cat " * 60 + "," + " cat" * 20)])
    assert first.ids.index(encoder.tokenizer.eos_token_id) == 1 + 61 and len(second.ids) == 77
    late, _ = encoder.chunks([Segment("cat " * 50 + "," + " cat" * 30)])  # the comma is too far back
    assert late.ids.index(encoder.tokenizer.eos_token_id) == 1 + 75


def test_an_embedding_larger_than_a_chunk_is_refused(tiny):
    with pytest.raises(UserError, match="80 vectors does not fit into a prompt, which takes 75"):
        tiny.encode_prompt([Segment({"clip_l": torch.zeros(80, tiny.widths["clip_l"])})])


@pytest.mark.parametrize("base", ["tiny", "sd2"])
def test_a_plain_prompt_is_encoded_like_a_caption(request, base):
    base = request.getfixturevalue(base)
    rows = {"clip_l": torch.randn(3, base.widths["clip_l"]) * 0.05}
    for prompt in ([""], ["a duck"], ["a photo of ", rows, " in the snow"]):
        assert torch.equal(
            base.encode_prompt([Segment(piece) for piece in prompt]).prompt_embeds,
            base.encode_captions([prompt]).prompt_embeds,
        )


@pytest.mark.parametrize("base", ["tiny", "sd2"])
def test_emphasis_scales_prompt_embeddings_as_in_a1111(request, base):
    base = request.getfixturevalue(base)
    encoder = base.encoders["clip_l"]
    read = base.encode_prompt([Segment("a "), Segment("red duck", 1.3), Segment(" in the rain", 0.8)])
    with torch.no_grad():
        plain = base.encode_captions([["a red duck in the rain"]]).prompt_embeds[0].numpy()
        read = read.prompt_embeds[0].numpy()
    counts = [len(encoder.ids(words)) for words in ("a", "red duck", "in the rain")]
    weights = np.ones(77)
    weights[1 : 1 + sum(counts)] = np.repeat([1.0, 1.3, 0.8], counts)
    weighted = plain.astype(np.float64) * weights[:, None]
    np.testing.assert_allclose(read, weighted * plain.mean(dtype=np.float64) / weighted.mean(), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_emphasis_stays_bounded_when_the_mean_is_near_zero(sd2):
    """Where the states' mean is nearly zero, A1111 divides by it."""
    bias = sd2.encoders["clip_l"].model.final_layer_norm.bias
    bias.data.fill_(0.0)
    try:
        plain = sd2.encode_captions([["a red duck"]]).prompt_embeds[0]
        read = sd2.encode_prompt([Segment("a red duck", 1.3)]).prompt_embeds[0]
    finally:
        bias.data.fill_(0.3)
    words = slice(1, 1 + len(sd2.encoders["clip_l"].ids("a red duck")))
    for item, weight in ((words, 1.3), (slice(words.stop, 77), 1.0)):
        ratio = read[item] / plain[item]
        assert (ratio > 0.5 * weight).all() and (ratio < 2 * weight).all()


@torch.no_grad()
def test_a_long_prompt_is_the_concatenation_of_its_chunks(tiny):
    long = tiny.encode_prompt([Segment("a duck, "), Break(), Segment("a cat")], min_chunks=3)
    assert long.prompt_embeds.shape[1] == 3 * 77
    parts = [tiny.encode_captions([[words]]).prompt_embeds for words in ("a duck, ", "a cat", "")]
    assert torch.equal(long.prompt_embeds, torch.cat(parts, dim=1))
    assert tiny.num_chunks([Segment("a duck, "), Break(), Segment("a cat")]) == 2 and tiny.num_chunks([]) == 1


@torch.no_grad()
def test_sdxl_pools_the_first_chunk_and_encodes_empty_prompts_as_zeros(tmp_path):
    sdxl = load_base(str(save_narrow("sdxl", tmp_path / "sdxl")), "cpu")
    both = sdxl.encode_prompt([Segment("a duck"), Break(), Segment("a cat", 1.2)])
    first, second = (sdxl.encode_captions([[words]]) for words in ("a duck", "a cat"))
    assert both.prompt_embeds.shape == (1, 154, 2048)
    assert torch.equal(both.prompt_embeds[:, :77], first.prompt_embeds) and not torch.equal(
        both.prompt_embeds[:, 77:], second.prompt_embeds
    )
    assert torch.equal(both.added_cond_kwargs["text_embeds"], first.added_cond_kwargs["text_embeds"])
    for key, part in (("clip_l", slice(0, 768)), ("clip_g", slice(768, None))):
        plain = second.prompt_embeds[0, :, part].numpy().astype(np.float64)
        weights = np.ones((77, 1))
        weights[1 : 1 + len(sdxl.encoders[key].ids("a cat"))] = 1.2
        expected = plain * weights * plain.mean() / (plain * weights).mean()
        np.testing.assert_allclose(both.prompt_embeds[0, 77:, part].numpy(), expected, rtol=2e-3, atol=1e-4)
    nothing = sdxl.encode_prompt([Segment(" ")], min_chunks=2)
    assert not nothing.prompt_embeds.any() and nothing.prompt_embeds.shape[1] == 154


@torch.no_grad()
def test_emphasis_does_not_affect_other_prompts_of_the_batch(tiny):
    item, two = tiny.encode_prompt([Segment("a duck", 1.4)]), tiny.encode_prompt([Segment("a cat", 0.6)])
    both = Conditioning.cat([item, two])
    assert torch.equal(both[:1].prompt_embeds, item.prompt_embeds) and torch.equal(
        both[1:].prompt_embeds, two.prompt_embeds
    )
