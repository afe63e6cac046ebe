"""Where models wait and how many pictures are drawn at once; and what happens where memory is too short after all."""

import dataclasses
import gc
import itertools
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.steps.geometry import build
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import OutOfMemory
from sdpersonal.generation import Generator
from sdpersonal.models import load_base, offload
from sdpersonal.models.host_copies import HostCopies
from sdpersonal.models.offload import (
    MemoryNeed,
    Offloader,
    OffloadPlan,
    choose_plan,
    choose_training_plan,
    memory_need,
    place_for_training,
    placed_for_encoding,
    plan_offload,
    weight_bytes,
)
from sdpersonal.models.oom import translate_oom

GB = 10**9
SDXL = MemoryNeed(  # at 1024x1024 in bf16, autoencoder in fp32
    text=int(1.6 * GB), unet=int(5.1 * GB), vae=int(0.33 * GB), step=int(0.55 * GB), decoding=int(3.3 * GB), tile=GB
)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (24, OffloadPlan("all", False, 4)),
        (11.8, OffloadPlan("model", False, 4)),
        (9.8, OffloadPlan("sequential", False, 4)),
        (8, OffloadPlan("sequential", False, 2)),
        (7.2, OffloadPlan("sequential", False, 1)),
        (2, OffloadPlan("sequential", True, 1)),  # hopeless; the error that comes says what to lower
    ],
)
def test_the_offload_plan_for_sdxl_depends_on_gpu_memory(card, expected):
    assert choose_plan(int(card * GB), SDXL, 4) == expected


def test_vae_tiling_is_chosen_when_decoding_does_not_fit():
    need = MemoryNeed(text=GB, unet=GB, vae=GB // 4, step=GB, decoding=20 * GB, tile=GB)
    assert choose_plan(8 * GB, need, 4) == OffloadPlan("sequential", True, 4)


def test_the_chosen_plan_fits_and_more_memory_is_never_slower():
    cost = {"all": 0, "model": 0, "sequential": 1}
    ranks = []
    for free in range(0, 40 * GB, GB // 7):
        chosen = choose_plan(free, SDXL, 4)
        if chosen != OffloadPlan("sequential", True, 1):
            assert SDXL.peak(chosen.mode, chosen.tiled, chosen.batch_size) < 0.9 * free
        ranks.append((chosen.tiled, cost[chosen.mode], -chosen.batch_size, chosen.mode == "model"))
    assert ranks == sorted(ranks, reverse=True)


class Live(TorchDispatchMode):
    """Bytes of the tensors that live at once at most, models' own aside."""

    def __init__(self, base):
        super().__init__()
        original = itertools.chain.from_iterable(
            (*model.parameters(), *model.buffers()) for model in base.modules().values()
        )
        self._sizes = {item.untyped_storage()._cdata: 0 for item in original}
        self._now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in tree_iter(out):
            if isinstance(item, torch.Tensor) and (key := (saved := item.untyped_storage())._cdata) not in self._sizes:
                self._sizes[key] = saved.nbytes()
                self._now += saved.nbytes()
                self.most = max(self.most, self._now)
                weakref.finalize(saved, self._gone, key)
        return out

    def _gone(self, key):
        self._now -= self._sizes.pop(key)


@pytest.mark.parametrize("kind, side", [("tiny", 128), ("sd15", 512), ("sdxl", 1024)])
def test_peak_memory_of_a_stage_stays_within_its_estimate(kind, side, monkeypatch):
    """Counted on the meta device, in the models' real shapes."""
    # There it would be written out with the whole matrix, which no kernel on a card does.
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q))
    base, images = build(kind, "meta"), 4
    base.unet.to(torch.bfloat16)
    condition = base.encode_captions([["a"]] * (2 * images))
    latents = torch.zeros(2 * images, *base.latent_shape(side, side), device="meta")
    reckoned = memory_need(base, (side, side))
    with torch.no_grad(), Live(base) as live:
        base.predict(latents, torch.zeros(2 * images, device="meta"), condition)
    assert live.most <= images * reckoned.step < 2.2 * live.most
    with torch.no_grad(), Live(base) as live:
        base.vae.decode(latents[:1])
    assert live.most <= reckoned.decoding < 1.1 * live.most
    assert reckoned.unet == 2 * sum(item.numel() for item in base.unet.parameters())


class Model(nn.Linear):
    """Stands for a model of which only the place matters."""

    def __init__(self):
        super().__init__(3, 2)
        self.place, self.use_tiling = "card", False


class Places:
    """Records where a `Model` is sent."""

    def __init__(self, model):
        self._model = model

    def to_device(self):
        self._model.place = "card"

    def to_host(self):
        self._model.place = "cpu"


@pytest.fixture(autouse=True)
def models_record_their_place(monkeypatch):
    def copies(model, device):
        return Places(model) if isinstance(model, Model) else HostCopies(model, device)

    monkeypatch.setattr(offload, "HostCopies", copies)


