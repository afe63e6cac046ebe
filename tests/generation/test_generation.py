"""Drawing: reproducible, without a trace, each picture by itself, and kind about what cannot be drawn. What diffusers
makes of the same is in test_diffusers_equality.py."""

import hashlib
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.concepts.card import Card
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import Interrupted, UserError
from sdpersonal.generation import Generator, SamplingConfig, StepConditioning, denoise, noise_from_seed
from sdpersonal.generation.denoise import slerp
from sdpersonal.generation.prompt_resolution import PromptResolver, embeddings_at_strength, resolve_concepts
from sdpersonal.image_metadata import read_recipe
from sdpersonal.models import Segment
from sdpersonal.models.lora import to_lora
from sdpersonal.prompts import Token

STEPS, SIZE = 3, "64x64"


def random_lora(base, seed, rank=3):
    rng = np.random.default_rng(seed)
    layers = {}
    for name in base.adapters.layer_names("attention"):
        out, into = base.adapters._adapters[name].layer.weight.shape
        down, up = rng.normal(size=(rank, into)) / into**0.5, rng.normal(size=(out, rank)) / rank**0.5
        layers[name] = LoraLayer(down.astype(np.float32), up.astype(np.float32), float(rank) / 2)
    return Lora(layers)


def random_concept(base, token, seed, rows=2, lora=True):
    width = base.widths["clip_l"]
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32) * 0.05
    return Concept(
        Token.parse(token), Card(base="tiny"), {"clip_l": vectors}, random_lora(base, seed) if lora else None
    )


class Shelf(dict):
    def get(self, token):
        return self[token.name]


@pytest.fixture(scope="module")
def shelf(tiny):
    return Shelf(
        duck=random_concept(tiny, "<me/duck>", 1),
        ink=random_concept(tiny, "<me/ink>", 2, rows=3),
        word=random_concept(tiny, "<me/word>", 3, lora=False),
    )


def pictures(base, concepts, prompt, **fields):
    request = GenerateRequest(**({"prompt": prompt, "num_images": 2, "steps": STEPS, "size": SIZE} | fields))
    return [np.asarray(image.image) for image in Generator(base, concepts).generate(request)]


def weights(base):
    digest = hashlib.sha256()
    for name, module in sorted(base.modules().items()):
        for key, value in module.state_dict().items():
            digest.update(f"{name}.{key}".encode() + value.float().numpy().tobytes())
    return digest.hexdigest()


def test_a_failed_request_leaves_the_model_unchanged(tiny, shelf):
    before = pictures(tiny, shelf, "a cat <duck:0.7>"), weights(tiny)

    def fail_in_the_middle(done, total):
        if done == 2:
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        request = GenerateRequest(prompt="<ink> and <duck>", steps=STEPS, size=SIZE)
        list(Generator(tiny, shelf).generate(request, progress=fail_in_the_middle))
    after = pictures(tiny, shelf, "a cat <duck:0.7>"), weights(tiny)
    assert before[1] == after[1]
    assert all(np.array_equal(a, b) for a, b in zip(before[0], after[0], strict=True))


