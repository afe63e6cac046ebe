"""Styles with guidance of their own: which words are predicted, and the predictions against diffusers' own models."""

import importlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.generation.style_guidance import split_styles
from sdpersonal.generation.style_paths import STYLE_SCALE, StylePaths
from sdpersonal.generation.style_transfer import MIN_CONTRAST, TEXTURE, apply_style, match_statistics
from sdpersonal.models import load_base
from sdpersonal.prompts import parse
from support.mixing import DensePipeline, Shelf, resolved, shelf_of
from support.narrow import save_narrow

NEGATIVE, SIDE = "snow", 64
denoise = importlib.import_module("sdpersonal.generation.denoise")  # the package has a function of that name


# --- words ------------------------------------------------------------------------------------------------------------


SPLITS = [  # prompt, without its styles, with each of them
    ("a photo of <fox> in the style of <ink>", "a photo of <fox>", ["a photo of <fox> in the style of <ink>"]),
    ("<fox>, <ink>", "<fox>", ["<fox>, <ink>"]),
    ("<ink> style, <fox>", "<fox>", ["<ink> style, <fox>"]),
    ("<ink>. A photo of <fox>", "A photo of <fox>", ["<ink>. A photo of <fox>"]),
    ("a <fox> drawn in <ink> style, at night", "a <fox>, at night", ["a <fox> drawn in <ink> style, at night"]),
    ("a <bob> as an <ink> print", "a <bob>", ["a <bob> as an <ink> print"]),
    ("a <ink> <fox> by the sea", "a <fox> by the sea", ["a <ink> <fox> by the sea"]),
    ("a <fox> by <ink>, by the sea", "a <fox>, by the sea", ["a <fox> by <ink>, by the sea"]),
    ("(a <fox> in the style of <ink>:1.2)", "(a <fox>:1.2)", ["(a <fox> in the style of <ink>:1.2)"]),
    ("<fox>, (by <ink>:1.3), at night", "<fox>, at night", ["<fox>, (by <ink>:1.3), at night"]),
    ("<fox> BREAK by <ink>", "<fox> BREAK", ["<fox> BREAK by <ink>"]),
    ("<fox> <ink:0.5+wash:0.5>", "<fox>", ["<fox> <ink:0.5+wash:0.5>"]),
    ("<fox> by <ink> and <wash>", "<fox>", ["<fox> by <ink>", "<fox> by <wash>"]),
    ("<fox> by <ink>, by <wash>, at sea", "<fox>, at sea", ["<fox> by <ink>, at sea", "<fox>, by <wash>, at sea"]),
    ("<fox> as <ink>, <wash> and <ink:0.5>", "<fox>", ["<fox> as <ink>, <ink:0.5>", "<fox> as <wash>"]),
    ("<ink> of <fox>, <ink>", "of <fox>", ["<ink> of <fox>, <ink>"]),
    ("<fox> and <cat> by <ink>", "<fox> and <cat>", ["<fox> and <cat> by <ink>"]),
    ("a tree by <ink> and <wash>", "a tree", ["a tree by <ink>", "a tree by <wash>"]),
    ("a tree by <ink:guidance=3>", "a tree", ["a tree by <ink:guidance=3>"]),  # as the user wishes
    ("<fox> and <cat:guidance=3>", "<fox>", ["<fox> and <cat:guidance=3>"]),
    ("<ink:guidance=3>", "", ["<ink:guidance=3>"]),
]
WHOLE = [
    "a tree",
    "<fox>",
    "a tree by <ink>",
    "<ink> and <ink:0.5>",
    "<fox> and <cat>",
    "<fox+ink>",
    "<fox> <ink:guidance=0>",
]


@pytest.mark.parametrize(("text", "base", "styles"), SPLITS, ids=[text for text, *_ in SPLITS])
def test_a_prompt_is_split_into_base_and_style_prompts(text, base, styles):
    own, split = split_styles(resolved(text))
    assert own.prompt.text == base and [style.prompt.prompt.text for style in split] == styles
    for part in (own, *(style.prompt for style in split)):
        assert parse(part.prompt.text) == replace(parse(part.prompt.text), text=part.prompt.text)
        assert part.concepts.keys() == {mention.token for mention in part.prompt.mentions}
    plain, explicit = split_styles(resolved(text), automatic=False)
    if "guidance" not in text:
        assert plain.prompt == parse(text) and not explicit
        assert {style.scale for style in split} == {STYLE_SCALE}
    else:
        assert [style.scale for style in explicit] == [3.0]


@pytest.mark.parametrize("text", WHOLE)
def test_prompts_without_a_guided_style_are_not_split(text):
    prompt = resolved(text)
    assert split_styles(prompt) == (prompt, ())


