"""Replayed predictions against plain ones, with calls that are frozen as CUDA graphs are (`frozen_calls`)."""

import numpy as np
import pytest
import torch
from torch import nn

from sdpersonal.concepts.concept import Lora, LoraLayer
from sdpersonal.models import load_base, unet_replay
from sdpersonal.models.attention_maps import AttentionMaps, AttentionRecorder
from sdpersonal.models.lora_buffers import bucket_of
from tests.support.frozen_calls import FrozenCall

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # of numbers of about 1


@pytest.fixture
def plain(tiny):
    yield tiny
    tiny.adapters.clear()


@pytest.fixture(scope="module")
def loaded():
    return load_base("tiny", device="cpu")


@pytest.fixture
def replayed(loaded, monkeypatch):
    """The same base; it replays, and has its adapters in fixed buffers."""
    monkeypatch.setattr(unet_replay, "CapturedCall", FrozenCall)
    monkeypatch.setattr(FrozenCall, "replays", 0)
    loaded.adapters.use_buffers(torch.device("cpu"))
    loaded.replayer = unet_replay.UNetReplayer(loaded)
    loaded.replayer.enabled = True
    yield loaded
    loaded.adapters.clear()


def numbers(rng, *shape):
    return rng.normal(size=shape).astype(np.float32) / 8


def some_lora(base, seed, rank=4, targets="all", step=2):
    rng, layers, modules = np.random.default_rng(seed), {}, base.adapters.layers()
    for name in base.adapters.layer_names(targets, text_encoder=True)[::step]:
        out, *rest = modules[name].weight.shape
        up = numbers(rng, out, rank, *(1 for _ in rest[1:]))
        layers[name] = LoraLayer(numbers(rng, rank, *rest), up, rank / 2)
    return Lora(layers)


def full_changes(base, seed):
    """Changes that are no LoRA of a small rank: a weight, a bias, and a norm."""
    rng = np.random.default_rng(seed)
    weight = base.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    block = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
    norm = base.unet.mid_block.attentions[0].transformer_blocks[0].norm1.weight
    return Lora(
        {},
        {
            f"{block}_attn1_to_q": {"diff": numbers(rng, *weight.shape)},
            f"{block}_norm1": {"w_norm": numbers(rng, *norm.shape) * 4, "b_norm": numbers(rng, *norm.shape) * 4},
        },
    )


def inputs(base, rows=2, side=8, seed=0, words=("", "a duck", "a cat", "a boat")):
    rng = torch.Generator().manual_seed(seed)
    noisy = torch.randn(rows, base.latent_shape(64, 64)[0], side, side, generator=rng)
    return noisy, torch.full((rows,), 500 - seed), base.encode_captions([[words[i % len(words)]] for i in range(rows)])


def check(plain, replayed, set_mix, times=4, **options):
    """Predict several times with both; return how many predictions were replayed."""
    before, outputs = FrozenCall.replays, []
    with torch.no_grad():
        for base in (plain, replayed):
            set_mix(base.adapters)
        for seed in range(times):
            x = inputs(plain, seed=seed, **options)
            expected, ours = plain.predict(*x), replayed.replayer.predict(*x)
            torch.testing.assert_close(ours, expected, **CLOSE)
            outputs.append((ours, expected))
        for ours, expected in outputs:  # none was overwritten by a later one
            torch.testing.assert_close(ours, expected, **CLOSE)
    return FrozenCall.replays - before


def test_replay_matches_eager_prediction_for_every_mix_and_size(plain, replayed):
    a, b, part = some_lora(plain, 1), some_lora(plain, 2, rank=3), some_lora(plain, 3, rank=6, step=5)
    assert check(plain, replayed, lambda adapters: adapters.set([])) == 1
    assert check(plain, replayed, lambda adapters: adapters.set([(a, 1.0)])) == 1
    assert check(plain, replayed, lambda adapters: adapters.set([(b, 1.0)])) == 4  # another concept, the same bucket
    assert check(plain, replayed, lambda adapters: adapters.set([(b, -0.3)])) == 4
    assert check(plain, replayed, lambda adapters: adapters.set([(a, 0.5), (b, 0.7)])) == 4  # ranks 4 + 3
    assert check(plain, replayed, lambda adapters: adapters.set([(part, 1.0)])) == 1  # other layers
    assert check(plain, replayed, lambda adapters: adapters.set([(a, 1.0), (part, 1.0)])) == 1  # rank 16 in some
    assert check(plain, replayed, lambda adapters: adapters.set([(b, 1.0)])) == 4
    assert check(plain, replayed, lambda adapters: adapters.clear()) == 4
    assert check(plain, replayed, lambda adapters: None, side=16) == 1
    assert check(plain, replayed, lambda adapters: None, rows=4) == 1
    assert replayed.replayer.num_graphs == unet_replay.MAX_GRAPHS
    assert check(plain, replayed, lambda adapters: adapters.set([(part, 1.0)])) == 3  # its graph was dropped


