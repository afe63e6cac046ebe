"""What concepts have in common, against numpy on the multiplied-out changes; and the commands that say it."""

import dataclasses
import json

import numpy as np
import pytest

from sdpersonal.cli.main import main
from sdpersonal.concepts.compare import (
    advise,
    compare,
    embedding_cosine,
    find_conflicts,
    lora_cosines,
    lora_overlap,
    thin_svd,
)
from sdpersonal.concepts.concept import Lora, LoraLayer
from sdpersonal.concepts.library import Library
from sdpersonal.errors import UserError
from support.samples import LAYERS, card, concept, embedding, lora, vectors


def change(layer):
    """up @ down * alpha / r, multiplied out: (out, in)."""
    return layer.up.reshape(len(layer.up), -1) @ layer.down.reshape(layer.rank, -1) * (layer.alpha / layer.rank)


def cosine(a, b):
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def test_embedding_cosine_is_the_mean_cosine_of_matching_rows():
    a, b = vectors(0, 3), vectors(1, 3)
    assert embedding_cosine(a, b) == pytest.approx(np.mean([cosine(x, y) for x, y in zip(a, b, strict=True)]), abs=1e-6)
    assert embedding_cosine(a, 2.5 * a) == pytest.approx(1) and embedding_cosine(a, -a) == pytest.approx(-1)
    assert embedding_cosine(a[[2]], a) == pytest.approx(1) == embedding_cosine(a, a[[1, 2]])  # found wherever it stands
    assert embedding_cosine(np.zeros_like(a), a) == 0
    with pytest.raises(UserError, match="widths 192 and 100"):
        embedding_cosine(a, a[:, :100])


def test_lora_cosines_match_the_multiplied_out_changes():
    a, b = lora(0), lora(1, rank=7)
    whole, item = lora_cosines(a, b)
    flat = [np.concatenate([change(first.layers[name]).ravel() for name in LAYERS]) for first in (a, b)]
    assert whole == pytest.approx(cosine(*flat), abs=1e-6)
    for name in LAYERS:
        assert item[name] == pytest.approx(cosine(change(a.layers[name]), change(b.layers[name])), abs=1e-6)
    assert lora_cosines(a, a)[0] == pytest.approx(1)
    other = Lora({"lora_unet_x": next(iter(b.layers.values()))})
    assert lora_cosines(a, other) == (0, {})


def principal_overlap(a, b):
    """Of one layer, by SVD of the changes and the principal directions' cosines, as the docstring says it."""
    (ua, sa, va), (ub, sb, vb) = (
        np.linalg.svd(change(first).astype(np.float64), full_matrices=False) for first in (a, b)
    )
    p, q = sa**2 / (sa**2).sum(), sb**2 / (sb**2).sum()
    size = np.sqrt((p**2).sum() * (q**2).sum())
    both = [
        sum(p[i] * q[j] * c[i, j] ** 2 for i in range(len(p)) for j in range(len(q))) for c in (ua.T @ ub, va @ vb.T)
    ]
    return np.sqrt(both[0] * both[1]) / size


def test_lora_overlap_matches_the_principal_directions():
    first, other = (Lora({LAYERS[0]: lora(seed).layers[LAYERS[0]]}) for seed in (0, 1))
    expected = principal_overlap(first.layers[LAYERS[0]], other.layers[LAYERS[0]])
    assert lora_overlap(first, other) == pytest.approx(expected, rel=1e-6)
    a = lora(0)
    assert lora_overlap(a, a) == pytest.approx(1)
    turned = Lora({name: dataclasses.replace(layer, up=-3 * layer.up) for name, layer in a.layers.items()})
    assert lora_overlap(a, turned) == pytest.approx(1)  # sign and size do not matter
    assert lora_overlap(a, lora(1)) == pytest.approx(lora_overlap(lora(1), a))


def test_orthogonal_and_empty_changes_have_no_overlap():
    eye = np.eye(8, dtype=np.float32)
    first = Lora({LAYERS[0]: LoraLayer(eye[:2], eye[:, :2], 2.0)})
    second = Lora({LAYERS[0]: LoraLayer(eye[2:4], eye[:, 2:4], 2.0)})
    zero = Lora({LAYERS[0]: LoraLayer(eye[:2], np.zeros((8, 2), np.float32), 2.0)})
    elsewhere = Lora({LAYERS[1]: second.layers[LAYERS[0]]})
    assert lora_overlap(first, second) == lora_overlap(first, zero) == lora_overlap(first, elsewhere) == 0
    assert lora_overlap(zero, zero) == 0 and lora_cosines(zero, first)[0] == 0