def test_concurrent_requests_generate_the_same_images_as_alone(tiny, shelf):
    prompts = ["a cat in the style of <ink>", "<duck> on grass"]
    alone = [pictures(tiny, shelf, prompt) for prompt in prompts]
    together = [None, None]

    def work(i):
        together[i] = pictures(tiny, shelf, prompts[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(
        np.array_equal(a, b) for item, two in zip(alone, together, strict=True) for a, b in zip(item, two, strict=True)
    )


def test_image_i_depends_only_on_seed_plus_i(tiny, shelf):
    five = pictures(tiny, shelf, "<duck>", num_images=5, seed=10)
    for i in (0, 3, 4):
        (item,) = pictures(tiny, shelf, "<duck>", num_images=1, seed=10 + i)
        assert np.abs(item.astype(int) - five[i]).max() <= 1  # kernels round differently in another batch


def test_the_strength_scales_the_effect_of_a_concept(tiny, shelf):
    (bare,), (off,), (half,), (full,) = (
        pictures(tiny, shelf, f"a cat <duck:{strength}>" if strength is not None else "a cat ", num_images=1)
        for strength in (None, 0, 0.15, 0.3)
    )
    distance = [np.abs(item.astype(int) - full).mean() for item in (off, half, full)]
    assert distance[0] > distance[1] > distance[2] == 0
    assert not np.array_equal(bare, full)


def test_a_lora_in_the_negative_prompt_is_not_loaded(tiny, shelf):
    rows_only = Shelf(duck=Concept(shelf["duck"].token, shelf["duck"].card, shelf["duck"].vectors))
    (ours,), (reference,) = (pictures(tiny, s, "a cat", num_images=1, negative="<duck>") for s in (shelf, rows_only))
    assert np.array_equal(ours, reference)


def test_the_recipe_reproduces_the_image(tiny, shelf):
    request = GenerateRequest(prompt="a «photo»\nof <duck:0.5>", num_images=1, seed=7, steps=STEPS, size=SIZE)
    (image,) = Generator(tiny, shelf).generate(request)
    with Image.open(io.BytesIO(image.to_png())) as opened:
        assert np.array_equal(np.asarray(opened), np.asarray(image.image))
        recipe = read_recipe(image.to_png())
    assert recipe == image.recipe
    assert (recipe.prompt, recipe.template, recipe.seed, recipe.size) == (request.prompt, "", 7, SIZE)
    assert [item.model_dump() for item in recipe.concepts] == [
        {
            "token": "<me/duck>",
            "sha256": shelf["duck"].identity,
            "strength": 0.5,
            "vectors": True,
            "lora": True,
            "words": "",
            "hub": "",
        }
    ]
    assert recipe.base.model_dump() == {"name": "tiny", "kind": "tiny", "sha256": tiny.version}
    (redrawn,) = Generator(tiny, shelf).generate(recipe.request())
    assert redrawn.to_png() == image.to_png()


def test_progress_counts_all_steps_and_cancelling_interrupts(tiny, shelf):
    recorded = []
    request = GenerateRequest(prompt="a cat", num_images=10, steps=STEPS, size=SIZE)
    list(Generator(tiny, shelf).generate(request, progress=lambda done, total: recorded.append((done, total))))
    assert recorded == [(i, 6) for i in range(1, 7)]  # two batches of three steps
    with pytest.raises(Interrupted):
        list(Generator(tiny, shelf).generate(request, cancelled=lambda: True))


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [("<me/dcuk>", "No concept <me/dcuk>"), ("<nobody>", "No concept <nobody>"), ("{a|<me/dcuk>}", "No concept")],
)
def test_unknown_concepts_in_a_prompt_are_refused(tiny, shelf, tmp_path, prompt, problem):
    library = Library(tmp_path)
    library.add(shelf["duck"])
    with pytest.raises(UserError, match=problem):
        list(Generator(tiny, library).generate(GenerateRequest(prompt=prompt, steps=1)))


def test_a_concept_of_another_base_is_refused_with_a_message(tiny, shelf):
    stranger = Concept(Token("you", "cat"), Card(base="sd1"), {"clip_l": np.zeros((1, 768), np.float32)})
    wide = Concept(Token("you", "wide"), Card(base="tiny"), {"clip_l": np.zeros((1, 99), np.float32)})
    for concept, problem in (
        (stranger, "made for the base sd1; the loaded base is tiny"),
        (wide, "vectors of width 99"),
    ):
        with pytest.raises(UserError, match=problem):
            list(Generator(tiny, Shelf(cat=concept)).generate(GenerateRequest(prompt="<cat>", steps=1)))


def latents(base, concepts, monkeypatch, prompt, **fields):
    """What a request ends with, before the autoencoder."""
    saved, real = [], base.decode
    with monkeypatch.context() as patched:
        patched.setattr(base, "decode", lambda sample: saved.append(sample) or real(sample))
        pictures(base, concepts, prompt, **fields)
    return torch.cat(saved)


# --- strengths, windows, blends ---


def test_strength_interpolates_from_class_noun_to_trained_embeddings(tiny):
    encoder = tiny.encoders["clip_l"]
    start = encoder.initial_embeddings("cup of coffee", 8)
    trained = np.random.default_rng(0).normal(size=(8, encoder.width)).astype(np.float32)
    concept = Concept(Token("me", "cup"), Card(base="tiny", class_noun="cup of coffee"), {"clip_l": trained})
    for strength in (0, 0.3, 1, 1.5, 5, -1, -2.5, -5):
        expected = (1 - strength) * start.numpy() + strength * trained
        np.testing.assert_allclose(embeddings_at_strength(tiny, concept, strength)["clip_l"], expected, atol=1e-6)
    stranger = Concept(Token("me", "cup"), Card(base="tiny"), {"clip_l": trained})
    for strength in (0.3, -2):
        np.testing.assert_allclose(
            embeddings_at_strength(tiny, stranger, strength)["clip_l"], strength * trained, atol=1e-6
        )


def test_a_concept_at_strength_zero_equals_its_class_noun(tiny, shelf):
    rows = {"clip_l": shelf["word"].vectors["clip_l"][:1]}
    noun = Concept(Token("me", "cat"), Card(base="tiny", class_noun="cat"), rows)
    (off,), (plain,) = (
        pictures(tiny, Shelf(cat=noun), prompt, num_images=1) for prompt in ("a <cat:0> here", "a cat here")
    )
    assert np.array_equal(off, plain)


def test_a_window_limits_a_concept_to_its_steps(tiny, shelf, monkeypatch):
    """Against a loop of our own, with the mix and the words of each step put in by hand."""
    ours = latents(tiny, shelf, monkeypatch, "a cat <duck:0.8@0.5-1>", num_images=1, steps=4, seed=5)
    resolver = PromptResolver(tiny, shelf)
    concept = shelf["duck"]

    def condition(progress, _):
        strength = 0.8 if progress >= 0.5 else 0.0
        tiny.adapters.set([(concept.lora, strength)])
        words = [Segment("a cat "), Segment(embeddings_at_strength(tiny, concept, strength))]
        rows = [tiny.encode_prompt(item) for item in ([], words)]
        return StepConditioning(type(rows[0])(torch.cat([row.prompt_embeds for row in rows])))

    with tiny.exclusive(), tiny.adapters.active(()):
        noise = noise_from_seed(5, tiny.latent_shape(64, 64))[None]
        assert torch.equal(ours, denoise(tiny, condition, noise, SamplingConfig(4, tiny.guidance)))
    assert resolver.resolve("a <duck@0-1>").loras_at(0.99) == resolver.resolve("a <duck>").loras_at(0.0)


def test_adjacent_windows_cover_every_step_exactly_once(tiny, shelf):
    """Windows that meet leave no step out and share none."""
    resolver = PromptResolver(tiny, shelf)
    for steps in (1, 2, 3, 7, 25):
        progresses = [(i + 0.5) / steps for i in range(steps)]
        early, late = (resolver.resolve(f"<duck@{window}>") for window in ("0-0.4", "0.4-1"))
        assert all(bool(early.loras_at(m)) != bool(late.loras_at(m)) for m in progresses)


def test_a_blend_weights_the_embeddings_and_loras_of_its_concepts(tiny, shelf):
    other = random_concept(tiny, "<me/other>", 9)
    both = Shelf(duck=shelf["duck"], other=other)
    resolver = PromptResolver(tiny, both)
    resolved = resolver.resolve("<duck+other>")
    (segment,) = resolved.segments_at(tiny, 0.5)
    expected = (shelf["duck"].vectors["clip_l"] + other.vectors["clip_l"]) / 2
    np.testing.assert_allclose(segment.content["clip_l"], expected, atol=1e-6)
    assert [(weight.identity, weight.strength) for weight in resolved.loras_at(0.5)] == [
        (shelf["duck"].identity, 0.5),
        (other.identity, 0.5),
    ]
    weighted = resolver.resolve("<duck:0.6+other:0.2>")
    (segment,) = weighted.segments_at(tiny, 0.5)  # three parts to one, four fifths of the way
    expected = 0.8 * (0.75 * shelf["duck"].vectors["clip_l"] + 0.25 * other.vectors["clip_l"])
    np.testing.assert_allclose(segment.content["clip_l"], expected, atol=1e-6)


@pytest.mark.parametrize("strengths", [(-1, 2), (1, -1), (-0.5, -1.5), (5, -5), (0.6, 0.2), (0, 0), (-1, 0)])
def test_a_blend_adds_the_weighted_changes_to_the_mean_class_noun(tiny, strengths):
    """In numpy: the mean of the nouns, weighted by how far each concept is from 0, and each way times its strength."""
    nouns, rows = ("dog", "cup"), np.random.default_rng(3).normal(size=(2, 1, tiny.encoders["clip_l"].width))
    parts = [
        (Concept(Token("me", noun), Card(base="tiny", class_noun=noun), {"clip_l": item.astype(np.float32)}), strength)
        for noun, item, strength in zip(nouns, rows, strengths, strict=True)
    ]
    starts = np.stack([tiny.encoders["clip_l"].embeddings_of(noun).numpy() for noun in nouns])
    far = np.abs(strengths) if any(strengths) else np.ones(2)
    expected = np.average(starts, axis=0, weights=far) + np.tensordot(np.array(strengths, float), rows - starts, 1)
    (block,) = resolve_concepts(tiny, parts)
    np.testing.assert_allclose(block["clip_l"], expected, atol=1e-4)


def test_a_negative_strength_subtracts_the_lora_weights(tiny, shelf):
    """Slots at -s and bare weights less s times the change are one model."""
    lora, resolver = shelf["duck"].lora, PromptResolver(tiny, shelf)
    name, layer = next((name, layer) for name, layer in lora.layers.items() if layer.down.ndim == 2)
    linear = tiny.adapters.layers()[name]
    x = torch.randn(3, linear.in_features, generator=torch.Generator().manual_seed(0))
    change = layer.alpha / layer.rank * layer.up.astype(np.float32) @ layer.down.astype(np.float32)
    mix = [(weight.lora, weight.strength) for weight in resolver.resolve("a <duck:-1.5>").loras_at(0.5)]
    with torch.no_grad(), tiny.adapters.active(mix):
        got = linear(x)
    with torch.no_grad():
        expected = linear(x).numpy() - 1.5 * x.numpy() @ change.T
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)