def test_replay_without_adapters_is_bitwise_equal(plain, replayed):
    with torch.no_grad():
        for seed in range(4):
            x = inputs(plain, seed=seed)
            assert torch.equal(replayed.replayer.predict(*x), plain.predict(*x))
    assert FrozenCall.replays == 1


def test_groups_of_rows_use_their_own_lora_mixes(plain, replayed):
    a, b, other = some_lora(plain, 1), some_lora(plain, 2, rank=3), full_changes(plain, 3)
    mixes = [
        ([[(a, 1.0)], [(a, 1.0)], [(a, 1.0), (b, 0.7)]], 1),
        ([[(a, 0.2)], [(a, 0.2)], [(a, 0.2), (b, -1.0)]], 4),
        ([[(b, 0.2)], [(b, 0.2)], [(b, 0.2), (a, 1.0)]], 4),
        ([[], [], [(a, 1.0)]], 1),
        ([[(a, 1.0)], [], [(a, 1.0)]], 1),
        ([[], [(other, 1.0)], [(a, 1.0)]], 1),
        ([[], [(other, 0.5)], [(a, 1.0)]], None),
    ]
    for groups, count in mixes:
        replays = check(plain, replayed, lambda adapters, groups=groups: adapters.set_groups(groups), rows=6)
        assert count is None or replays == count


def test_replay_supports_full_weight_changes_and_norms(plain, replayed):
    other, a = full_changes(plain, 3), some_lora(plain, 1)
    for mix in ([(other, 1.0)], [(other, 0.4)], [(a, 1.0), (other, 1.0)], [(full_changes(plain, 4), 1.0)], []):
        assert check(plain, replayed, lambda adapters, mix=mix: adapters.set(mix)) >= 1


def test_a_concept_affects_replay_only_while_it_is_active(plain, replayed):
    """The same key with an emptied adapter, a filled one and one that is disabled for a while."""
    a, x = some_lora(plain, 1), inputs(plain)
    with torch.no_grad():
        bare = [replayed.replayer.predict(*x) for _ in range(4)][-1]
        with replayed.adapters.active([(a, 1.0)]):
            changed = [replayed.replayer.predict(*x) for _ in range(4)]
            with replayed.adapters.disabled():
                assert torch.equal(replayed.replayer.predict(*x), bare)
                replayed.adapters.set([(some_lora(plain, 2), 1.0)])  # in the same buffers
                assert (replayed.replayer.predict(*x) - changed[0]).abs().max() > 0.05
            again = replayed.replayer.predict(*x)
        assert torch.equal(replayed.replayer.predict(*x), bare)
    assert (changed[0] - bare).abs().max() > 0.05
    for prediction in (*changed, again):
        torch.testing.assert_close(prediction, changed[0], **CLOSE)


def test_changing_mixes_switch_between_captured_graphs(plain, replayed):
    a, b = some_lora(plain, 1), some_lora(plain, 2, rank=8)
    for _ in range(2):
        for mix in ([(a, 1.0), (b, 1.0)], [(b, 1.0)], []):
            replays = check(plain, replayed, lambda adapters, mix=mix: adapters.set(mix))
    assert replays == 4 and replayed.replayer.num_graphs == 3


def test_replay_uses_moved_and_replaced_weights(plain, replayed):
    def moved(adapters):
        if adapters is replayed.adapters:
            for parameter in replayed.unet.parameters():
                parameter.data = parameter.data.clone()

    layer = replayed.unet.conv_out
    with torch.no_grad():
        assert check(plain, replayed, lambda adapters: None) == 1
        old = [parameter.data for parameter in replayed.unet.parameters()]
        assert check(plain, replayed, moved) == 1
        for data in old:
            data.fill_(torch.nan)  # where the weights were
        assert check(plain, replayed, lambda adapters: None) == 4
        x, weight = inputs(plain), layer.weight
        before = replayed.replayer.predict(*x)
        layer.weight = nn.Parameter(2 * weight, requires_grad=False)
        torch.testing.assert_close(
            replayed.replayer.predict(*x) - layer.bias[:, None, None], 2 * (before - layer.bias[:, None, None])
        )
        layer.weight = weight


def test_foreign_hooks_gradients_and_autocast_prevent_replay(plain, replayed):
    x, seen = inputs(plain), []
    with torch.no_grad():
        for _ in range(4):
            replayed.replayer.predict(*x)
        replays = FrozenCall.replays
        handle = replayed.unet.mid_block.register_forward_hook(lambda *args: seen.append(1))
        replayed.replayer.predict(*x)
        handle.remove()
        with torch.autocast("cpu", torch.bfloat16):
            replayed.replayer.predict(*x)
    replayed.replayer.predict(*x)
    assert seen == [1] and FrozenCall.replays == replays


