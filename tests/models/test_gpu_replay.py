"""Replayed predictions on a CUDA card against plain ones; `test_unet_replay` shows the rest without a card."""

import time
from itertools import pairwise

import pytest
import torch

from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.models import load_base, unet_replay
from sdpersonal.models.attention_maps import AttentionMaps, AttentionRecorder
from tests.models.test_unet_replay import full_changes, inputs, some_lora

pytestmark = pytest.mark.gpu

CLOSE = {"atol": 0.03, "rtol": 0.03}  # bf16 has 8 bits, and numbers here are about 1


@pytest.fixture(scope="module")
def loaded():
    return load_base("tiny", device="cuda")


@pytest.fixture
def base(loaded):
    loaded.replayer = unet_replay.UNetReplayer(loaded)
    yield loaded
    loaded.adapters.clear()
    loaded.replayer.clear()


def on_card(base, **options):
    noisy, t, conditioning = inputs(base, **options)
    return noisy.to("cuda"), t.to("cuda"), conditioning


def check(base, set_mix, captured=True, **options):
    """Predict plainly and replayed, with what was set before and after the capture; return the last prediction."""
    with torch.no_grad():
        set_mix(base.adapters)
        for seed in range(5):
            x = on_card(base, seed=seed, **options)
            replayed, plain = base.replayer.predict(*x), base.predict(*x)
            torch.testing.assert_close(replayed, plain, **CLOSE)
    assert base.replayer.enabled and bool(base.replayer.num_graphs) == captured
    return replayed


def test_replay_matches_eager_prediction_for_every_mix_and_size(base):
    a, b = some_lora(base, 1), some_lora(base, 2, rank=3)
    outputs = [
        check(base, lambda adapters, mix=mix: adapters.set(mix))
        for mix in ([], [(a, 1.0)], [(b, 1.0)], [(b, -0.5)], [(a, 0.5), (b, 0.7)], [(full_changes(base, 3), 1.0)], [])
    ]
    for first, second in pairwise(outputs):
        assert (first - second).abs().max() > 0.05  # a concept acts after the capture
    torch.testing.assert_close(outputs[0], outputs[-1], **CLOSE)
    check(base, lambda adapters: None, side=16)
    check(base, lambda adapters: None, rows=8)
    assert base.replayer.num_graphs == unet_replay.MAX_GRAPHS


def test_groups_of_rows_use_their_own_lora_mixes(base):
    a, b, other = some_lora(base, 1), some_lora(base, 2, rank=3), full_changes(base, 3)
    for groups in (
        [[(a, 1.0)], [(a, 1.0)], [(a, 1.0), (b, 0.7)]],
        [[(b, 0.2)], [(b, 0.2)], [(b, 0.2), (a, -1.0)]],
        [[], [(other, 1.0)], [(a, 1.0)]],
    ):
        check(base, lambda adapters, groups=groups: adapters.set_groups(groups), rows=6)


def test_replay_follows_disabled_loras_and_moved_weights(base):
    a = some_lora(base, 1)
    bare = check(base, lambda adapters: adapters.set([]))
    x = on_card(base, seed=4)  # of the last of these; a LoRA acts on the prompts too
    check(base, lambda adapters: adapters.set([(a, 1.0)]))
    with torch.no_grad(), base.adapters.disabled():
        torch.testing.assert_close(base.replayer.predict(*x), bare, **CLOSE)
        base.adapters.set([(some_lora(base, 2), 1.0)])
    check(base, lambda adapters: None)
    base.unet.to("cpu")
    torch.cuda.empty_cache()
    filler = torch.full((1 << 26,), torch.nan, device="cuda")  # where the weights may have been
    base.unet.to("cuda")
    check(base, lambda adapters: None)
    del filler


def test_graphs_record_attention_maps(base):
    recorded = []
    with torch.no_grad():
        for predict in (base.predict, base.replayer.predict):
            recorder = AttentionRecorder(base, (8, 8), [(1, [2, 3]), (0, [2]), (1, [1])])
            maps = AttentionMaps(base, {1: [2], 0: []}, (8, 8))
            with recorder.recording(), maps.recording():
                for seed in range(5):
                    predict(*on_card(base, seed=seed))
                    recorded.append((recorder.take(), maps.finish_step()))
    assert base.replayer.num_graphs == 1
    for ours, expected in zip(recorded[5:], recorded[:5], strict=True):
        torch.testing.assert_close(ours[0], expected[0], atol=0.01, rtol=0.05)
        torch.testing.assert_close(ours[1], expected[1], atol=0.1, rtol=0.05)


def test_low_memory_falls_back_to_eager_prediction(base, monkeypatch):
    check(base, lambda adapters: adapters.set([]))
    monkeypatch.setattr(unet_replay, "_SPARE_BYTES", 1 << 50)
    check(base, lambda adapters: None, rows=4, captured=False)


def test_a_failed_capture_leaves_the_gpu_usable(base, monkeypatch):
    def forward(layer, x):
        torch.cuda.synchronize()  # is not permitted in a capture
        return layer._conv_forward(x, layer.weight, layer.bias)

    monkeypatch.setattr(type(base.unet.conv_out), "forward", forward)
    with torch.no_grad():
        for seed in range(4):
            x = on_card(base, seed=seed)
            torch.testing.assert_close(base.replayer.predict(*x), base.predict(*x), **CLOSE)
    assert not base.replayer.enabled and torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.empty_cache()
    monkeypatch.undo()
    base.replayer = unet_replay.UNetReplayer(base)
    check(base, lambda adapters: None)


def test_replayed_denoising_steps_do_not_synchronize(base):
    """Nothing but the wait for the step before the last, which is an event's, is a synchronisation."""
    from sdpersonal.generation import SamplingConfig, StepConditioning, denoise

    with torch.no_grad():
        noisy, _, conditioning = on_card(base, rows=4)
        for _ in range(2):
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()

            def on_step(i):
                torch.cuda.set_sync_debug_mode("error" if i > 4 else "default")

            rows = StepConditioning(conditioning)
            denoise(base, lambda *_, rows=rows: rows, noisy[:2], SamplingConfig(10, 3.0), on_step=on_step)
            torch.cuda.set_sync_debug_mode("default")


def test_replayed_images_are_close_to_eager_images(base):
    request = GenerateRequest(prompt="a duck on the beach", num_images=2, steps=12)
    replayed = [torch.tensor(list(image.image.getdata())).float() for image in Generator(base).generate(request)]
    base.replayer.enabled = False
    plain = [torch.tensor(list(image.image.getdata())).float() for image in Generator(base).generate(request)]
    assert max((a - b).abs().mean() for a, b in zip(replayed, plain, strict=True)) < 3


def test_switching_between_loras_on_the_gpu_takes_milliseconds(base):
    a, b = some_lora(base, 1), some_lora(base, 2)
    for mix in ([(a, 1.0)], [(b, 1.0)]):
        base.adapters.set(mix)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for lora in (a, b) * 5:
        base.adapters.set([(lora, 0.7)])
    torch.cuda.synchronize()
    assert (time.perf_counter() - started) / 10 < 0.02
