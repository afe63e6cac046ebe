"""Samples during a training: the precision of their parts, and what they do on a card, shown on a CPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sdpersonal.evaluation import scorer_for_base
from sdpersonal.models import load_base
from sdpersonal.models.offload import weight_bytes
from sdpersonal.photos.loading import Photo
from sdpersonal.training import class_images, dataset, sampling, validation
from sdpersonal.training.methods.dreambooth_full import DreamboothFull, extract_lora_layer
from sdpersonal.training.presets import preset
from sdpersonal.training.sampling import generate_samples
from sdpersonal.training.validation import Validator

PROMPTS = [("a duck on the beach", 0), ("a duck in the snow", 1)]


def samples(base, autocast_dtype=None):
    return generate_samples(base, lambda prompt: [prompt], PROMPTS, 64, 2, autocast_dtype)


@pytest.fixture
def autocast_parts(tiny, monkeypatch):
    """The parts of the base that were computed under autocast, and those that were not."""
    parts = {True: set(), False: set()}

    def recorded(name):
        part = getattr(tiny, name)

        def call(*args, **kwargs):
            parts[torch.is_autocast_enabled("cpu")].add(name)
            return part(*args, **kwargs)

        monkeypatch.setattr(tiny, name, call)

    for name in ("predict", "decode", "encode_captions"):
        recorded(name)
    return parts


def test_only_unet_predictions_of_samples_use_autocast(tiny, autocast_parts):
    """The autoencoder of SDXL needs fp32, and the text encoders have the precision that they were loaded in."""
    exact = samples(tiny)
    assert autocast_parts == {True: set(), False: {"predict", "decode", "encode_captions"}}
    autocast_parts[False].clear()
    rounded = samples(tiny, torch.bfloat16)
    assert autocast_parts == {True: {"predict"}, False: {"decode", "encode_captions"}}
    differences = [np.abs(np.asarray(a, int) - np.asarray(b, int)) for a, b in zip(exact, rounded, strict=True)]
    assert 0 < max(difference.mean() for difference in differences) < 12


def test_validation_images_use_the_autocast_dtype_of_the_method(tiny, autocast_parts, tmp_path):
    images = samples(tiny)
    autocast_parts[False].clear()
    validator = Validator(tmp_path, tiny, None, "object", "duck", images, torch.bfloat16)
    validator.generate(lambda prompt: [prompt.format("a duck")])
    assert autocast_parts == {True: {"predict"}, False: {"decode", "encode_captions"}}


def test_full_training_on_a_cpu_uses_no_autocast(tiny):
    method = DreamboothFull(tiny, "duck", 2, False, preset("dreambooth-full", "tiny"))
    try:
        assert method.autocast_dtype is None
    finally:
        method.close()


def test_the_batch_size_of_samples_is_reduced_until_they_fit(tiny, monkeypatch):
    """On a card what is free is not known exactly: captured graphs keep some of it for themselves."""
    prompts = [(f"a duck {place}", 0) for place in ("on the beach", "in the snow", "in the forest", "on a table", "")]

    def generate():
        return [np.asarray(image, int) for image in generate_samples(tiny, lambda prompt: [prompt], prompts, 64, 1)]

    expected, predict, rows = generate(), tiny.predict, []

    def predict_few(noisy, t, conditioning):
        rows.append(len(noisy))
        if len(noisy) > 2 * 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return predict(noisy, t, conditioning)

    monkeypatch.setattr(tiny, "predict", predict_few)
    images = generate()
    assert rows == [8, 4, 4, 2]
    assert max(np.abs(a - b).max() for a, b in zip(images, expected, strict=True)) <= 1

    def predict_none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(tiny, "predict", predict_none)
    with pytest.raises(torch.OutOfMemoryError):
        generate()


def test_photos_are_encoded_one_at_a_time_on_a_gpu(tiny):
    photo = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    expected, sizes = tiny.encode(photo), []
    base = SimpleNamespace(
        device=torch.device("cpu"), encode=lambda pixels: sizes.append(len(pixels)) or tiny.encode(pixels)
    )
    together = dataset._encode(base, list(photo))
    assert torch.equal(together.mean, expected.mean) and torch.equal(together.std, expected.std)
    base.device = torch.device("cuda")
    alone = dataset._encode(base, list(photo))
    assert sizes == [2, 1, 1]
    torch.testing.assert_close(alone.mean, expected.mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("free", "cleared"), [(30, 0), (6, 1)])
def test_sample_graphs_are_released_if_a_training_step_needs_the_memory(free, cleared, monkeypatch):
    calls = []
    base = SimpleNamespace(device=torch.device("cuda"), replayer=SimpleNamespace(clear=lambda: calls.append(1)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 9 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free << 30, 80 << 30))
    sampling._release_graphs_if_short(base)
    assert len(calls) == cleared


def test_no_graph_holds_memory_before_the_first_training_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.replayer, "enabled", True)
    monkeypatch.setattr(validation, "DENOISING_STEPS", 4)
    images = samples(tiny)
    Validator(tmp_path, tiny, scorer_for_base("tiny"), "object", "duck", images)
    assert tiny.replayer.num_graphs == 0
    class_images.generate_missing(tiny, "a duck", 64, [0], lambda line: None)
    assert tiny.replayer.num_graphs == 0


@pytest.mark.gpu
def test_only_the_vae_is_offloaded_between_training_steps(tiny):
    base = load_base("tiny", device="cuda")
    resident = sum(weight_bytes(model) for name, model in base.modules().items() if name != "vae")
    weights = [weight.data_ptr() for weight in base.unet.parameters()]
    photo = Photo("a", np.full((64, 64, 3), 90, np.uint8), "", (0, 0), original_size=(64, 64))
    dataset.PhotoDataset(base, [photo], ("{}",), seed=0, flip=True)
    assert base.offloader.bytes_on_device() == resident
    on_card = samples(base)
    assert base.offloader.bytes_on_device() == resident
    assert [weight.data_ptr() for weight in base.unet.parameters()] == weights
    differences = [np.abs(np.asarray(a, int) - np.asarray(b, int)) for a, b in zip(on_card, samples(tiny), strict=True)]
    assert max(difference.mean() for difference in differences) < 12


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(320, 640), (640, 320, 3, 3), (8, 4)])
def test_a_lora_layer_extracted_on_a_gpu_matches_the_cpu(shape):
    change = 1e-4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    products = []
    for device in ("cpu", "cuda"):
        layer = extract_lora_layer(change.to(device), 4)
        products.append(layer.up.reshape(shape[0], -1) @ layer.down.reshape(len(layer.down), -1))
    np.testing.assert_allclose(products[1], products[0], atol=1e-2 * np.abs(products[0]).max())
