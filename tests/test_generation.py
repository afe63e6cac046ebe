"""Drawing: equal to diffusers' own pipeline, without a trace, and kind about what cannot be drawn."""

import hashlib
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from sdpersonal.bases.loading import built_in_folder
from sdpersonal.concept import Card, Concept, Lora, LoraLayer, write
from sdpersonal.config import Request
from sdpersonal.errors import Interrupted, NoRoom, PersonalError
from sdpersonal.generation import Generator, denoise
from sdpersonal.library import Library
from sdpersonal.prompts import Token

STEPS, SIZE = 3, "64x64"


def random_lora(base, seed, rank=3):
    draw = np.random.default_rng(seed)
    layers = {}
    for name in base.slots.names("attention"):
        out, into = base.slots._slots[name].layer.weight.shape
        down, up = draw.normal(size=(rank, into)) / into**0.5, draw.normal(size=(out, rank)) / rank**0.5
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


@pytest.fixture(scope="module")
def stock():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(built_in_folder(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lora_in_file(concept):
    """The LoRA as it stands in the concept's file, without the bundled rows, which diffusers cannot read beside it."""
    from safetensors.torch import load

    return {key: value for key, value in load(write(concept)).items() if not key.startswith("bundle_emb.")}


def our_latents(base, pieces, mix, seed=5, guidance=4.0):
    noise = torch.randn(base.latent_shape(64, 64), generator=torch.Generator().manual_seed(seed))[None]
    with base.quiet(), base.slots.filled(mix):
        condition = base.condition([[""], pieces])
        return denoise(base, condition, noise, STEPS, guidance, lambda step: None)


def their_latents(pipe, prompt, seed=5, guidance=4.0):
    noise = torch.randn((1, pipe.unet.config.in_channels, 8, 8), generator=torch.Generator().manual_seed(seed))
    settings = {"num_inference_steps": STEPS, "guidance_scale": guidance, "height": 64, "width": 64}
    return pipe(prompt, latents=noise, output_type="latent", **settings).images


def test_no_concepts_equals_the_stock_pipeline(tiny, stock):
    ours = our_latents(tiny, ["a duck on the beach"], [])
    torch.testing.assert_close(ours, their_latents(stock, "a duck on the beach"), atol=1e-4, rtol=0)


def test_vectors_and_a_lora_equal_load_textual_inversion_and_load_lora_weights(tiny, stock, shelf):
    duck = shelf["duck"]
    stock.load_textual_inversion({"<duck>": torch.from_numpy(duck.vectors["clip_l"])})
    stock.load_lora_weights(lora_in_file(duck), adapter_name="duck")
    try:
        theirs = their_latents(stock, "a photo of <duck> here")
    finally:
        stock.unload_lora_weights()
        stock.unload_textual_inversion()
    pieces = ["a photo of ", {"clip_l": torch.from_numpy(duck.vectors["clip_l"])}, " here"]
    torch.testing.assert_close(our_latents(tiny, pieces, [(duck.lora, 1.0)]), theirs, atol=1e-4, rtol=0)
    assert (our_latents(tiny, pieces, []) - theirs).abs().max() > 0.01  # the LoRA does something here


def test_two_loras_at_strengths_equal_set_adapters(tiny, stock, shelf):
    for name in ("duck", "ink"):
        stock.load_lora_weights(lora_in_file(shelf[name]), adapter_name=name)
    stock.set_adapters(["duck", "ink"], [0.7, 0.4])
    try:
        theirs = their_latents(stock, "a duck")
    finally:
        stock.unload_lora_weights()
    ours = our_latents(tiny, ["a duck"], [(shelf["duck"].lora, 0.7), (shelf["ink"].lora, 0.4)])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def pictures(base, concepts, prompt, **fields):
    request = Request(**({"prompt": prompt, "n": 2, "steps": STEPS, "size": SIZE} | fields))
    return [np.asarray(picture.image) for picture in Generator(base, concepts).draw(request)]


def weights(base):
    digest = hashlib.sha256()
    for name, module in sorted(base.modules().items()):
        for key, value in module.state_dict().items():
            digest.update(f"{name}.{key}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def test_a_request_leaves_no_trace(tiny, shelf):
    before = pictures(tiny, shelf, "a cat <duck:0.7>"), weights(tiny)

    def fail_in_the_middle(done, total):
        if done == 2:
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        request = Request(prompt="<ink> and <duck>", steps=STEPS, size=SIZE)
        list(Generator(tiny, shelf).draw(request, progress=fail_in_the_middle))
    after = pictures(tiny, shelf, "a cat <duck:0.7>"), weights(tiny)
    assert before[1] == after[1]
    assert all(np.array_equal(a, b) for a, b in zip(before[0], after[0], strict=True))


def test_two_at_once_draw_what_each_draws_alone(tiny, shelf):
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
        np.array_equal(a, b) for one, two in zip(alone, together, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_picture_i_depends_on_seed_plus_i_alone(tiny, shelf):
    five = pictures(tiny, shelf, "<duck>", n=5, seed=10)
    for i in (0, 3, 4):
        (one,) = pictures(tiny, shelf, "<duck>", n=1, seed=10 + i)
        assert np.abs(one.astype(int) - five[i]).max() <= 1  # kernels round differently in another batch


def test_strengths_act(tiny, shelf):
    (bare,), (off,), (half,), (full,) = (
        pictures(tiny, shelf, f"a cat <duck:{strength}>" if strength is not None else "a cat ", n=1)
        for strength in (None, 0, 0.5, 1)
    )
    distance = [np.abs(each.astype(int) - full).mean() for each in (off, half, full)]
    assert distance[0] > distance[1] > distance[2] == 0
    assert not np.array_equal(bare, full)


def test_a_lora_in_the_negative_prompt_is_not_loaded(tiny, shelf):
    rows_only = Shelf(duck=Concept(shelf["duck"].token, shelf["duck"].card, shelf["duck"].vectors))
    (ours,), (theirs,) = (pictures(tiny, s, "a cat", n=1, negative="<duck>") for s in (shelf, rows_only))
    assert np.array_equal(ours, theirs)


def test_the_recipe_travels_in_the_png(tiny, shelf, tmp_path):
    request = Request(prompt="a «photo»\nof <duck:0.5>", n=1, seed=7, steps=STEPS, size=SIZE)
    (picture,) = Generator(tiny, shelf).draw(request)
    path = picture.save(tmp_path)
    with Image.open(path) as opened:
        recipe = json.loads(opened.text["sdpersonal"])
        assert np.array_equal(np.asarray(opened), np.asarray(picture.image))
    assert recipe["prompt"] == request.prompt and recipe["seed"] == 7 and recipe["size"] == SIZE
    assert recipe["concepts"] == [{"token": "<me/duck>", "sha256": shelf["duck"].identity, "strength": 0.5}]
    assert recipe["base"] == {"name": "tiny", "kind": "tiny", "sha256": tiny.version}
    again = {key: recipe[key] for key in ("prompt", "negative", "seed", "steps", "guidance", "size")}
    (redrawn,) = Generator(tiny, shelf).draw(Request(n=1, **again))
    assert redrawn.png() == picture.png()


def test_nothing_is_overwritten(tiny, shelf, tmp_path):
    (picture,) = Generator(tiny, shelf).draw(Request(prompt="x", n=1, steps=1, size=SIZE))
    (tmp_path / "notes-1.png").write_bytes(b"not ours")
    names = [picture.save(tmp_path).name for _ in range(3)]
    assert [name[:6] for name in names] == ["00001-", "00002-", "00003-"]
    assert (tmp_path / "notes-1.png").read_bytes() == b"not ours"


def test_a_full_disk_says_so(tiny, shelf, tmp_path, monkeypatch):
    import errno

    from sdpersonal import files

    (picture,) = Generator(tiny, shelf).draw(Request(prompt="x", n=1, steps=1, size=SIZE))

    def full(handle, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(NoRoom, match="no room in"):
        picture.save(tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_progress_and_cancelling(tiny, shelf):
    seen = []
    request = Request(prompt="a cat", n=6, steps=STEPS, size=SIZE)
    list(Generator(tiny, shelf).draw(request, progress=lambda done, total: seen.append((done, total))))
    assert seen == [(i, 6) for i in range(1, 7)]  # two batches of three steps
    with pytest.raises(Interrupted):
        list(Generator(tiny, shelf).draw(request, cancelled=lambda: True))


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [("<me/dcuk>", "No concept <me/dcuk>"), ("<nobody>", "No concept <nobody>"), ("duck " * 80, "tokens and 75 fit")],
)
def test_what_cannot_be_drawn(tiny, shelf, tmp_path, prompt, problem):
    library = Library(tmp_path)
    library.add(shelf["duck"])
    with pytest.raises(PersonalError, match=problem):
        list(Generator(tiny, library).draw(Request(prompt=prompt, steps=1)))


def test_a_concept_of_another_base_is_named_before_any_computing(tiny, shelf):
    stranger = Concept(Token("you", "cat"), Card(base="sd1"), {"clip_l": np.zeros((1, 768), np.float32)})
    wide = Concept(Token("you", "wide"), Card(base="tiny"), {"clip_l": np.zeros((1, 99), np.float32)})
    for concept, problem in (
        (stranger, "made for the base sd1; the loaded one is tiny"),
        (wide, "vectors of width 99"),
    ):
        with pytest.raises(PersonalError, match=problem):
            list(Generator(tiny, Shelf(cat=concept)).draw(Request(prompt="<cat>", steps=1)))