def test_a_composition_subject_is_not_split_off_as_a_style():
    own, styles = split_styles(resolved("<fox:guidance=3> by <ink>"), subject=0)
    assert own.prompt.text == "<fox:guidance=3>" and [style.reference.parts[0].token.name for style in styles] == [
        "ink"
    ]


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sd1", "sd2 v", "sdxl"])
def models(request, tmp_path_factory):
    """(base, the same in diffusers, concepts). LoRAs of SD 1 change its text encoder too."""
    folder = save_narrow(request.param, tmp_path_factory.mktemp("guidance") / "model")
    base = load_base(str(folder), "cpu")
    return base, DensePipeline(folder, base), shelf_of(base, text_encoder=request.param == "sd1")


@dataclass
class Step:
    """What was predicted at a timestep: the images and x_0 of each style; offset: of the image after the last step."""

    latents: torch.Tensor
    t: torch.Tensor
    guided: torch.Tensor
    styled: list[torch.Tensor]
    offset: torch.Tensor | None = None


@pytest.fixture
def steps(models, monkeypatch):
    """Generate, and return the steps."""
    base, _, shelf = models

    def steps(prompt, shelf=shelf, **fields):
        recorded, real, apply = [], denoise.predict_with_guidance, StylePaths.apply

        def predict(model, model_input, t, *rest):
            guided, styled = real(model, model_input, t, *rest)
            recorded.append(Step(model_input, t, guided, styled))
            return guided, styled

        def record_offset(paths, latents):
            result = apply(paths, latents)
            recorded[-1].offset = result - latents
            return result

        with monkeypatch.context() as patched:
            patched.setattr(denoise, "predict_with_guidance", predict)
            patched.setattr(StylePaths, "apply", record_offset)
            common = {"negative": NEGATIVE, "num_images": 1, "steps": 2, "guidance": 4, "scheduler": "DDIM"}
            request = GenerateRequest(prompt=prompt, **(common | {"size": f"{SIDE}x{SIDE}"} | fields))
            list(Generator(base, shelf).generate(request))
        return recorded

    return steps


