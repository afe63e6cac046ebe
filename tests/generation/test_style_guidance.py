"""Styles with guidance of their own: which words are predicted, and the predictions against diffusers' own models."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.generation.style_guidance import STYLE_SCALE, split_styles
from sdpersonal.generation.style_transfer import apply_style, match_statistics
from sdpersonal.models import load_base
from sdpersonal.prompts import parse
from support.mixing import DensePipeline, Shelf, resolved, shelf_of
from support.narrow import save_narrow

NEGATIVE, SIDE, STEPS = "snow", 64, 2
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
def test_a_prompt_is_split_into_what_is_guided_by_itself(text, base, styles):
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
def test_other_prompts_are_predicted_whole(text):
    prompt = resolved(text)
    assert split_styles(prompt) == (prompt, ())


def test_a_subject_of_a_composition_is_not_guided_by_itself():
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


@pytest.fixture
def steps(models, monkeypatch):
    """Generate, and return (UNet's input, timestep, guided prediction) of every step."""
    base, _, shelf = models

    def steps(prompt, shelf=shelf, **fields):
        recorded, real = [], denoise.predict_with_guidance

        def predict(model, model_input, t, *rest):
            guided = real(model, model_input, t, *rest)
            recorded.append((model_input, t, guided))
            return guided

        with monkeypatch.context() as patched:
            patched.setattr(denoise, "predict_with_guidance", predict)
            common = {"negative": NEGATIVE, "num_images": 1, "steps": STEPS, "guidance": 4, "scheduler": "DDIM"}
            request = GenerateRequest(prompt=prompt, **(common | {"size": f"{SIDE}x{SIDE}"} | fields))
            list(Generator(base, shelf).generate(request))
        return recorded

    return steps


def expected(models, step, whole, styles=(), g=4.0, rescale=0.0, row=0):
    """The formula with one prediction for each prompt. whole, styles: (words, LoRAs by name); a style's scale last."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    _, dense, shelf = models
    latents, t = step[0][row : row + 1], step[1]

    def predict(text, mix):
        loras = [(shelf[name].lora, strength) for name, strength in mix.items()]
        return dense.predict(text, loras, latents, t, SIDE)

    subject = predict(*whole)
    styled = [(scale, predict(text, mix) - subject) for text, mix, scale in styles]
    negative = predict(NEGATIVE, whole[1]) if g != 1 else subject
    guided = negative + g * (subject - negative)
    plain = subject + sum(style for _, style in styled)
    if styled:
        guided = with_style(dense, latents, t, guided, guided + sum(scale * style for scale, style in styled))
    return rescale_noise_cfg(guided, plain, rescale) if rescale else guided


def with_style(dense, latents, t, guided, styled):
    """The styled x_0's colours and half of its texture on the guided x_0, as a prediction, with diffusers' schedule."""
    schedule = dense.scheduler
    alpha = schedule.alphas_cumprod[int(t)]
    signal, sigma = float(alpha.sqrt()), float((1 - alpha).sqrt())
    x, plain, style = (np.float64(tensor[0]) for tensor in (latents, guided, styled))
    if schedule.config.prediction_type == "epsilon":
        x0, back = lambda p: (x - sigma * p) / signal, lambda z: (x - signal * z) / sigma
    else:
        x0, back = lambda p: signal * x - sigma * p, lambda z: (signal * x - z) / sigma
    target = x0(style)
    coloured = by_hand(x0(plain), target)
    difference = target - coloured
    padded = np.pad(difference, ((0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = difference.shape[1:]
    mean = sum(padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
    return torch.from_numpy(back(coloured + 0.5 * (difference - mean)))[None].float()


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
    root = power(target_covariance, 0.5)
    transport = root @ power(root @ covariance @ root, -0.5) @ root
    flat = transport @ (image.reshape(len(image), -1) - mean[:, None]) + target_mean[:, None]
    return flat.reshape(image.shape)


def test_colours_match_and_shapes_stay():
    """Channels get the other's statistics, and an image that has them already is not changed."""
    rng = np.random.default_rng(0)
    image, target = rng.normal(size=(2, 4, 16, 16)), rng.normal(size=(2, 4, 16, 16)) * 3 + 1
    image, target = (torch.from_numpy(x.cumsum(axis=2)) for x in (image, target))
    mapped = match_statistics(image, target)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], by_hand(image[i].numpy(), target[i].numpy()), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(np.cov(mapped[i].flatten(1)), np.cov(target[i].flatten(1)), rtol=0.02, atol=0.02)
    torch.testing.assert_close(apply_style(image, image), image)


