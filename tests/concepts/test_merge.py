"""Merged concepts against the mix that they stand for: in numpy, and as pictures of the built-in base."""

import json

import numpy as np
import pytest
from test_compare import change

from sdpersonal.cli.main import main
from sdpersonal.concepts.concept import Lora, LoraLayer
from sdpersonal.concepts.concept_file import concept_from_bytes, concept_to_bytes
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.merge import merge
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support.samples import LAYERS, card, concept, lora, vectors

C = Token.parse("<me/c>")


def pair(**fields):
    return concept("<me/a-v1>", 0, **fields), concept("<me/b-v1>", 1, **fields)


def test_vectors_are_averaged_or_concatenated():
    a, b = pair(lora=None)
    merged = merge([(a, 0.6), (b, 0.4)], C)
    expected = 0.6 * a.vectors["clip_l"] + 0.4 * b.vectors["clip_l"]
    np.testing.assert_allclose(merged.concept.vectors["clip_l"], expected, atol=1e-6)
    assert (merged.vectors, merged.energy_kept, merged.concept.lora) == ("average", 1.0, None)
    twice = merge([(a, 1.2), (b, 0.8)], C)  # the same proportions: rows as long as before
    assert np.array_equal(twice.concept.vectors["clip_l"], merged.concept.vectors["clip_l"])
    remaining = merge([(a, 0.6), (b, 0.4)], C, concatenate=True).concept.vectors["clip_l"]
    expected = np.concatenate([np.float32(0.6) * a.vectors["clip_l"], np.float32(0.4) * b.vectors["clip_l"]])
    assert np.array_equal(remaining, expected)
    long = concept("<me/long>", vectors={"clip_l": vectors(3, 5)}, lora=None)
    assert merge([(a, 1), (long, 1)], C).vectors == "concatenation"