def test_the_strength_farthest_from_zero_wins(tiny, shelf):
    resolver = PromptResolver(tiny, shelf)
    for prompt, strength in (
        ("<duck:-1> and <duck:0.5>", -1.0),
        ("<duck:0.5> and <duck:-1>", -1.0),
        ("<duck:-1> and <duck>", 1.0),
        ("<duck:-2@0-0.6> <duck:-1>", -2.0),
    ):
        resolved = resolver.resolve(prompt)
        assert [weight.strength for weight in resolved.loras_at(0.5)] == [strength]
        assert [at for _, at in resolved.strongest_uses().values()] == [strength]
    assert [weight.strength for weight in resolver.resolve("<duck:-2@0-0.4> <duck:-1>").loras_at(0.5)] == [-1.0]
    assert resolver.resolve("<duck:-0>").loras_at(0.5) == ()


def test_a_negative_strength_changes_the_image_and_is_in_the_recipe(tiny, shelf):
    request = GenerateRequest(prompt="a cat <duck:-1>", num_images=1, steps=STEPS, size=SIZE)
    [image] = Generator(tiny, shelf).generate(request)
    assert [item.strength for item in image.recipe.concepts] == [-1.0]
    (plus,), (off,) = (pictures(tiny, shelf, f"a cat <duck:{at}>", num_images=1) for at in (1, 0))
    assert not np.array_equal(np.asarray(image.image), plus) and not np.array_equal(np.asarray(image.image), off)


