"""Each method's loss and gradients against the same step written straight with diffusers' and PEFT's own modules, on
the real architectures, narrowed, with random weights, in fp32."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.errors import UserError
from sdpersonal.models import load_base
from sdpersonal.photos.loading import Photo, load_photos
from sdpersonal.prompts import Token
from sdpersonal.training.dataset import PhotoDataset, _crop_and_flip
from sdpersonal.training.methods.dreambooth_full import (
    IDENTIFIER,
    DreamboothFull,
    extract_lora_layer,
    largest_singular_vectors,
)
from sdpersonal.training.methods.dreambooth_lora import DreamboothLora, LoraTrainingConfig, PivotalTuning
from sdpersonal.training.methods.prior_preservation import ClassImagePrior, PredictedPrior
from sdpersonal.training.methods.textual_inversion import TextualInversion
from sdpersonal.training.methods.token_embedding import TokenEmbedding, clip_norm, max_embedding_norm
from sdpersonal.training.objective import min_snr
from sdpersonal.training.presets import Preset
from support.narrow import KINDS, save_narrow

PRESET = Preset(steps=4, batch=2, lr=1e-3, embedding_lr=5e-3, snr_gamma=5.0, pivot_steps=2, pivot_lr=1e-2)
CAPTIONS = ("a photo of {}", "{} on the beach")


def loss_of(prior, batch):
    return prior.loss(prior.inputs(batch))


# sd2 has the layers of sd2 v, and the target of the others.
@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=[pytest.mark.thorough] * (kind == "sd2")) for kind in KINDS]
)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return save_narrow(kind, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def base(folder):
    return load_base(str(folder), device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder_of_photos = tmp_path_factory.mktemp("photos")
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((256 + 64 * i, 256)).save(folder_of_photos / f"{i}.png")
    return load_photos(folder_of_photos, 64).photos


# What SDXL is told of them: original height and width, top and left of the square when scaled, its height and width.
TIME_IDS = {"0.png": [256, 256, 0, 0, 64, 64], "1.png": [256, 320, 0, 8, 64, 64]}


@pytest.fixture
def batch(base, photos):
    return PhotoDataset(base, photos, CAPTIONS, seed=1, flip=False).batch(range(4))


class Reference:
    """diffusers' way: the token's vectors are rows of the vocabulary, the LoRA is PEFT's."""

    def __init__(self, folder, kind, embeddings):
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        self.xl = kind == "sdxl"
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
        self.scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        count = max((len(value) for value in embeddings.values()), default=0)
        self.words = [f"<row{i}>" for i in range(count)]
        self.tokenizer.add_tokens(self.words)
        self.texts = {"clip_l": CLIPTextModel.from_pretrained(folder / "text_encoder")}
        if self.xl:
            self.texts["clip_g"] = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        for key, model in self.texts.items():
            model.requires_grad_(False).eval()
            if count:
                eos = self.tokenizer.eos_token_id
                model.resize_token_embeddings(len(self.tokenizer))
                table = model.get_input_embeddings().weight
                table.data[-count:] = embeddings[key].detach()
                table.requires_grad_(True)
                # transformers pools at eos_token_id where the config names it rightly
                assert model.config.eos_token_id == eos

    def encode(self, prompts, time_ids=None):
        ids = self.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        if not self.xl:
            return self.texts["clip_l"](ids.input_ids)[0], None
        first = self.texts["clip_l"](ids.input_ids, output_hidden_states=True).hidden_states[-2]
        second = self.texts["clip_g"](ids.input_ids, output_hidden_states=True)
        time_ids = time_ids or [[64, 64, 0, 0, 64, 64]] * len(prompts)
        added = {"text_embeds": second.text_embeds, "time_ids": torch.tensor(time_ids, dtype=torch.float32)}
        return torch.cat([first, second.hidden_states[-2]], -1), added

    def loss(self, batch, prompts, gamma):
        from diffusers.training_utils import compute_snr

        noisy = self.scheduler.add_noise(batch.latents, batch.noise, batch.t)
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(batch.latents, batch.noise, batch.t) if velocity else batch.noise
        states, added = self.encode(prompts, [TIME_IDS[name] for name in batch.photos])
        prediction = self.unet(noisy, batch.t, states, added_cond_kwargs=added).sample
        loss = ((prediction - target) ** 2).mean(dim=(1, 2, 3))
        if gamma is None:
            return loss
        snr = compute_snr(self.scheduler, batch.t)
        return loss * torch.stack([snr, torch.full_like(snr, gamma)]).amin(0) / (snr + 1 if velocity else snr)