def test_sdxl_merges_both_encoders():
    parts = [
        concept(
            name,
            card=card(base="sdxl"),
            lora=None,
            vectors={"clip_l": vectors(s, 2, 768), "clip_g": vectors(s, 2, 1280)},
        )
        for s, name in enumerate(("<me/a>", "<me/b>"))
    ]
    merged = merge([(part, 0.5) for part in parts], C).concept
    np.testing.assert_allclose(merged.vectors["clip_g"], sum(part.vectors["clip_g"] for part in parts) / 2, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_loras_are_merged_exactly(dtype):
    a, b = (concept(f"<me/{n}>", vectors={}, lora=lora(s, rank, dtype)) for n, s, rank in (("a", 0, 4), ("b", 1, 7)))
    merged = merge([(a, 0.6), (b, 1.5)], C).concept
    assert merged.lora.rank == 11 and merged.vectors == {}
    for name in LAYERS:
        expected = 0.6 * change(a.lora.layers[name]).astype(float) + 1.5 * change(b.lora.layers[name]).astype(float)
        np.testing.assert_allclose(
            change(merged.lora.layers[name]), expected, rtol=0, atol=2e-2 if dtype == np.float16 else 1e-5
        )


def test_a_negative_strength_subtracts_a_concept():
    a, b = pair()
    merged = merge([(a, 1.5), (b, -0.5)], C).concept
    np.testing.assert_allclose(
        merged.vectors["clip_l"], 1.5 * a.vectors["clip_l"] - 0.5 * b.vectors["clip_l"], rtol=0, atol=1e-5
    )
    for name in LAYERS:
        expected = 1.5 * change(a.lora.layers[name]) - 0.5 * change(b.lora.layers[name])
        np.testing.assert_allclose(change(merged.lora.layers[name]), expected, rtol=0, atol=1e-4)


def test_layers_of_a_single_part_are_merged():
    a = concept("<me/a>", lora=lora(0, names=LAYERS[:1]))
    b = concept("<me/b>", lora=lora(1, names=LAYERS[1:]))
    merged = merge([(a, 1), (b, 0.5)], C).concept.lora
    np.testing.assert_allclose(change(merged.layers[LAYERS[1]]), 0.5 * change(b.lora.layers[LAYERS[1]]), atol=1e-5)


def test_a_merge_of_reduced_rank_is_the_best_approximation():
    a, b = pair(vectors={})
    exact, cut = merge([(a, 0.6), (b, 0.4)], C), merge([(a, 0.6), (b, 0.4)], C, rank=3)
    energies = np.zeros(2)
    for name in LAYERS:
        u, s, v = np.linalg.svd(change(exact.concept.lora.layers[name]).astype(np.float64), full_matrices=False)
        np.testing.assert_allclose(change(cut.concept.lora.layers[name]), (u[:, :3] * s[:3]) @ v[:3], atol=1e-4)
        energies += (s[:3] ** 2).sum(), (s**2).sum()
    assert cut.concept.lora.rank == 3 and cut.energy_kept == pytest.approx(energies[0] / energies[1], rel=1e-6)
    assert merge([(a, 0.6), (b, 0.4)], C, rank=8).energy_kept == 1.0


def test_convolutions_are_reduced_in_rank():
    def conv(seed):
        draw = np.random.default_rng(seed)
        down, up = draw.normal(size=(4, 6, 3, 3)), draw.normal(size=(5, 4, 1, 1))
        return Lora({LAYERS[0]: LoraLayer(down.astype(np.float32), up.astype(np.float32), 4.0)})

    parts = [(concept(f"<me/{n}>", vectors={}, lora=conv(s)), 1.0) for s, n in enumerate("ab")]
    merged = merge(parts, C, rank=5).concept
    layer = merged.lora.layers[LAYERS[0]]
    assert layer.down.shape == (5, 6, 3, 3) and layer.up.shape == (5, 5, 1, 1)
    np.testing.assert_allclose(change(layer), sum(change(p.lora.layers[LAYERS[0]]) for p, _ in parts), atol=1e-4)
    assert concept_from_bytes(concept_to_bytes(merged), "c").identity == merged.identity


def test_invalid_merges_are_refused_with_a_message():
    a, b = pair()
    foreign = concept("<me/x>", card=card(base="sd1"), vectors={"clip_l": vectors(0, 2, 768)}, lora=None)
    many = concept("<me/many>", vectors={"clip_l": vectors(0, 63)})
    narrow = concept("<me/narrow>", vectors={"clip_l": vectors(0, 2, 100)})
    other = Lora({LAYERS[0]: LoraLayer(np.ones((2, 40), np.float32), np.ones((16, 2), np.float32), 2.0)})
    for parts, message in (
        ([(a, 1)], "at least two"),
        (
            [(a, 1), (foreign, 1)],
            "<me/a-v1> is made for the built-in model of sdpersonal, <me/x> for Stable Diffusion 1.x",
        ),
        ([(a, 1), (b, 0)], "strength 0"),
        ([(a, 1), (many, 1)], "65 vectors"),
        ([(a, 1), (b, -1)], "sum to 0;"),
        ([(a, 1), (b, -0.95)], "sum to 0.05;"),
        ([(a, -1), (b, -1)], "sum to -2;"),
        ([(a, 1), (many, -1)], "<me/many> cannot be concatenated at a negative strength"),
        ([(a, 1), (narrow, 1)], "differ in width"),
        ([(a, 1), (concept("<me/y>", lora=other), 1)], "differ in shape"),
    ):
        with pytest.raises(UserError, match=message):
            merge(parts, C)


def test_the_card_lists_the_merged_concepts():
    a = concept("<me/a-v1>", card=card(license="MIT", kind="person", consent="yes", trigger_words=("x",)))
    b = concept("<me/b-v2>", 1, card=card(license="CC-BY-4.0", kind="person", consent="unknown"))
    made = merge([(a, 0.6), (b, 0.4)], C).concept.card
    assert (made.license, made.consent, made.kind, made.class_noun) == ("", "unknown", "person", "duck")
    assert made.recipe["part_2"] == "<me/b-v2>" and made.recipe["strength_1"] == 0.6
    assert made.description == "Merged of <me/a-v1:0.6> + <me/b-v2:0.4>"
    assert made.method == "merged" and made.trigger_words == ("x",)


def test_the_merge_command_adds_a_concept_or_refuses_with_a_message(tmp_path, capsys):
    library = Library(tmp_path / "concepts")
    for part in (*pair(), concept("<me/x>", card=card(base="sd1"), vectors={"clip_l": vectors(0, 2, 768)}, lora=None)):
        library.add(part)

    def run(*argv):
        return main(["concepts", "merge", *argv, "--library", str(library.folder)])

    assert run("<me/a:0.6>", "b:0.4", "--as", "<me/c>", "--rank", "3") == 0
    output = capsys.readouterr().out
    assert output.startswith("merged: <me/c-v1>\nVectors: average of 2.\nLoRA: rank 3, ") and "%" in output
    assert run("a:0.6", "b:0.4", "--as", "<me/d>", "--json") == 0
    assert json.loads(capsys.readouterr().out)["lora_rank"] == 8
    before = library.entries()
    for argv, words in (
        (("a", "x", "--as", "<me/e>"), "made for the built-in model"),
        (("a", "nowhere", "--as", "<me/e>"), "No concept <nowhere>"),
        (("a", "b", "--as", "e"), "has no owner"),
        (("a", "b", "--as", "../x"), "not a concept's token"),
        (("a:-6", "b", "--as", "<me/e>"), "must be a number from -5 to 5"),
        (("a", "b", "--as", "<me/e>", "--rank", "0"), "rank must be"),
        (("a <b>", "b", "--as", "<me/e>"), "token"),
        (("<a:0.6:in=0>", "b", "--as", "<me/e>"), "<a:0.6:in=0> is not one concept's token with a strength alone"),
        (("a", "--as", "<me/e>"), "PARTS must be"),
    ):
        assert run(*argv) == 2
        err = capsys.readouterr().err
        assert words in err and "Traceback" not in err, err
    assert library.entries() == before


def test_an_exact_merge_generates_the_same_image_as_both_concepts(tiny):
    from sdpersonal.config import GenerateRequest
    from sdpersonal.generation import Generator

    layers = list(tiny.adapters.layer_names("attention", text_encoder=True))[::3]
    weights = tiny.adapters.layers()

    def made(token, seed):
        draw = np.random.default_rng(seed)
        parts = {}
        for name in layers:
            out, width = weights[name].weight.shape
            down, up = draw.normal(size=(2, width)), draw.normal(size=(out, 2))
            parts[name] = LoraLayer(down.astype(np.float32) * 0.1, up.astype(np.float32) * 0.1, 1.0 + seed)
        rows = tiny.encoders["clip_l"].token_embeddings[[100 + seed, 200 + seed]].detach().numpy().copy()
        return concept(token, vectors={"clip_l": rows}, lora=Lora(parts), card=card(class_noun=""))

    both = {t: made(t, s) for s, t in enumerate(("<me/a-v1>", "<me/b-v1>"))}
    merged = merge([(both["<me/a-v1>"], 0.6), (both["<me/b-v1>"], 0.4)], Token.parse("<me/c-v1>"), concatenate=True)
    shelf = both | {"<me/c-v1>": merged.concept}

    class Shelf:
        def get(self, token):
            return shelf[str(token)]

    generator = Generator(tiny, Shelf())
    plain = {"num_images": 1, "steps": 3, "size": "64x64", "compose": False}  # else both are subjects of their own

    mixed, alone, bare = (
        np.asarray(next(generator.generate(GenerateRequest(prompt=prompt, **plain))).image, int)
        for prompt in ("<me/a-v1:0.6><me/b-v1:0.4> on grass", "<me/c-v1> on grass", "a duck on grass")
    )
    assert abs(mixed - alone).max() <= 1 and abs(mixed - bare).max() > 20
