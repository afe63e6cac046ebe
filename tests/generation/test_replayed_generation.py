"""Whole requests with replayed predictions give the images of plain ones; calls are frozen as in CUDA graphs."""

import numpy as np
import pytest
import torch

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.generation.denoise import _Pace
from sdpersonal.generation.style_transfer import apply_style
from sdpersonal.models import load_base, unet_replay
from sdpersonal.models.loading import BUILT_IN
from sdpersonal.prompts import Token
from tests.support.frozen_calls import FrozenCall
from tests.support.narrow import save_narrow


class Shelf(dict):
    def get(self, token):
        """As a library does, load another copy each time."""
        concept = self[token.name]
        lora = Lora(dict(concept.lora.layers), dict(concept.lora.changes))
        return Concept(concept.token, concept.card, concept.vectors, lora)


def concept(base, token, seed, kind, card_kind="object", norms=False):
    rng, layers, changes = np.random.default_rng(seed), {}, {}
    for name in base.adapters.layer_names("attention")[::2]:
        out, into = base.adapters.layers()[name].weight.shape
        layers[name] = LoraLayer(*(rng.normal(size=s).astype(np.float32) / 4 for s in ((3, into), (out, 3))), 1.5)
    if norms:
        name, width = "lora_unet_conv_norm_out", len(base.unet.conv_norm_out.weight)
        changes[name] = {"w_norm": rng.normal(size=width).astype(np.float32), "b_norm": np.ones(width, np.float32)}
    vectors = {key: rng.normal(size=(2, w)).astype(np.float32) / 20 for key, w in base.widths.items()}
    return Concept(Token.parse(token), Card(base=kind, kind=card_kind), vectors, Lora(layers, changes))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = save_narrow("sdxl", tmp_path_factory.mktemp("narrow") / "sdxl")
    loaded = {"tiny": load_base(BUILT_IN, device="cpu"), "sdxl": load_base(str(folder), device="cpu")}
    return {
        kind: (
            base,
            Shelf(
                duck=concept(base, "<me/duck>", 1, kind),
                cat=concept(base, "<me/cat>", 2, kind, norms=True),
                ink=concept(base, "<me/ink>", 3, kind, card_kind="style"),
            ),
        )
        for kind, base in loaded.items()
    }


REQUESTS = {
    "no concept": {"prompt": "a boat"},
    "windows": {"prompt": "a <me/duck:0.8@0-0.5> by <me/cat@0.5-1>", "compose": False},
    "a style": {"prompt": "a photo of <me/duck> in the style of <me/ink>"},
    "two subjects": {"prompt": "a <me/duck> and a <me/cat:0.5>"},
    "larger": {"prompt": "a <me/duck>", "hires_scale": 1.5, "strength": 1.0},
}
SDXL = ("a style", "two subjects")


@pytest.mark.parametrize(("kind", "name"), [*(("tiny", name) for name in REQUESTS), *(("sdxl", name) for name in SDXL)])
def test_replayed_predictions_give_the_images_of_plain_ones(kind, name, bases, monkeypatch):
    base, shelf = bases[kind]
    request = GenerateRequest(**REQUESTS[name], steps=8, size="64x64", num_images=1)
    monkeypatch.setattr(base.adapters, "_buffers", None)
    monkeypatch.setattr(base, "replayer", unet_replay.UNetReplayer(base))
    plain = [image for image in Generator(base, shelf).generate(request)]
    monkeypatch.setattr(unet_replay, "CapturedCall", FrozenCall)
    monkeypatch.setattr(FrozenCall, "replays", 0)
    base.adapters.use_buffers(torch.device("cpu"))
    base.replayer.enabled = True
    generator = Generator(base, shelf)
    for _ in range(2):
        for ours, expected in zip(generator.generate(request), plain, strict=True):
            difference = np.asarray(ours.image, int) - np.asarray(expected.image, int)
            assert np.abs(difference).max() <= 1
            assert ours.recipe == expected.recipe
    assert FrozenCall.replays >= 3
    stored = len(base.adapters._buffers._stored)
    assert stored == len({concept.token for concept in ours.recipe.concepts} if ours.recipe.concepts else ())


def test_the_cpu_runs_at_most_two_steps_ahead_of_the_gpu(monkeypatch):
    order: list[str] = []

    class Event:
        number = 0

        def __init__(self, blocking):
            Event.number += 1
            self.name = f"{Event.number}"

        def record(self, stream):
            order.append(f"launched {self.name}")

        def synchronize(self):
            order.append(f"waited for {self.name}")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    pace = _Pace(torch.device("cuda"))
    for _ in range(4):
        pace.wait()
        pace.end_step()
    assert order == ["launched 1", "launched 2", "waited for 1", "launched 3", "waited for 2", "launched 4"]


def test_apply_style_returns_the_styled_latents_for_non_finite_input():
    x0, styled = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    x0[1, 2, 3, 4] = torch.nan
    assert torch.equal(apply_style(x0, styled), styled)
    styled[0, 0, 0, 0] = torch.inf
    assert torch.equal(apply_style(styled.flip(0), styled), styled)