def prompts_with(batch, word):
    return [caption.format(word) for caption in batch.captions]


def close(ours, expected):
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_a_textual_inversion_step_equals_that_of_diffusers(base, folder, kind, batch, gamma):
    method = TextualInversion(base, "toy duck", 3, replace(PRESET, snr_gamma=gamma))
    reference = Reference(folder, kind, method.embeddings)
    ours, expected = (
        method.loss(method.inputs(batch), 0),
        reference.loss(batch, prompts_with(batch, "".join(reference.words)), gamma),
    )
    close(ours, expected)
    ours.mean().backward()
    expected.mean().backward()
    for key, embeddings in method.trainable_parameters().items():
        grad = reference.texts[key.removeprefix("rows.")].get_input_embeddings().weight.grad[-3:]
        close(embeddings.grad, grad)
        assert (embeddings.grad.norm(dim=1) > 0).all()  # each vector


def test_a_caption_of_several_samples_is_encoded_once(base, batch):
    """With the losses and the gradient that each by itself would have."""
    method, batch_sizes = TextualInversion(base, "duck", 2, PRESET), []
    same = replace(batch, captions=("a photo of {}", "{} here", "a photo of {}", "a photo of {}"))
    hooks = [
        encoder.model.register_forward_pre_hook(lambda _, args: batch_sizes.append(len(args[0])))
        for encoder in base.encoders.values()
    ]
    together = method.loss(method.inputs(same), 0)
    for hook in hooks:
        hook.remove()
    together.sum().backward()
    gradients = {name: embeddings.grad.clone() for name, embeddings in method.trainable_parameters().items()}
    method = TextualInversion(base, "duck", 2, PRESET)
    alone = torch.cat([method.loss(method.inputs(sample), 0) for sample in same.split(1)])
    alone.sum().backward()
    assert batch_sizes == [2] * len(base.encoders)
    close(together, alone)
    for name, embeddings in method.trainable_parameters().items():
        close(gradients[name], embeddings.grad)


@pytest.mark.parametrize("targets", ["attention", "transformer", "all"])
def test_a_lora_step_equals_that_of_peft(base, folder, kind, batch, targets):

    from peft import LoraConfig

    method = DreamboothLora(base, "toy duck", LoraTrainingConfig(rank=2), replace(PRESET, targets=targets), seed=0)
    try:
        for name, value in method.trainable_parameters().items():
            if name.endswith("lora_up.weight"):
                value.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
        reference = Reference(folder, kind, method.embeddings)
        layers = {
            name: layer
            for name, layer in base.adapters.layers().items()
            if f"{name}.lora_up.weight" in method.trainable_parameters()
        }
        paths = {id(module): path for path, module in base.unet.named_modules()}
        names_by_path = {paths[id(layer)]: name for name, layer in layers.items()}
        reference.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=list(names_by_path)))
        ends = (("lora_A", "lora_down"), ("lora_B", "lora_up"))
        expected = {
            f"{name}.{end}.weight": getattr(reference.unet.get_submodule(path), letter)["default"].weight
            for path, name in names_by_path.items()
            for letter, end in ends
        }
        for name, weight in expected.items():
            weight.data = method.trainable_parameters()[name].detach().clone()
        ours, loss = (
            method.loss(method.inputs(batch), 0),
            reference.loss(batch, prompts_with(batch, "".join(reference.words)), 5.0),
        )
        close(ours, loss)
        ours.mean().backward()
        loss.mean().backward()
        for name, weight in expected.items():
            close(method.trainable_parameters()[name].grad, weight.grad)
        frozen = [p for model in base.modules().values() for p in model.parameters()]
        assert all(p.grad is None and not p.requires_grad for p in frozen)
    finally:
        method.close()