def test_thin_svd_and_overlap_support_convolutions():
    draw = np.random.default_rng(0)
    conv = LoraLayer(
        draw.normal(size=(4, 6, 3, 3)).astype(np.float32), draw.normal(size=(5, 4, 1, 1)).astype(np.float32), 4.0
    )
    both = Lora({LAYERS[0]: conv})
    assert lora_overlap(both, both) == pytest.approx(1)
    up, down = draw.normal(size=(9, 4)), draw.normal(size=(4, 30))
    u, s, v = thin_svd(up, down)
    np.testing.assert_allclose((u * s) @ v, up @ down, atol=1e-12)
    np.testing.assert_allclose(s, np.linalg.svd(up @ down, compute_uv=False)[:4], atol=1e-12)


def test_layers_of_different_shapes_have_no_overlap():
    wide = Lora({LAYERS[0]: LoraLayer(np.ones((2, 40), np.float32), np.ones((16, 2), np.float32), 2.0)})
    assert lora_overlap(lora(0), wide) == 0 and lora_cosines(lora(0), wide)[0] == 0


# --- conflicts --------------------------------------------------------------------------------------------------------


def sd1(token):
    return concept(token, card=card(base="sd1"), vectors={"clip_l": vectors(0, 2, 768)}, lora=None)


def kinds(*concepts):
    return [conflict.kind for conflict in find_conflicts(concepts)]


def test_conflicts_between_concepts_are_detected():
    duck, ink = concept(), concept("<you/ink>", 1, card=card(kind="style", class_noun="ink drawing"))
    assert kinds(duck, ink) == []
    assert kinds(duck, concept("<me/same>")) == ["same"]
    assert kinds(duck, sd1("<me/cat>"), ink) == ["base", "base"]
    assert kinds(duck, concept("<me/other>", 2)) == ["subject"]
    parallel = concept("<me/x>", vectors={"clip_l": 1.1 * vectors(0)}, lora=None, card=card(class_noun=""))
    assert kinds(embedding(), parallel) == ["vectors"]
    alike = concept("<me/y>", vectors={}, card=card(class_noun=""))
    assert kinds(concept(vectors={}), dataclasses.replace(alike, vectors={"clip_l": vectors(9)})) == ["lora"]
    [conflict] = find_conflicts([duck, sd1("<me/cat>")])
    assert conflict.is_fatal and "Stable Diffusion 1.x" in conflict.message and "<me/duck>" in conflict.message


def test_advice_describes_how_each_pair_is_generated():
    duck, fox = concept(), concept("<me/fox>", 1, card=card(class_noun="fox"))
    ink, riso = (concept(f"<you/{name}>", 2 + i, card=card(kind="style")) for i, name in enumerate(("ink", "riso")))
    texts = [pair.text for pair in advise([duck, fox, ink, riso])]
    assert len(texts) == 6
    assert texts[0] == "<me/duck> and <me/fox>: Each is generated apart, in a place of its own, and then joined."
    assert (
        texts[1]
        == "<me/duck> and <you/ink>: The style has guidance of its own, so that the subject does not outweigh it."
    )
    assert "guidance=1" in texts[5] and not any("Try" in text for text in texts)
    [pair] = advise([duck, concept("<me/other>", 2)])
    assert pair.conflict.mixing == "composed" and pair.text.endswith(
        " and then joined. Both are a duck; without composition, or from an init image, they may blend into one. "
        "Then try <me/duck:0.8> <me/other:0.8>"
    )
    for a, b in ((duck, concept("<me/same>")), (duck, sd1("<me/cat>")), (sd1("<me/cat>"), ink)):
        [pair] = advise([a, b])
        assert pair.does == "" and pair.conflict.mixing == "plain" and pair.conflict.message in pair.text


@pytest.mark.parametrize("style, strengths", [("duck", (1.0, 0.5)), ("y", (1.0, 0.5)), (None, (0.5, 0.5))])
def test_a_subject_keeps_its_strength_beside_a_style_with_the_same_change(style, strengths):
    duck = concept(vectors={}, card=card(kind="style" if style == "duck" else "object"))
    other = concept(
        "<me/y>",
        vectors={"clip_l": vectors(9)},
        card=card(class_noun="", kind="style" if style == "y" else "person"),
    )
    pair = (other, duck) if style == "duck" else (duck, other)
    [advice] = advise(pair)
    assert advice.conflict.kind == "lora" and advice.conflict.strengths == strengths
    assert advice.conflict.mixing == ("guided" if style else "composed")
    assert ("without composition" in advice.text) == (style is None)