def places(stages):
    return "".join({"card": "x", "cpu": "."}[model.place] for model in stages._models.values())


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("all", ["xxx", "xxx", "xxx", "xxx", "xxx"]),
        ("model", [".x.", "xx.", ".x.", ".x.", ".xx"]),
        ("sequential", ["...", "x..", ".x.", ".x.", "..x"]),
        ("training", ["xx.", "xx.", "xx.", "xx.", "xxx"]),
    ],
)
def test_the_offload_mode_determines_the_models_on_the_gpu(mode, expected):
    stages = Offloader(Model(), Model(), Model(), torch.device("cuda", 0))
    stages._models["vae"].config = {"block_out_channels": (1, 1, 1, 1)}
    stages.apply_plan(OffloadPlan(mode, mode == "sequential", 1))
    recorded = [places(stages)]
    for stage in ("text", "unet", "unet", "vae"):
        stages.to_device(stage)
        recorded.append(places(stages))
        assert stages.bytes_on_device() == 4 * 8 * places(stages).count("x")
    assert recorded == expected
    assert stages._models["vae"].use_tiling == (mode == "sequential")
    stages.apply_plan(OffloadPlan("all", False, 4))
    assert places(stages) == "xxx" and not stages._models["vae"].use_tiling


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (12, OffloadPlan("training", False, 4)),  # the steps of four images take less than the autoencoder
        (11.3, OffloadPlan("training", True, 2)),
        (9, OffloadPlan("training", True, 1)),  # hopeless
    ],
)
def test_validation_images_leave_unet_and_text_encoders_on_the_gpu(free, expected):
    need = dataclasses.replace(SDXL, step=int(0.9 * GB), decoding=int(3.3 * GB))
    assert choose_training_plan(int(free * GB), need, 4) == expected
    assert need.peak("training", False, 4) == need.text + need.unet + max(4 * need.step, need.vae + need.decoding)


@pytest.mark.parametrize(
    ("free", "trains", "expected"), [(24, False, "xxx"), (11.5, False, "..x"), (11.5, True, "xxx")]
)
def test_frozen_models_are_offloaded_if_encoding_photos_needs_memory(free, trains, expected, monkeypatch):
    """A UNet that trains stays: it is where its gradients and moments are."""
    models = {name: Model() for name in ("text", "unet", "vae")}
    models["vae"].config = {"block_out_channels": (1, 1, 1, 1)}
    device = torch.device("cuda", 0)
    offloader = Offloader(**models, device=device)
    models["unet"].requires_grad_(trains)
    base = SimpleNamespace(offloader=offloader, unet=models["unet"], device=device)
    monkeypatch.setattr(offload, "memory_need", lambda base, size: SDXL)
    monkeypatch.setattr(offload, "_available_bytes", lambda base: int(free * GB))
    with placed_for_encoding(base, (1024, 1024)):
        offloader.to_device("vae")
        assert places(offloader) == expected
    assert places(offloader) == "xx."
    with placed_for_encoding(base, (1024, 1024)):
        offloader.to_device("vae")
    assert places(offloader) == "xx."
    offloader.to_device("vae")
    assert place_for_training(base, (1024, 1024), 4) in (1, 2, 4) and places(offloader) == "xx."


def test_models_are_not_offloaded_on_a_cpu(tiny):
    with placed_for_encoding(tiny, (2048, 2048)):
        assert tiny.offloader._mode == "all"
    assert place_for_training(tiny, (2048, 2048), 4) == 4 and tiny.offloader._mode == "all"
    assert plan_offload(tiny, (2048, 2048), 4) == OffloadPlan("all", False, 4)
    assert plan_offload(tiny, (128, 128), 4) == OffloadPlan("all", False, 8)
    assert not tiny.vae.use_tiling and tiny.offloader.bytes_on_device() == sum(
        map(weight_bytes, tiny.modules().values())
    )


def test_the_planned_batch_size_does_not_change_the_images(tiny, monkeypatch):
    """The same pictures, in other batches, up to the kernels' rounding."""
    request = GenerateRequest(prompt="a duck", num_images=4, steps=2, size="64x64")
    together = [np.asarray(item.image, int) for item in Generator(tiny).generate(request)]
    recorded = []
    plan = OffloadPlan("all", False, 3)
    monkeypatch.setattr(
        "sdpersonal.generation.generator.plan_offload", lambda base, size, most, beside: recorded.append(size) or plan
    )
    batches = [np.asarray(item.image, int) for item in Generator(tiny).generate(request)]
    assert max(np.abs(a - b).max() for a, b in zip(together, batches, strict=True)) <= 1
    request = GenerateRequest(prompt="a duck", num_images=1, steps=1, size="64x96", hires_scale=1.5)
    list(Generator(tiny).generate(request))
    assert recorded == [(64, 64), (96, 144)]