def test_a_text_encoder_lora_step_equals_that_of_peft(base, folder, kind, batch):
    from peft import LoraConfig, get_peft_model

    method = DreamboothLora(base, "toy duck", LoraTrainingConfig(rank=2, text=True), PRESET, seed=0)
    try:
        reference = Reference(folder, kind, method.embeddings)
        trained = method.trainable_parameters()
        for name, value in trained.items():
            if name.endswith("lora_up.weight"):
                value.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
                value.data *= not name.startswith("lora_unet")  # the UNet's adds nothing here
        layers_by_name, expected = base.adapters.layers(), {}
        for key, encoder in base.encoders.items():
            paths = {id(module): path for path, module in encoder.model.named_modules()}
            names_by_path = {
                paths[id(layer)]: name
                for name, layer in layers_by_name.items()
                if id(layer) in paths and f"{name}.lora_up.weight" in trained
            }
            assert names_by_path
            reference.texts[key] = get_peft_model(
                reference.texts[key], LoraConfig(r=2, lora_alpha=2, target_modules=list(names_by_path))
            ).eval()
            for path, name in names_by_path.items():
                module = reference.texts[key].base_model.model.get_submodule(path)
                expected[f"{name}.lora_down.weight"] = module.lora_A["default"].weight
                expected[f"{name}.lora_up.weight"] = module.lora_B["default"].weight
        for name, weight in expected.items():
            weight.data = trained[name].detach().clone()
        ours, loss = (
            method.loss(method.inputs(batch), 0),
            reference.loss(batch, prompts_with(batch, "".join(reference.words)), 5.0),
        )
        close(ours, loss)
        ours.mean().backward()
        loss.mean().backward()
        for name, weight in expected.items():
            close(trained[name].grad, weight.grad)
    finally:
        method.close()


def test_a_full_dreambooth_step_equals_diffusers_and_restores_the_base(base, folder, kind, batch, tmp_path):
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    method = DreamboothFull(base, "toy duck", rank=64, text=True, preset=PRESET)
    reference = Reference(folder, kind, {})
    for model in (reference.unet, *reference.texts.values()):
        model.requires_grad_(True)
    ours = method.loss(method.inputs(batch), 0)
    expected = reference.loss(batch, prompts_with(batch, f"{IDENTIFIER} toy duck"), 5.0)
    close(ours, expected)
    ours.mean().backward()
    expected.mean().backward()
    reference_modules = {"unet": reference.unet} | reference.texts
    for name, weight in method.trainable_parameters().items():
        model, path = name.split(".", 1)
        grad = reference_modules[model].get_parameter(path).grad
        if grad is None:
            assert weight.grad is None or not weight.grad.any()
        else:
            close(weight.grad, grad)
    # What it leaves: a model that diffusers loads with these very weights, and a LoRA of the change.
    optimizer = torch.optim.AdamW(method.param_groups(), lr=1e-3)
    optimizer.step()
    with torch.no_grad():
        trained = method.loss(method.inputs(batch), 0)
    figures, lora = method.finish(tmp_path), method.lora()
    reloaded = Reference(tmp_path / "model", kind, {})
    close(trained, reloaded.loss(batch, prompts_with(batch, f"{IDENTIFIER} toy duck"), 5.0).detach())
    method.close()
    assert all(torch.equal(before[name], value) for name, value in base.unet.state_dict().items())
    assert not any(p.requires_grad for model in base.modules().values() for p in model.parameters())
    assert 0.9 < figures["kept"] <= 1.0
    # At a rank above every layer's own the LoRA lacks only norms and biases.
    with torch.no_grad(), base.adapters.active([(lora, 1.0)]):
        noisy = base.schedule.add_noise(batch.latents, batch.noise, batch.t)
        condition = base.encode_captions([[p] for p in prompts_with(batch, f"{IDENTIFIER} toy duck")])
        near = base.predict(noisy, batch.t, condition)
    with torch.no_grad():
        states, added = reloaded.encode(prompts_with(batch, f"{IDENTIFIER} toy duck"))
        there = reloaded.unet(noisy, batch.t, states, added_cond_kwargs=added).sample
        disabled = base.predict(
            noisy, batch.t, base.encode_captions([[p] for p in prompts_with(batch, f"{IDENTIFIER} toy duck")])
        )
    assert (near - there).norm() < 0.35 * (disabled - there).norm()