@pytest.mark.parametrize("rank", [4, 16])
def test_loras_with_shared_changes_conflict_and_high_rank_alone_does_not(rank):
    """Random ones of rank 16 in layers 16 wide share many directions, by chance; they do nothing that is the same."""
    names = [f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn{i}_to_{j}" for i in "12" for j in "qkv"]
    first, other = (
        dataclasses.replace(
            embedding(f"<me/a-{seed}>", seed), lora=lora(seed, rank, names=names), card=card(class_noun="")
        )
        for seed in (3, 4)
    )
    assert compare(first, other).overlap > 0.1 and kinds(first, other) == []
    mixed = {
        name: LoraLayer(
            np.concatenate([other.lora.layers[name].down, 0.4 * layer.down]),
            np.concatenate([other.lora.layers[name].up, layer.up], axis=1),
            float(rank),
        )
        for name, layer in first.lora.layers.items()
    }
    [conflict] = find_conflicts([first, dataclasses.replace(other, lora=Lora(mixed))])
    assert conflict.kind == "lora" and conflict.strengths == (0.6, 0.6)


def test_suggested_strengths_of_equal_changes_are_halved():
    [conflict] = find_conflicts([concept(vectors={}), concept("<me/y>", vectors={"clip_l": vectors(9)})])
    assert conflict.strengths == (0.5, 0.5)  # two halves of the same change are one


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path / "concepts")
    recipe = {"lr": 0.001, "seed": 1}
    library.add(concept(card=card(steps=100, recipe=recipe, scores={"likeness": 0.5})))
    library.add(concept(seed=1, card=card(steps=200, recipe=recipe | {"seed": 2}, scores={"likeness": 0.625})))
    library.add(embedding("<you/ink>", seed=5))
    library.add(sd1("<me/cat>"))
    return library


def run(library, *argv):
    return main([*argv, "--library", str(library.folder)])


def test_diff_prints_settings_scores_and_cosines(library, capsys):
    assert run(library, "concepts", "diff", "<duck-v1>", "<duck-v2>") == 0
    output = capsys.readouterr().out
    assert output.startswith("<me/duck-v1> | <me/duck-v2>\n") and "recipe.lr" not in output  # equal fields are left out
    for words in ("recipe.seed ", "1 | 2", "scores.likeness", "0.5 | 0.625", "cosine of the LoRAs: "):
        assert words in output
    assert run(library, "concepts", "diff", "<duck-v1>", "<duck-v2>", "--layers", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    expected = compare(library.get(library.entries()[1].token), library.get(library.entries()[2].token))
    assert result["alike"] == json.loads(json.dumps(dataclasses.asdict(expected)))
    assert result["different"]["steps"] == [100, 200] and set(result["alike"]["layers"]) == set(LAYERS)


def test_diff_reports_incomparable_and_damaged_concepts(library, capsys):
    assert run(library, "concepts", "diff", "duck", "cat") == 0
    assert "different models, so their weights cannot be compared" in capsys.readouterr().out
    assert run(library, "concepts", "diff", "duck-v1", "duck-v1") == 0
    assert "Their cards are the same." in capsys.readouterr().out
    path = library.find(library.entries()[-1].token).path
    path.write_bytes(path.read_bytes()[:-100])
    assert run(library, "concepts", "diff", "duck", "ink") == 2
    assert "<you/ink-v1> is damaged" in capsys.readouterr().err


def test_check_prints_conflicts_between_concepts(library, capsys):
    assert run(library, "concepts", "check", "duck", "<you/ink>", "cat") == 0
    output = capsys.readouterr().out
    assert (
        "no base can generate both" in output
        and "Both are a duck" in output
        and "Then try <me/duck-v2:0.8> <you/ink-v1:0.8>" in output
        and output.count("\n") == 3
    )
    assert run(library, "concepts", "check", "duck-v1", "duck-v2", "--json") == 0
    [conflict] = json.loads(capsys.readouterr().out)
    assert conflict["kind"] == "subject" and conflict["mixing"] == "composed"
    assert {"concepts", "problem", "hard", "strengths"} < conflict.keys()
    assert run(library, "concepts", "check", "duck") == 2
    assert run(library, "concepts", "check", "duck", "nowhere") == 2
    assert "No concept <nowhere>" in capsys.readouterr().err