class Reference:
    """The formula by diffusers' own models, one prediction for each prompt, in fp64, for the images of one picture.

    g, rescale: guidance scale and its rescaling; rows: of the picture in the batch.
    """

    def __init__(self, models, g=4.0, rescale=0.0, rows=(0,)):
        _, self.dense, self.shelf = models
        self.g, self.rescale, self.rows = g, rescale, list(rows)
        self.scales, self.targets, self.offsets, self.ended = {}, {}, {}, 0.0

    def check(self, step, words, styles, is_due):
        """Compare one step. words: (text, LoRAs by name) of each row without styles; styles: (scale, (text, LoRAs) of
        each row), by the style's name."""
        for name in self.offsets.keys() - styles.keys():
            self.ended = self.ended + self.share(name) * self.offsets.pop(name)
        self.scales = {name: scale for name, (scale, _) in styles.items()}
        alpha = float(self.dense.scheduler.alphas_cumprod[int(step.t)])
        signal, sigma = alpha**0.5, (1 - alpha) ** 0.5
        is_epsilon = self.dense.scheduler.config.prediction_type == "epsilon"

        def predict_x0(latents, prompts, g):
            predicted = self.guided(latents, prompts, step.t, g)
            return (latents - sigma * predicted) / signal if is_epsilon else signal * latents - sigma * predicted

        latents = np.float64(step.latents[self.rows])
        own = latents + signal * self.ended
        x0 = predict_x0(own, words, self.g)
        unstyled = x0 - self.ended
        self.compare(
            step.guided, (latents - signal * unstyled) / sigma if is_epsilon else (signal * latents - unstyled) / sigma
        )
        assert len(step.styled) == is_due * len(styles)
        for i, (name, (_, texts)) in enumerate(styles.items()):
            if is_due:
                shifted = own + signal * self.offsets.get(name, 0.0)
                self.targets[name] = predict_x0(shifted, texts, 3.0 if self.g != 1 else 1.0)
                self.compare(signal * step.styled[i], signal * self.targets[name])
            self.offsets[name] = with_style(x0, self.targets[name]) - x0
        if step.offset is not None:
            total = sum(self.share(name) * offset for name, offset in self.offsets.items()) + self.ended
            self.compare(signal * step.offset, signal * total)

    def compare(self, ours, expected):
        np.testing.assert_allclose(np.float64(ours[self.rows]), expected, atol=1e-4, rtol=1e-4)

    def share(self, name):
        return self.scales[name] / 2 / len(self.scales)

    def guided(self, latents, prompts, t, g):
        """Classifier-free guidance of each row, (rows, C, h, w)."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

        rows = []
        for row, (text, mix) in zip(torch.from_numpy(latents).float().split(1), prompts, strict=True):
            loras = [(self.shelf[name].lora, strength) for name, strength in mix.items()]
            positive = self.dense.predict(text, loras, row, t, SIDE)
            negative = self.dense.predict(NEGATIVE, loras, row, t, SIDE) if g != 1 else positive
            guided = negative + g * (positive - negative)
            rows.append(rescale_noise_cfg(guided, positive, self.rescale) if self.rescale else guided)
        return torch.cat(rows).double().numpy()


def with_style(x0, styled):
    """The colours of the styled images and a part of their texture on x_0, both (rows, C, h, w), of one picture."""
    height, width = x0.shape[2:]
    side_by_side = [np.concatenate(list(images), axis=2) for images in (x0, styled)]  # statistics know no places
    coloured = np.stack(np.split(by_hand(*side_by_side), len(x0), axis=2))
    difference = styled - coloured
    padded = np.pad(difference, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    mean = sum(padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
    return coloured + TEXTURE * (difference - mean)


def by_hand(image, target):
    """Optimal transport between normal distributions, in the other of its two forms: S (S C S)^-1/2 S, S of the
    target."""

    def power(matrix, exponent):
        values, vectors = np.linalg.eigh(matrix)
        return vectors @ np.diag(values**exponent) @ vectors.T

    def statistics(z):
        flat = z.reshape(len(z), -1)
        return flat.mean(1), np.cov(flat, bias=True) + 1e-3 * np.eye(len(z))

    (mean, covariance), (target_mean, target_covariance) = statistics(image), statistics(target)
    if np.trace(target_covariance) < MIN_CONTRAST * np.trace(covariance):
        target_covariance *= MIN_CONTRAST * np.trace(covariance) / np.trace(target_covariance)
    root = power(target_covariance, 0.5)
    transport = root @ power(root @ covariance @ root, -0.5) @ root
    flat = transport @ (image.reshape(len(image), -1) - mean[:, None]) + target_mean[:, None]
    return flat.reshape(image.shape)


def test_match_statistics_transfers_mean_and_covariance():
    """Channels get the other's statistics, and an image that has them already is not changed."""
    rng = np.random.default_rng(0)
    image, target = rng.normal(size=(2, 4, 16, 16)), rng.normal(size=(2, 4, 16, 16)) * 3 + 1
    image, target = (torch.from_numpy(x.cumsum(axis=2)) for x in (image, target))
    mapped = match_statistics(image, target)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], by_hand(image[i].numpy(), target[i].numpy()), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(np.cov(mapped[i].flatten(1)), np.cov(target[i].flatten(1)), rtol=0.02, atol=0.02)
    torch.testing.assert_close(apply_style(image, image), image)


def test_a_pale_style_leaves_an_image_half_of_its_variance():
    rng = np.random.default_rng(1)
    image, pale = (torch.from_numpy(rng.normal(size=(1, 4, 16, 16)) * scale) for scale in (1.0, 0.1))
    mapped = match_statistics(image, pale + 2)[0].flatten(1)
    torch.testing.assert_close(mapped.mean(1), (pale + 2)[0].flatten(1).mean(1))
    variance = np.cov(image[0].flatten(1), bias=True).trace()
    assert np.cov(mapped, bias=True).trace() == pytest.approx(variance / 2, rel=0.02)


FOX, BOTH = ("a fox at sea", {"fox": 0.7}), {"fox": 0.7, "ink": 1.0}


def ink(text, scale=STYLE_SCALE, strength=1.0):
    """A style of one image: its own LoRA only."""
    return {"ink": (scale, [(text, {"ink": strength})])}


def test_a_style_is_predicted_at_its_own_latents(models, steps):
    """In the second of three steps its prediction is held."""
    made = steps("a <fox:0.7> at sea in the style of <ink>", steps=3)
    reference = Reference(models)
    for step, is_due in zip(made, (True, False, True), strict=True):
        reference.check(step, [FOX], ink("a fox at sea in the style of ink"), is_due)
    assert made[-1].offset.abs().max() > 0.1


def test_without_composition_one_prediction_mixes_the_style(models, steps):
    made = steps("a <fox:0.7> at sea in the style of <ink>", compose=False, steps=1)
    Reference(models).check(made[0], [("a fox at sea in the style of ink", BOTH)], {}, False)