def test_a_blend_of_unequal_vector_counts_is_concatenated(tiny, shelf):
    resolver = PromptResolver(tiny, shelf)
    first, second = resolver.resolve("<duck+ink>").segments_at(tiny, 0.5)
    np.testing.assert_allclose(first.content["clip_l"], 0.5 * shelf["duck"].vectors["clip_l"])
    np.testing.assert_allclose(second.content["clip_l"], 0.5 * shelf["ink"].vectors["clip_l"])


# --- alternatives ---


def test_each_image_samples_its_alternative_from_its_seed(tiny, shelf, tmp_path):
    (tmp_path / "place.txt").write_text("the beach\nthe moon\n")
    request = GenerateRequest(prompt="{a|b|<duck>} on __place__", num_images=6, steps=1, size=SIZE)
    generated = list(Generator(tiny, shelf, tmp_path).generate(request))
    assert len({image.recipe.prompt for image in generated}) > 2
    assert all(image.recipe.template == request.prompt for image in generated)
    for image in generated[::2]:
        alone = request.model_copy(update={"num_images": 1, "seed": image.seed})
        (again,) = Generator(tiny, shelf, tmp_path).generate(alone)
        assert again.recipe == image.recipe.model_copy(update={"batch": 1, "place": 0})
        (redone,) = Generator(tiny, shelf).generate(image.recipe.request())
        assert redone.recipe.prompt == image.recipe.prompt
        assert np.abs(np.asarray(redone.image).astype(int) - np.asarray(image.image)).max() <= 1


