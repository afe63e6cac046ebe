"""What only a CUDA card can show; skipped without one. It needs few packages: make test-gpu, benchmarks/on_card.py."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.card.clocks import sync_mode, waits
from benchmarks.card.exactness import (
    KINDS,
    MAX_ERRORS,
    MAX_LOSS_ERROR,
    MIN_COSINE,
    loss_and_gradients,
    output_errors,
    pair,
)
from benchmarks.card.own_step import our_step, settings_for, train_state
from benchmarks.card.session import Session, cast
from benchmarks.steps.geometry import build
from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, GenerateRequest, TextualInversionSettings
from sdpersonal.errors import Diverged, OutOfMemory, UserError
from sdpersonal.generation import Generator
from sdpersonal.models import load_base, offload
from sdpersonal.models.offload import OffloadPlan
from sdpersonal.prompts import Token
from sdpersonal.training import train

pytestmark = pytest.mark.gpu

METHODS = {
    "textual inversion": ("textual-inversion", {}),
    "lora": ("lora", {"text_encoder": True}),
    "lora with a prior": ("lora", {"prior": "predicted"}),
    "lora of all layers": ("lora", {"targets": "all"}),
    "pivotal": ("pivotal", {}),
    "full": ("full", {}),
}


class Shelf(dict):
    def get(self, token):
        return self[token.name]


def random_concept(base, name, seed, rank=3):
    rng, layers = np.random.default_rng(seed), {}
    for layer in base.adapters.layer_names("attention"):
        rows, columns = base.adapters.layers()[layer].weight.shape
        down, up = rng.normal(size=(rank, columns)) / columns**0.5, rng.normal(size=(rows, rank)) / rank**0.5
        layers[layer] = LoraLayer(down.astype(np.float32), up.astype(np.float32), rank / 2)
    vectors = {key: 0.05 * rng.normal(size=(2, width)).astype(np.float32) for key, width in base.widths.items()}
    return Concept(Token("me", name, 1), Card(base=base.kind), vectors, Lora(layers))


@pytest.fixture(scope="module")
def base():
    """The built-in base on the card, loaded once. Tests give it back as they found it."""
    return load_base("tiny", device="cuda")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return Session(tmp_path_factory.mktemp("session"), seconds=600)


@pytest.fixture(scope="module", params=KINDS)
def both(request):
    """A base in fp32 on the CPU and in bf16 on the card."""
    return pair(request.param, "cuda")


def images_of(base, concepts=None, **fields):
    request = GenerateRequest(**({"prompt": "a duck on the beach", "num_images": 2} | fields))
    return [np.asarray(image.image, int) for image in Generator(base, concepts).generate(request)]


def largest_difference(images, others):
    """Of the means over the pixels of an image, of 255."""
    return max(np.abs(a - b).mean() for a, b in zip(images, others, strict=True))


# --- the same numbers as on the CPU -----------------------------------------------------------------------------------


def test_the_frozen_base_is_bf16_and_the_schedule_fp32(base):
    assert base.dtype == torch.bfloat16 and base.schedule.alphas_cumprod.dtype == torch.float32
    assert base.schedule.alphas_cumprod.device.type == "cuda"


def test_model_outputs_match_those_on_the_cpu(both):
    errors = output_errors(*both)
    assert all(error <= MAX_ERRORS[name] for name, error in errors.items()), errors


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_match_those_on_the_cpu(both, method):
    reference, base = both
    name, more = METHODS[method]
    (loss, gradients), (expected, expected_gradients) = (
        loss_and_gradients(model, name, more) for model in (base, reference)
    )
    assert loss == pytest.approx(expected, rel=MAX_LOSS_ERROR)
    assert len(gradients) == len(expected_gradients) and bool(torch.isfinite(gradients).all())
    assert float(torch.nn.functional.cosine_similarity(gradients, expected_gradients, dim=0)) >= MIN_COSINE


def test_gradient_checkpointing_changes_no_gradient(both):
    _, base = both
    _, expected = loss_and_gradients(base, "lora", {})
    base.enable_gradient_checkpointing(1)
    try:
        _, gradients = loss_and_gradients(base, "lora", {"checkpointing": 1})
    finally:
        base.enable_gradient_checkpointing(0)
    assert float(torch.nn.functional.cosine_similarity(gradients, expected, dim=0)) >= MIN_COSINE


def test_fp16_outputs_match_those_in_fp32():
    reference, _ = pair("narrow", "cuda")
    base = build("narrow", "cuda")
    for name, model in base.modules().items():
        model.load_state_dict(reference.modules()[name].state_dict())
    errors = output_errors(reference, cast(base, torch.float16))
    assert all(error <= 5e-3 for error in errors.values()), errors


@pytest.mark.parametrize("scheduler", [None, "DPM++ 2M Karras", "DDIM", "Euler a", "LCM", "TCD", "UniPC", "DPM++ SDE"])
def test_a_seed_generates_nearly_the_same_image_as_on_the_cpu(tiny, base, scheduler):
    fields = {"scheduler": scheduler, "steps": 8}
    assert largest_difference(images_of(tiny, **fields), images_of(base, **fields)) < 12


def test_img2img_and_inpainting_match_the_cpu(tiny, base, root, tmp_path):
    photo, mask = root / "examples/photos/teddy-bear/01.jpg", tmp_path / "mask.png"
    Image.fromarray(np.tile(np.repeat(np.uint8([0, 255]), 64), (128, 1))).save(mask)
    for fields in ({}, {"mask": mask}):
        fields = fields | {"init_image": photo, "size": "128x128", "steps": 8}
        assert largest_difference(images_of(tiny, **fields), images_of(base, **fields)) < 12


def test_a_concept_acts_independently_of_earlier_images(tiny, base):
    """A graph of the bare UNet must not stand for one with a concept, nor that of one concept for another's."""
    shelf = Shelf(duck=random_concept(tiny, "duck", 1), cat=random_concept(tiny, "cat", 2))
    fields = {"num_images": 1, "steps": 8}
    prompts = ["a dog", "a <duck:0.7>", "a <cat:0.7>", "a <duck:0.3>", "a <duck:0.7@0-0.5>", "a dog"]
    expected = [images_of(tiny, shelf, prompt=prompt, **fields) for prompt in prompts]
    for _ in range(2):
        images = [images_of(base, shelf, prompt=prompt, **fields) for prompt in prompts]
        for i, j in itertools.product(range(len(prompts)), repeat=2):
            if prompts[i] == prompts[j]:
                assert largest_difference(images[i], expected[j]) < 12, prompts[i]
        assert largest_difference(images[0], images[1]) > 12 and largest_difference(images[1], images[2]) > 12