def test_the_reported_share_of_the_change_is_that_of_the_lora(base, tmp_path):
    method = DreamboothFull(base, "toy duck", rank=2, text=False, preset=PRESET)
    generator, total = torch.Generator().manual_seed(0), 0.0
    try:
        for weight in method.trainable_parameters().values():
            change = 0.01 * torch.randn(weight.shape, generator=generator)
            weight.data += change
            total += float(change.double().square().sum())
        kept, layers = method.finish(tmp_path)["kept"], method.lora().layers
        weights = {layer: module.weight for layer, module in base.adapters.layers().items()}
        assert list(layers) == [layer for layer in weights if layer.startswith("lora_unet")]
        products = [
            (layer.up.reshape(len(layer.up), -1) @ layer.down.reshape(len(layer.down), -1)) * (layer.alpha / 2)
            for layer in layers.values()
        ]
        assert kept == pytest.approx(sum(float((product**2).sum()) for product in products) / total, abs=1e-3)
        assert all(layers[layer].up.shape[0] == weights[layer].shape[0] for layer in layers)
    finally:
        method.close()


def test_prior_losses_equal_a_numpy_version(base, folder, kind, batch, photos):
    """Both ways of preserving the class, weighted by noise level per sample, in numpy from the base's own answers."""
    method = DreamboothLora(base, "duck", LoraTrainingConfig(rank=2), PRESET, seed=0)
    try:
        for name, value in method.trainable_parameters().items():
            if name.endswith("lora_up.weight"):
                value.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
        class_dataset = PhotoDataset(base, photos, ("a photo of {}",), seed=5, flip=False, purpose="class sample")
        class_batch = class_dataset.batch(batch.indices)
        reference = Reference(folder, kind, {})
        with torch.no_grad():
            class_image_loss = loss_of(ClassImagePrior(base, "duck", class_dataset, 5.0), batch).numpy()
            predicted_loss = loss_of(PredictedPrior(base, "duck", 5.0, trains_text_encoder=False), batch).numpy()

            def prediction(batch, disabled):
                noisy = reference.scheduler.add_noise(batch.latents, batch.noise, batch.t)
                condition = base.encode_captions([[p] for p in prompts_with(batch, "duck")], batch.size_conditioning)
                if disabled:
                    with base.adapters.disabled():
                        return base.predict(noisy, batch.t, condition).numpy()
                return base.predict(noisy, batch.t, condition).numpy()

            predictions = {
                "subject": prediction(batch, False),
                "bare": prediction(batch, True),
                "class": prediction(class_batch, False),
            }
        abar = reference.scheduler.alphas_cumprod.numpy().astype(np.float64)

        def weights(t):
            snr = abar[t] / (1 - abar[t])
            return np.minimum(snr, 5.0) / (snr + (kind == "sd2 v"))

        expected = weights(batch.t.numpy()) * ((predictions["subject"] - predictions["bare"]) ** 2).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(predicted_loss, expected, rtol=1e-4)
        t, x, e = class_batch.t.numpy(), class_batch.latents.numpy(), class_batch.noise.numpy()
        a, s = np.sqrt(abar[t])[:, None, None, None], np.sqrt(1 - abar[t])[:, None, None, None]
        target = a * e - s * x if kind == "sd2 v" else e
        expected = weights(t) * ((predictions["class"] - target) ** 2).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(class_image_loss, expected, rtol=1e-4)
        assert not torch.equal(class_batch.noise, batch.noise)
    finally:
        method.close()