def test_all_combinations_generates_every_alternative(tiny, shelf):
    request = GenerateRequest(prompt="a {red|blue} {cat|dog}", all_combinations=True, num_images=2, steps=1, size=SIZE)
    generated = [(p.recipe.prompt, p.seed) for p in Generator(tiny, shelf).generate(request)]
    assert generated == [(f"a {c} {a}", seed) for c in ("red", "blue") for a in ("cat", "dog") for seed in (0, 1)]
    many = GenerateRequest(prompt="{a|b|c|d}" * 6, all_combinations=True, num_images=1, steps=1)
    with pytest.raises(UserError, match="4,096 alternatives, generated 1 times each; up to 1000 images are allowed"):
        list(Generator(tiny, shelf).generate(many))


def test_prompts_in_one_batch_do_not_affect_each_other(tiny, shelf, monkeypatch):
    prompts = ["a cat", "a dog, " * 30, "a red (fish:1.2)"]
    template = "{" + "|".join(prompts) + "}"
    together = latents(tiny, shelf, monkeypatch, template, all_combinations=True, num_images=1, seed=4)
    for concept, prompt in zip(together, prompts, strict=True):
        alone = latents(tiny, shelf, monkeypatch, prompt, num_images=1, seed=4)
        torch.testing.assert_close(concept[None], alone, atol=1e-4, rtol=0)


# --- variations, start pictures, passes ---


def test_variation_strength_interpolates_between_two_seeds(tiny, shelf):
    (favourite,) = pictures(tiny, shelf, "a cat", num_images=1, seed=5)
    away = [
        np.abs(
            pictures(tiny, shelf, "a cat", num_images=1, seed=5, variation_strength=near, variation_seed=8)[0].astype(
                int
            )
            - favourite
        ).mean()
        for near in (0.05, 0.3, 1.0)
    ]
    assert 0 < away[0] < away[1] < away[2]
    (other,) = pictures(tiny, shelf, "a cat", num_images=1, seed=8)
    (end,) = pictures(tiny, shelf, "a cat", num_images=1, seed=5, variation_strength=1.0, variation_seed=8)
    assert np.abs(end.astype(int) - other).max() <= 1
    two = pictures(tiny, shelf, "a cat", num_images=2, seed=5, variation_strength=0.3, variation_seed=8)
    (second,) = pictures(tiny, shelf, "a cat", num_images=1, seed=5, variation_strength=0.3, variation_seed=9)
    assert np.abs(two[1].astype(int) - second).max() <= 1