# --- training ---------------------------------------------------------------------------------------------------------


def lora_changes(concept):
    layers = [concept.lora.layers[name] for name in sorted(concept.lora.layers)]
    flat = [(layer.up.reshape(len(layer.up), -1) @ layer.down.reshape(len(layer.down), -1)) for layer in layers]
    return np.concatenate([change.ravel() for change in flat]).astype(np.float64)


def test_resumed_training_matches_uninterrupted_training(tmp_path, root):
    common = {"photos": root / "examples/photos/teddy-bear", "token": "<me/teddy>", "base": "tiny"}
    common |= {"class_noun": "bear", "library": tmp_path / "concepts", "samples": False, "save_every": 5}
    common |= {"schedule": "constant"}
    runs = [("whole", 10, False), ("parts", 5, False), ("parts", 10, True)]
    whole, _, parts = (
        train(DreamboothSettings(**common, run=tmp_path / run, steps=steps, resume=resume), log=lambda line: None)
        for run, steps, resume in runs
    )
    library = Library(tmp_path / "concepts")
    a, b = (lora_changes(library.get(str(result.token))) for result in (whole, parts))
    assert np.linalg.norm(a) > 0 and a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= MIN_COSINE


@pytest.mark.parametrize(
    "method, more",
    [
        ("lora", {"optimizer": "prodigy"}),
        ("lora", {"checkpointing": 2}),
        ("pivotal", {}),
        ("full", {}),
        ("textual-inversion", {}),
    ],
)
def test_training_steps_change_only_the_trainable_parameters(base, method, more):
    weights, dtype = {name: weight.clone() for name, weight in base.unet.state_dict().items()}, base.dtype
    base.enable_gradient_checkpointing(more.get("checkpointing", 0))
    state = train_state(base, settings_for(method, 2, **more), 128)
    before = {name: p.detach().clone() for name, p in state.method.trainable_parameters().items()}
    pivot = 60 if method == "pivotal" else 0  # steps of embeddings alone
    state.step = max(0, pivot - 3)
    step = our_step(state, 2)
    for _ in range(3):
        step()
    changed = {name for name, p in state.method.trainable_parameters().items() if not torch.equal(p, before[name])}
    assert changed and all("lora_" not in name for name in changed) if pivot else changed
    for _ in range(4):
        step()
    after = state.method.trainable_parameters()
    assert all(bool(torch.isfinite(p).all()) for p in after.values())
    assert any("lora_up" in name and not torch.equal(p, before[name]) for name, p in after.items()) == (
        method in ("lora", "pivotal")
    )
    state.method.close()
    base.enable_gradient_checkpointing(0)
    assert base.dtype == dtype
    assert all(torch.equal(weight, weights[name]) for name, weight in base.unet.state_dict().items())