def test_pivotal_tuning_trains_embeddings_alone_before_the_lora(base, batch):
    method = PivotalTuning(base, "toy duck", LoraTrainingConfig(rank=2), PRESET, seed=0)
    try:
        trained = method.trainable_parameters()
        lora = [value for name, value in trained.items() if name.startswith("lora_")]
        embeddings = [value for name, value in trained.items() if name.startswith("rows.")]
        method.loss(method.inputs(batch), 1).mean().backward()
        assert all(value.grad is None for value in lora) and all(value.grad is not None for value in embeddings)
        assert method.learning_rates(1)[1] == PRESET.pivot_lr
        method.loss(method.inputs(batch), 2).mean().backward()
        assert all(value.grad is not None for value in lora)
        assert method.learning_rates(2) == [PRESET.lr, PRESET.embedding_lr]
    finally:
        method.close()


def test_embeddings_are_clipped_to_the_largest_norm_of_the_vocabulary(base):
    encoder = base.encoders["clip_l"]
    limit = max_embedding_norm(encoder)
    assert limit == pytest.approx(np.linalg.norm(encoder.token_embeddings.detach().numpy(), axis=1).max(), rel=1e-6)
    embeddings = torch.stack([torch.ones(8) * 0.01, torch.arange(8.0) * 100])
    clipped = clip_norm(embeddings, limit).numpy()
    np.testing.assert_allclose(clipped[0], embeddings[0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(
        clipped[1], embeddings[1].numpy() * limit / np.linalg.norm(embeddings[1].numpy()), rtol=1e-5
    )


def test_the_extracted_lora_is_the_best_approximation_of_its_rank():
    change = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    layer = extract_lora_layer(change, 2)
    ours = (layer.up.reshape(6, 2) @ layer.down.reshape(2, -1)) * layer.alpha / 2
    u, s, v = np.linalg.svd(change.numpy().reshape(6, -1), full_matrices=False)
    np.testing.assert_allclose(ours, (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (24, 24)])
@pytest.mark.parametrize("decay", [0.0, 1.0], ids=["flat", "falling"])
def test_the_largest_singular_vectors_equal_those_of_the_full_svd(shape, decay):
    """As it is found on a card, where the full decomposition of a large model takes minutes."""
    rng = np.random.default_rng(0)
    left, s, right = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    s = s * np.arange(1, len(s) + 1) ** -decay * 1e-4  # as small as the changes of a training
    matrix = ((left * s) @ right).astype(np.float32)
    u, values, v = (part.numpy() for part in largest_singular_vectors(torch.from_numpy(matrix), 6))
    np.testing.assert_allclose(values, s[:6], rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((u * values) @ v, (left[:, :6] * s[:6]) @ right[:6], atol=1e-4 * s[0])


def test_an_unchanged_layer_has_zero_singular_values():
    u, values, v = largest_singular_vectors(torch.zeros(4, 9), 2)
    assert not values.any() and torch.isfinite(u).all() and not v.any()


def test_min_snr_weights_vanish_for_pure_noise(tiny):
    weights = min_snr(tiny.schedule, torch.tensor([0, 500, 999]), 5.0)
    assert torch.isfinite(weights).all() and (weights >= 0).all() and weights[2] < 1e-3


@pytest.mark.parametrize(
    ("words", "count"), [("duck", 3), ("toy duck", 4), ("a small yellow toy duck", 2), ("toy duck", 2)]
)
def test_embeddings_are_initialized_from_the_tokens_of_the_words(tiny, words, count):
    encoder = tiny.encoders["clip_l"]
    table = encoder.token_embeddings[encoder.tokenizer(words, add_special_tokens=False).input_ids].detach().numpy()
    embeddings = TokenEmbedding(tiny, words, count).raw["clip_l"].detach().numpy()
    if len(table) >= count:
        expected = np.stack([part.mean(0) for part in np.array_split(table, count)])
    else:
        expected = np.stack([table[i * len(table) // count] for i in range(count)])
    np.testing.assert_allclose(embeddings, expected, rtol=1e-6)


def test_blank_initial_words_are_refused(tiny):
    with pytest.raises(UserError, match="has no word"):
        TokenEmbedding(tiny, "  ", 2)


@pytest.mark.parametrize("text", [False, True])
def test_a_saved_concept_predicts_the_same_in_diffusers_as_in_training(base, folder, kind, batch, text):
    """load_textual_inversion and load_lora_weights of what was written, against the prediction at training time."""
    from diffusers import DiffusionPipeline
    from safetensors.torch import load

    method = DreamboothLora(base, "toy duck", LoraTrainingConfig(rank=2, text=text), PRESET, seed=0)
    try:
        rng = torch.Generator().manual_seed(0)
        for value in method.trainable_parameters().values():
            value.data += 0.03 * torch.randn(value.shape, generator=rng)
        noisy = base.schedule.add_noise(batch.latents, batch.noise, batch.t)
        with torch.no_grad():
            pieces = [["a photo of ", method.embeddings, " on the beach"]] * len(noisy)
            expected = base.predict(noisy, batch.t, base.encode_captions(pieces))
            embeddings = {key: value.clone() for key, value in method.embeddings.items()}
        card = Card(base=base.kind, class_noun="toy duck")
        concept = Concept(
            Token("me", "duck"), card, {key: value.numpy() for key, value in embeddings.items()}, method.lora()
        )
    finally:
        method.close()
    tensors = load(concept_to_bytes(concept))
    pipe = DiffusionPipeline.from_pretrained(folder)
    bundled = [key for key in tensors if key.startswith("bundle_emb.")]
    assert len(bundled) == len(embeddings)
    if kind == "sdxl":
        for suffix, key in (("", "clip_l"), ("_2", "clip_g")):
            pipe.load_textual_inversion(
                {"<duck>": next(tensors[b] for b in bundled if b.endswith(key))},
                text_encoder=getattr(pipe, f"text_encoder{suffix}"),
                tokenizer=getattr(pipe, f"tokenizer{suffix}"),
            )
    else:
        pipe.load_textual_inversion({"<duck>": tensors[bundled[0]]})
    pipe.load_lora_weights({key: value for key, value in tensors.items() if key not in bundled})
    with torch.no_grad():
        states, _, *pooled = pipe.encode_prompt(
            "a photo of <duck> on the beach",
            device="cpu",
            num_images_per_prompt=len(noisy),
            do_classifier_free_guidance=False,
        )
        added = None
        if kind == "sdxl":
            ids = torch.tensor([[64, 64, 0, 0, 64, 64]] * len(noisy), dtype=torch.float32)
            added = {"text_embeds": pooled[0], "time_ids": ids}
        loaded = pipe.unet(noisy, batch.t, states, added_cond_kwargs=added).sample
    torch.testing.assert_close(loaded, expected, atol=1e-4, rtol=1e-4)


def test_the_crop_of_a_flipped_photo_is_measured_from_its_other_side():
    pixels = np.random.default_rng(0).integers(0, 255, (10, 16, 3), np.uint8)
    photo = Photo("a", pixels, "", crop=(1, 0), original_size=(100, 160))
    (plain, size_conditioning), (mirrored, mirrored_conditioning) = _crop_and_flip(photo, flip=True)
    (left, top), (mirrored_left, _) = size_conditioning.crop[::-1], mirrored_conditioning.crop[::-1]
    np.testing.assert_array_equal(plain, pixels[top : top + 10, left : left + 10])
    np.testing.assert_array_equal(mirrored, pixels[:, ::-1][:, mirrored_left : mirrored_left + 10])
    assert size_conditioning.original == mirrored_conditioning.original == (100, 160) and size_conditioning.target == (
        10,
        10,
    )