def test_seeds_of_64_bits_give_the_noise_of_torch(tiny, shelf):
    """As ComfyUI draws noise (`comfy/sample.py`): torch.manual_seed of the whole seed, then randn on the CPU."""
    shape = tiny.latent_shape(64, 64)
    for seed in (0, 7, 2**32 - 1, 2**32, 2**53 + 1, 2**63, 2**64 - 1):
        torch.manual_seed(seed)
        assert torch.equal(noise_from_seed(seed, shape), torch.randn(shape))
        assert torch.equal(
            noise_from_seed(seed, shape), noise_from_seed(seed % 2**32, shape)
        )  # torch uses its lower half
    request = GenerateRequest(prompt="a {cat|dog}", num_images=2, seed=2**64 - 1, steps=2, size="64x64")
    generated = list(Generator(tiny, shelf).generate(request))
    assert [image.seed for image in generated] == [2**64 - 1, 0]
    for image in generated:
        recipe = read_recipe(image.to_png())
        again = list(Generator(tiny, shelf).generate(recipe.batch_request()))[recipe.place]
        assert recipe.seed == image.seed and again.image.tobytes() == image.image.tobytes()


def test_slerp_matches_numpy_and_keeps_the_noise_variance():
    """Slerp in numpy; and as long as its ends."""
    item, two = noise_from_seed(0, (4, 16, 16)), noise_from_seed(1, (4, 16, 16))
    a, b = item.numpy().ravel().astype(np.float64), two.numpy().ravel().astype(np.float64)
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    for weight in (0, 0.2, 0.5, 1):
        expected = (np.sin((1 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle)
        made = slerp(item, two, weight)
        np.testing.assert_allclose(made.numpy().ravel(), expected, atol=1e-5)
        assert 0.95 < made.std() < 1.05
    assert torch.equal(slerp(item, item.clone(), 0.5), item)


@pytest.fixture
def start(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8)
    path = tmp_path / "start.png"
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return path


def test_a_lower_img2img_strength_stays_closer_to_the_init_image(tiny, shelf, start):
    was = np.asarray(Image.open(start)).astype(int)
    away = [
        np.abs(
            pictures(tiny, shelf, "a cat", num_images=1, init_image=start, strength=change, steps=10)[0] - was
        ).mean()
        for change in (0.1, 0.5, 1.0)
    ]
    assert away[0] < away[1] < away[2]


def test_pixels_outside_the_mask_stay_unchanged(tiny, shelf, start, tmp_path):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (40, 0, 64, 64))
    mask.save(tmp_path / "mask.png")
    settings = {"num_images": 1, "init_image": start, "mask": tmp_path / "mask.png", "strength": 1.0}
    (generated,) = pictures(tiny, shelf, "a cat", **settings)
    was = np.asarray(Image.open(start)).astype(int)
    assert np.array_equal(generated[:, :40], was[:, :40]) and np.abs(generated[:, 48:] - was[:, 48:]).mean() > 5


def test_an_init_image_of_another_shape_is_cropped_to_the_size(tiny, shelf, tmp_path):
    Image.new("RGB", (300, 150), "red").save(tmp_path / "wide.jpg")
    (original,) = Generator(tiny, shelf).generate(
        GenerateRequest(prompt="x", num_images=1, steps=1, init_image=tmp_path / "wide.jpg")
    )
    assert (
        original.image.size == (184, 88) and original.recipe.size == "184x88"
    )  # as wide, as many pixels as the base's own
    (square,) = Generator(tiny, shelf).generate(
        GenerateRequest(prompt="x", num_images=1, steps=1, init_image=tmp_path / "wide.jpg", size=SIZE)
    )
    assert square.image.size == (64, 64)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no picture", "not an image in a supported"),
        (b"\x89PNG\r\n\x1a\n1234", "is damaged"),
        (None, "start.png"),
    ],
)
def test_an_unreadable_init_image_is_refused_with_a_message(tiny, shelf, tmp_path, content, problem):
    if content:
        (tmp_path / "start.png").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        list(
            Generator(tiny, shelf).generate(
                GenerateRequest(prompt="x", num_images=1, init_image=tmp_path / "start.png")
            )
        )