def check(models, recorded, progress_to_parts, rows=1, **options):
    assert len(recorded) == STEPS
    for i, step in enumerate(recorded):
        progress = (i + 0.5) / STEPS
        for row in range(rows):
            ours = step[2][row : row + 1]
            theirs = expected(models, step, *progress_to_parts(progress, row), row=row, **options)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


FOX, BOTH = ("a fox at sea", {"fox": 0.7}), {"fox": 0.7, "ink": 1.0}


def test_a_style_is_guided_by_itself(models, steps):
    made = steps("a <fox:0.7> at sea in the style of <ink>")
    style = "a fox at sea in the style of ink", BOTH
    check(models, made, lambda p, row: (FOX, [(*style, STYLE_SCALE)]))
    plain = steps("a <fox:0.7> at sea in the style of <ink>", compose=False)
    check(models, plain, lambda p, row: (style, []))
    assert (made[0][2] - plain[0][2]).abs().max() > 0.01


def test_two_styles_at_strengths_and_scales_of_their_own(models, steps):
    made = steps("a <fox:0.7> at sea by <ink:0.5:guidance=3> and <wash:-0.4:guidance=1>", compose=False)
    ink = "a fox at sea by ink", {"fox": 0.7, "ink": 0.5}
    wash = "a fox at sea by wash", {"fox": 0.7, "wash": -0.4}
    check(models, made, lambda p, row: (FOX, [(*ink, 3), (*wash, 1)]))


def test_a_window_ends_a_styles_guidance(models, steps):
    made = steps("a <fox:0.7> at sea, <ink:guidance=3@0-0.5>")
    style = "a fox at sea, ink", BOTH
    check(models, made, lambda p, row: (FOX, [(*style, 3)] if p < 0.5 else []))


@pytest.mark.parametrize("options", [{"g": 1.0}, {"rescale": 0.6}])
def test_without_negative_prompts_and_with_contrast_taken_back(models, steps, options):
    made = steps("a <fox:0.7> at sea, <ink:guidance=3>", guidance=options.get("g", 4.0), rescale=options.get("rescale"))
    check(models, made, lambda p, row: (FOX, [("a fox at sea, ink", BOTH, 3)]), **options)


def test_a_style_alone_is_guided_if_its_prompt_says_so(models, steps):
    made = steps("a tree, <ink:guidance=3>")
    check(models, made, lambda p, row: (("a tree", {}), [("a tree, ink", {"ink": 1.0}, 3)]))


def test_two_subjects_and_a_style_of_two_images(models, steps):
    """Each subject at the model's own size, with its own LoRA, whatever the size of the image."""
    made = steps("a <fox> and a <cat> at sea, <ink:guidance=3>", num_images=2, size="96x64")
    names = ("fox", "fox", "cat", "cat")

    def parts(progress, row):
        text, mix = f"a {names[row]} at sea", {names[row]: 1.0}
        return (text, mix), [(f"{text}, ink", mix | {"ink": 1.0}, 3)]

    check(models, made, parts, rows=4)
    assert made[0][0].shape[-2:] == (SIDE // 8, SIDE // 8)


def test_scales_of_a_batch_are_those_of_each_image(models, steps):
    """Words without a LoRA, so that both prompts could be predicted in one batch."""
    base, _, shelf = models
    names = ("ink", "wash")
    words = Shelf({name: replace(shelf[name], lora=None, vectors=_some_vectors(base, name)) for name in names})
    prompts = [
        f"a tree by <ink:guidance={a}@{b}> by <wash:guidance={c}@{d}>"
        for a, b, c, d in ((1, "0-0.5", 3, "0.5-1"), (1, "0.5-1", 3, "0-0.5"))
    ]
    together = steps("{" + "|".join(prompts) + "}", words, all_combinations=True)
    alone = [step for prompt in prompts for step in steps(prompt, words)]
    assert len(together) == len(alone)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(together, alone, strict=True))


def _some_vectors(base, name):
    rng = np.random.default_rng(len(name))
    return {key: rng.normal(size=(2, width)).astype(np.float32) * 0.05 for key, width in base.widths.items()}