def test_full_training_and_textual_inversion_save_finite_concepts(tmp_path, root):
    common = {"photos": root / "examples/photos/teddy-bear", "base": "tiny", "library": tmp_path / "concepts"}
    lines = []
    full = DreamboothSettings(
        **common, token="<me/full>", class_noun="bear", method="full", steps=4, samples=False, run=tmp_path / "full"
    )
    inversion = TextualInversionSettings(**common, token="<me/word>", init="bear", steps=4, run=tmp_path / "word")
    for settings in (full, inversion):
        train(settings, log=lines.append)
    concepts = [Library(tmp_path / "concepts").get(token) for token in ("<me/full>", "<me/word>")]
    assert np.isfinite(lora_changes(concepts[0])).all() and np.any(lora_changes(concepts[0]))
    assert load_base(str(tmp_path / "full" / "model"), "cuda").dtype == torch.bfloat16
    assert concepts[1].lora is None and all(np.isfinite(rows).all() for rows in concepts[1].embeddings.values())


@pytest.mark.parametrize("method", ["lora", "textual-inversion"])
def test_a_training_step_does_not_synchronize_with_the_gpu(base, session, method):
    state = train_state(base, settings_for(method, 2), 128)
    try:
        step = our_step(state, 2)
        for _ in range(3):
            step()
        with sync_mode(session, "error"):
            for _ in range(3):
                step()
    finally:
        state.method.close()


def test_a_nan_loss_stops_training_with_a_message(base):
    weight = base.unet.conv_in.weight
    before = weight.detach().clone()
    state = train_state(base, settings_for("lora", 2), 128)
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        step = our_step(state, 2)
        with pytest.raises(Diverged, match="NaN at step 1 "):
            step(), step()
    finally:
        with torch.no_grad():
            weight.copy_(before)
        state.method.close()


# --- generation, placement, memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["DPM++ 2M Karras", "DDIM", "Euler a", "LCM"])
def test_a_denoising_step_does_not_synchronize_with_the_gpu(base, session, scheduler):
    fields = {"prompt": "a duck", "num_images": 1, "scheduler": scheduler}
    images_of(base, **fields, steps=8)
    few, more = (waits(session, lambda steps=steps: images_of(base, **fields, steps=steps)) for steps in (8, 14))
    assert sum(more.values()) == sum(few.values()), more - few