def test_the_hires_pass_enlarges_the_image_and_keeps_its_content(tiny, shelf):
    recorded = []
    request = GenerateRequest(prompt="a cat", num_images=1, steps=6, size=SIZE, hires_scale=2, strength=0.5)
    (large,) = Generator(tiny, shelf).generate(request, progress=lambda done, total: recorded.append((done, total)))
    assert large.image.size == (128, 128) and recorded == [(i, 9) for i in range(1, 10)]
    assert large.recipe.size == SIZE and large.recipe.hires_scale == 2
    (small,) = pictures(tiny, shelf, "a cat", num_images=1, steps=6)
    back = np.asarray(large.image.resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    (other,) = pictures(tiny, shelf, "a cat", num_images=1, steps=6, seed=99)
    assert np.abs(back - small).mean() < 0.7 * np.abs(back - other).mean()


@pytest.mark.parametrize("kind", ["lcm", "tcd"])
def test_lcm_and_tcd_loras_generate_in_few_steps(tiny, shelf, kind):
    """Noise drawn on the way is each picture's own; no guidance; the LoRA is in the slots though no prompt names it."""
    fast = Concept(Token("them", kind), Card(base="tiny"), {}, shelf["ink"].lora)
    both = Shelf(shelf, **{kind: fast})
    request = GenerateRequest(prompt="a cat", num_images=3, fast=f"<them/{kind}>", size=SIZE)
    three = list(Generator(tiny, both).generate(request))
    assert {(p.recipe.steps, p.recipe.guidance, p.recipe.sampler) for p in three} == {(6, 1.0, kind.upper())}
    assert [(item.token, item.lora) for item in three[0].recipe.concepts] == [(f"<them/{kind}>", True)]
    (alone,) = Generator(tiny, both).generate(
        GenerateRequest(prompt="a cat", num_images=1, seed=1, fast=f"<them/{kind}>", size=SIZE)
    )
    assert np.abs(np.asarray(alone.image).astype(int) - np.asarray(three[1].image)).max() <= 1
    with pytest.raises(UserError, match="has no LoRA"):
        list(Generator(tiny, both).generate(GenerateRequest(prompt="a cat", fast="<word>")))


def test_prompt_encodings_are_cached(tiny, shelf, monkeypatch):
    generator, read = Generator(tiny, shelf), []
    real = tiny.encode_prompt
    monkeypatch.setattr(tiny, "encode_prompt", lambda *args, **options: read.append(1) or real(*args, **options))
    request = GenerateRequest(prompt="a cat <duck>", num_images=6, steps=1, size=SIZE)
    list(generator.generate(request))
    assert len(read) == 2  # the prompt and the empty one, with these LoRAs in the slots
    list(generator.generate(request.model_copy(update={"seed": 50})))
    assert len(read) == 2
    list(generator.generate(request.model_copy(update={"prompt": "a cat <duck:0.5>", "num_images": 1})))
    assert len(read) == 4


def test_a_prompt_encoding_does_not_depend_on_earlier_prompts(tiny):
    """Encoded as the fourth with a LoRA of the text encoder in the slots, or as the first: the same to the bit."""
    rng = torch.Generator().manual_seed(0)
    trained = tiny.adapters.add_trainable("all", 2, rng, text_encoder=True)
    for parameter in trained.values():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=rng)
    tiny.adapters.clear()
    mix, words = [(to_lora(trained), 1.0)], ["a cat", "a dog", "a fish", "a red duck"]
    with torch.no_grad(), tiny.adapters.active(mix):
        together = [tiny.encode_prompt([Segment(item)]).prompt_embeds for item in words]
    with torch.no_grad(), tiny.adapters.active(mix):
        assert torch.equal(tiny.encode_prompt([Segment(words[3])]).prompt_embeds, together[3])