def test_a_failed_capture_is_not_retried(plain, replayed, monkeypatch):
    calls = []

    def fail(*args):
        calls.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(unet_replay, "CapturedCall", fail)
    assert check(plain, replayed, lambda adapters: None, times=6) == 0
    assert len(calls) == 1 and not replayed.replayer.enabled


def test_low_memory_drops_graphs_and_falls_back_to_eager_prediction(plain, replayed, monkeypatch):
    assert check(plain, replayed, lambda adapters: None) == 1
    monkeypatch.setattr(unet_replay.UNetReplayer, "_has_room", lambda self, noisy: len(noisy) < 3)
    assert check(plain, replayed, lambda adapters: None) == 4
    assert check(plain, replayed, lambda adapters: None, rows=4) == 0
    assert replayed.replayer.num_graphs == 0
    assert check(plain, replayed, lambda adapters: None) == 4 - 1  # captured again at the next call


def test_graphs_record_attention_maps(plain, replayed):
    targets = [(1, [2, 3]), (0, [2]), (1, [1])]
    taken = []
    with torch.no_grad():
        for base, predict in ((plain, plain.predict), (replayed, replayed.replayer.predict)):
            recorder = AttentionRecorder(base, (8, 8))
            maps = AttentionMaps(base, {1: [2], 0: []}, (8, 8))
            taken.append([])
            with recorder.recording(), maps.recording():
                for seed in range(8):
                    recorder.targets = targets if seed % 2 else []
                    predict(*inputs(plain, seed=seed))
                    taken[-1].append(maps.finish_step())
                    if seed == 5:
                        continue  # two predictions together
                    taken[-1] += [] if recorder.is_empty else [recorder.take()]
    assert FrozenCall.replays == 8 - 2 * 3
    for ours, expected in zip(taken[1], taken[0], strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)
    assert (taken[0][-1] - taken[0][2]).abs().max() > 1e-3  # they differ between predictions


def test_an_attention_recorder_without_targets_shares_the_graph(plain, replayed):
    recorder = AttentionRecorder(replayed, (8, 8))
    assert check(plain, replayed, lambda adapters: None) == 1
    with recorder.recording():
        assert check(plain, replayed, lambda adapters: None) == 4


def test_ranks_are_rounded_up_to_buckets():
    assert [bucket_of(rank) for rank in (1, 4, 8, 9, 16, 33, 64, 100, 128, 129, 256, 257)] == [
        *(8, 8, 8, 16, 16, 64, 64, 128, 128, 256, 256, 384)
    ]


def test_least_recently_used_loras_are_evicted_from_the_gpu(plain, replayed):
    buffers, loras = replayed.adapters._buffers, [some_lora(plain, seed) for seed in range(4)]
    for lora in loras:
        replayed.adapters.set([(lora, 1.0)])
    each = buffers.stored_bytes // 4
    buffers._limit = int(2.5 * each)
    replayed.adapters.set([(loras[0], 1.0), (some_lora(plain, 9), 1.0)])
    assert buffers.stored_bytes == 2 * each and buffers.has(loras[0], torch.float32)
    assert not any(buffers.has(lora, torch.float32) for lora in loras[1:])
    replayed.adapters.set([(lora, 1.0) for lora in loras])  # more than fit: a mix is on the card as a whole
    assert buffers.stored_bytes == 4 * each
    assert check(plain, replayed, lambda adapters: adapters.set([(loras[2], 0.5), (loras[0], 1.0)])) == 1


def test_buffers_of_unused_ranks_are_dropped(plain, replayed):
    buffers = replayed.adapters._buffers
    loras = [some_lora(plain, seed, rank) for seed, rank in enumerate((4, 12, 24, 40))]
    for lora in loras:
        check(plain, replayed, lambda adapters, lora=lora: adapters.set([(lora, 1.0)]), times=1)
    largest = buffers._buffers_limit = buffers.buffer_bytes * 64 // (8 + 16 + 32 + 64)  # the last one's
    replayed.adapters.set([(loras[3], 1.0)])
    assert buffers.buffer_bytes == largest
    assert check(plain, replayed, lambda adapters: adapters.set([(loras[0], 1.0)])) == 1  # in a new buffer
    groups = [[(lora, 1.0)] for lora in loras]
    check(plain, replayed, lambda adapters: adapters.set_groups(groups), times=1, rows=4)
    assert buffers.buffer_bytes > largest  # those of a batch are all in use