def test_two_styles_use_their_own_strengths_and_scales(models, steps):
    text = "a <fox:0.7> at sea by <ink:0.5:guidance=3> and <wash:-0.4:guidance=1>"
    made = steps(text, compose=False, steps=1)
    styles = ink("a fox at sea by ink", 3, 0.5) | {"wash": (1, [("a fox at sea by wash", {"wash": -0.4})])}
    reference = Reference(models)
    for step in made:
        reference.check(step, [FOX], styles, True)


@pytest.mark.parametrize("window", ["0-0.5", "0.5-1"])
def test_the_style_offset_remains_after_its_window_ends(models, steps, window):
    made = steps(f"a <fox:0.7> at sea, <ink:guidance=3@{window}>")
    reference = Reference(models)
    for i, step in enumerate(made):
        is_active = (i == 0) == (window == "0-0.5")
        reference.check(step, [FOX], ink("a fox at sea, ink", 3) if is_active else {}, is_active)


def test_guidance_rescale_applies_to_base_and_style_predictions(models, steps):
    made, reference = steps("a <fox:0.7> at sea, <ink:guidance=3>", rescale=0.6), Reference(models, rescale=0.6)
    for step in made:
        reference.check(step, [FOX], ink("a fox at sea, ink", 3), True)


def test_a_style_has_no_negative_prediction_at_guidance_1(models, steps):
    """With a LoRA for few steps, which all prompts have."""
    fast = {"fast": "<me/bob>", "guidance": 1}
    made, reference = steps("a <fox:0.7> at sea, <ink:guidance=3>", **fast), Reference(models, g=1.0)
    style = {"ink": (3, [("a fox at sea, ink", {"ink": 1.0, "bob": 1.0})])}
    for step in made:
        reference.check(step, [("a fox at sea", {"fox": 0.7, "bob": 1.0})], style, True)


def test_a_single_style_with_explicit_guidance_is_guided(models, steps):
    made = steps("a tree, <ink:guidance=3>", steps=1)
    Reference(models).check(made[0], [("a tree", {})], ink("a tree, ink", 3), True)


def test_two_subjects_with_a_style_match_the_reference(models, steps):
    """Each subject at the model's own size, with its own LoRA, whatever the size of the image; one map for both."""
    made = steps("a <fox> and a <cat> at sea, <ink:guidance=3>", num_images=2, size="96x64", steps=1)
    words = [("a fox at sea", {"fox": 1.0}), ("a cat at sea", {"cat": 1.0})]
    style = {"ink": (3, [("a fox at sea, ink", {"ink": 1.0}), ("a cat at sea, ink", {"ink": 1.0})])}
    for rows in ((0, 2), (1, 3)):
        Reference(models, rows=rows).check(made[0], words, style, True)
    assert made[0].latents.shape == (4, 4, SIDE // 8, SIDE // 8)


def test_the_style_does_not_change_unmasked_areas(models, steps, tmp_path):
    image, mask = np.full((SIDE, SIDE, 3), 90, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    mask[: SIDE // 2] = 255
    for name, pixels in (("image", image), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    init = {"init_image": tmp_path / "image.png", "mask": tmp_path / "mask.png", "strength": 1.0}
    *_, last = steps("a <fox> by <ink>", **init)
    upper, lower = last.offset.chunk(2, dim=2)
    assert upper.abs().max() > 0.1 and not lower.any()


@pytest.fixture(scope="module")
def words(models):
    """Styles without a LoRA, so that several prompts could be predicted in one batch."""
    base, _, shelf = models
    return Shelf({name: replace(shelf[name], lora=None, vectors=_some_vectors(base, name)) for name in ("ink", "wash")})


def test_the_order_of_styles_does_not_matter(words, steps):
    first, second = (
        steps(f"a tree by <{a}:guidance=1> by <{b}:guidance=1>", words) for a, b in (["ink", "wash"], ["wash", "ink"])
    )
    torch.testing.assert_close(first[-1].offset, second[-1].offset, atol=1e-4, rtol=1e-4)


def test_each_image_of_a_batch_uses_its_own_style_scales(words, steps):
    prompts = [
        f"a tree by <ink:guidance={a}@{b}> by <wash:guidance={c}@{d}>"
        for a, b, c, d in ((1, "0-0.5", 3, "0.5-1"), (1, "0.5-1", 3, "0-0.5"))
    ]
    together = steps("{" + "|".join(prompts) + "}", words, all_combinations=True)
    alone = [step for prompt in prompts for step in steps(prompt, words)]
    assert len(together) == len(alone)
    assert all(torch.equal(a.guided, b.guided) for a, b in zip(together, alone, strict=True))


def _some_vectors(base, name):
    rng = np.random.default_rng(len(name))
    return {key: rng.normal(size=(2, width)).astype(np.float32) * 0.05 for key, width in base.widths.items()}