def test_interleaved_requests_do_not_change_each_other(monkeypatch):
    """On a small card the large request is decoded in tiles beside a UNet that waits; the small one is not."""
    base = load_base("tiny", "cpu")
    monkeypatch.setattr(offload, "TILE_SIZE", 64)
    plans = {(128, 128): OffloadPlan("sequential", True, 1), (64, 64): OffloadPlan("all", False, 2)}
    monkeypatch.setattr("sdpersonal.generation.generator.plan_offload", lambda base, size, most, beside: plans[size])
    placed = []
    decode = base.decode

    def record(latents):
        placed.append((base.offloader._mode, base.vae.use_tiling))
        return decode(latents)

    monkeypatch.setattr(base, "decode", record)
    large = GenerateRequest(prompt="a duck", num_images=2, steps=1, size="128x128")
    small = GenerateRequest(prompt="a cat", num_images=4, steps=1, size="64x64")
    generator = Generator(base)
    alone = [[item.image.tobytes() for item in generator.generate(request)] for request in (large, small)]
    assert placed == [("sequential", True)] * 2 + [("all", False)] * 4
    placed.clear()
    together = [[], []]
    for items in itertools.zip_longest(generator.generate(large), generator.generate(small)):
        for images, item in zip(together, items, strict=True):
            images += [item.image.tobytes()] if item else []
    assert together == alone
    small_batch, large_batch = [("all", False)] * 2, [("sequential", True)]
    assert placed == [*large_batch, *small_batch, *large_batch, *small_batch]
    monkeypatch.setitem(plans, (128, 128), OffloadPlan("all", False, 1))
    assert [item.image.tobytes() for item in generator.generate(large)] != alone[0]  # tiles do change an image


# --- memory that is too short after all -------------------------------------------------------------------------------


class NoRoomAt:
    """A UNet's n-th answer is the allocator's error, with a tensor in its hands."""

    def __init__(self, base, n):
        self._real, self._left, self.held = base.predict, n, None

    def __call__(self, noisy, t, condition):
        self._left -= 1
        if self._left == 0:
            block = torch.zeros(1000)
            self.held = weakref.ref(block)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")
        return self._real(noisy, t, condition)


@pytest.mark.parametrize("n", [1, 3])  # in the first batch, and after some pictures
def test_an_out_of_memory_error_frees_its_tensors_for_the_next_request(tiny, monkeypatch, n):
    request = GenerateRequest(prompt="a duck", num_images=10, steps=2, size="64x64")
    expected = [image.image.tobytes() for image in Generator(tiny).generate(request)]
    generator, failing = Generator(tiny), NoRoomAt(tiny, n)
    with monkeypatch.context() as patched:
        patched.setattr(tiny, "predict", failing)
        with pytest.raises(
            OutOfMemory, match=r"^Out of memory generating \d images at once: needs about .* GB there\."
        ) as caught:
            list(generator.generate(request))
    assert "--size" in caught.value.hint and "--num-images 1" in caught.value.hint
    gc.collect()
    assert failing.held() is None, sys.getrefcount(failing.held())  # even while the error is at hand
    assert [image.image.tobytes() for image in generator.generate(request)] == expected


FORMS = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity"),
    "pinned memory or a graph": torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"),
    "an older torch": RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    "segments": RuntimeError("CUDA driver error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuDNN 9, host": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    "convolution": RuntimeError("GET was unable to find an engine to execute this computation"),
    "cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    "cuFFT": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "NCCL": RuntimeError("ncclUnhandledCudaError: Call failed. Last error:\nCuda failure 2 'out of memory'"),
    "CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 24 bytes."),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_out_of_memory_error_is_translated_to_one_message(form):
    sentence = r"^Out of memory somewhere: needs about .* GB there\.\nless$"
    with pytest.raises(OutOfMemory, match=sentence), translate_oom("somewhere", "less", torch.device("cpu")):
        raise FORMS[form]


def test_an_out_of_memory_error_during_graph_capture_is_translated():
    """Leaving the capture raises an error of its own, and both hold tensors."""
    blocks = []

    def allocate():
        block = torch.zeros(1000)
        blocks.append(weakref.ref(block))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    def capture():
        graph_input = torch.zeros(1000)
        blocks.append(weakref.ref(graph_input))
        try:
            allocate()
        finally:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")

    with pytest.raises(OutOfMemory), translate_oom("somewhere", "", torch.device("cpu")):
        capture()
    gc.collect()
    assert [block() for block in blocks] == [None, None]


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
        "memory format",
    ],
)
def test_other_errors_are_not_translated_as_out_of_memory(message):
    with pytest.raises(RuntimeError, match=message), translate_oom("somewhere", "", torch.device("cpu")):
        raise RuntimeError(message)


def test_generation_raises_other_errors_unchanged(tiny, monkeypatch):
    def fail(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(tiny, "predict", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        list(Generator(tiny).generate(GenerateRequest(prompt="a", num_images=1, steps=1, size="64x64")))


def test_available_memory_includes_torchs_cache_and_the_bases_models(tiny, monkeypatch):
    """What torch keeps for later and what the base's own models take can be had as well."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GB, 9 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * GB)
    assert offload._available_bytes(tiny) == 6 * GB + sum(map(weight_bytes, tiny.modules().values()))