def test_a_nan_image_is_refused_with_a_message(base):
    weight = base.vae.decoder.conv_in.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(UserError, match="NaN"):
            images_of(base, steps=2)
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_interleaved_requests_generate_the_same_images_as_alone(base, monkeypatch):
    """A large request, whose models wait beside the card, and a small one between its batches."""
    plans = {(256, 256): OffloadPlan("sequential", False, 1), (128, 128): OffloadPlan("all", False, 1)}
    monkeypatch.setattr(offload, "memory_need", lambda base, size: size)
    monkeypatch.setattr(offload, "choose_plan", lambda free, size, most: plans[size])
    requests = [
        GenerateRequest(prompt="a duck", num_images=6, steps=3, size="256x256"),
        GenerateRequest(prompt="a cat", num_images=6, steps=3, size="128x128"),
    ]
    generator = Generator(base)
    alone = [[item.image.tobytes() for item in generator.generate(request)] for request in requests]
    together = [[], []]
    for items in itertools.zip_longest(*(generator.generate(request) for request in requests)):
        for images, item in zip(together, items, strict=True):
            images += [item.image.tobytes()] if item else []
    monkeypatch.undo()
    assert together == alone
    images_of(base, steps=1)  # all models are on the card again


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_offloaded_models_generate_identical_images(mode, monkeypatch):
    base = load_base("tiny", device="cuda")
    request = GenerateRequest(prompt="a duck on the beach", num_images=3, steps=4)
    expected = [image.image.tobytes() for image in Generator(base).generate(request)]
    stored = base.offloader.bytes_on_device()
    monkeypatch.setattr(offload, "choose_plan", lambda free, need, most: OffloadPlan(mode, False, most))
    assert [image.image.tobytes() for image in Generator(base).generate(request)] == expected
    assert base.offloader.bytes_on_device() < stored and base.device.type == "cuda"
    monkeypatch.undo()
    assert [image.image.tobytes() for image in Generator(base).generate(request)] == expected
    assert base.offloader.bytes_on_device() == stored


def test_a_lora_applies_to_offloaded_models(tiny, monkeypatch):
    shelf, base = Shelf(duck=random_concept(tiny, "duck", 1)), load_base("tiny", device="cuda")
    request = GenerateRequest(prompt="a cat <duck:0.7>", num_images=2, steps=4)
    expected = [image.image.tobytes() for image in Generator(base, shelf).generate(request)]
    monkeypatch.setattr(offload, "choose_plan", lambda free, need, most: OffloadPlan("sequential", False, most))
    assert [image.image.tobytes() for image in Generator(base, shelf).generate(request)] == expected


def test_generation_recovers_after_running_out_of_gpu_memory():
    base, request = load_base("tiny", device="cuda"), GenerateRequest(prompt="a duck", num_images=2, steps=2)
    expected = [image.image.tobytes() for image in Generator(base).generate(request)]
    torch.cuda.empty_cache()
    _, full = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / full + 1e-6)
    try:
        with pytest.raises(OutOfMemory, match="Out of memory generating"):
            list(Generator(base).generate(GenerateRequest(prompt="a duck", num_images=8, steps=2, size="2048x2048")))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [image.image.tobytes() for image in Generator(base).generate(request)] == expected


def test_peak_gpu_memory_of_a_stage_stays_near_its_estimate():
    from sdpersonal.models.offload import memory_need

    base, images = cast(build("sd15", "cuda"), torch.bfloat16), 4
    reckoned, shape = memory_need(base, (512, 512)), base.latent_shape(512, 512)
    with base.exclusive():
        condition = base.encode_captions([["a"]] * (2 * images))
        latents = torch.zeros(2 * images, *shape, device="cuda")
        for work, expected in (
            (lambda: base.predict(latents, torch.zeros(2 * images, device="cuda"), condition), 4 * reckoned.step),
            (lambda: base.decode(latents[:1]), reckoned.decoding),
        ):
            work()
            torch.cuda.empty_cache()
            stored = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            work()
            assert torch.cuda.max_memory_allocated() - stored < 1.3 * expected
