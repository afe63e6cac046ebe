"""Out and in again: every concept by every format, as a folder, all files at once, one by one, and page to page.

The answer is the concept that went out: the same numbers, the same token, the same card where the format has a place
for one, in one concept; or a refusal in words. Tensors are small where the base lets them be.
"""

import dataclasses
import io
import itertools
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save

from sdpersonal.app.backend.library.import_export import import_uploads
from sdpersonal.app.backend.workspace import Workspace
from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.exporters import FORMATS, export
from sdpersonal.concepts.importing import find_sources, import_all, join_parts
from sdpersonal.concepts.library import Library
from sdpersonal.concepts.thumbnail import make_thumbnail
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support.samples import card

T = Token.parse
WIDTHS = {"tiny": {"clip_l": 192}, "sd1": {"clip_l": 768}, "sd2": {"clip_l": 1024}}
WIDTHS["sdxl"] = {"clip_l": 768, "clip_g": 1280}
CONTEXT = {"tiny": 192, "sd1": 768, "sd2": 1024, "sdxl": 2048}  # width of what cross attention reads
BLOCKS = {"tiny": ("down_blocks_1_attentions_0", 96), "sdxl": ("input_blocks_4_1", 32)}
HOLDS = ("vectors", "lora", "both")
FILLED = {
    "title": "Toy duck",
    "description": "A yellow duck: *rubber*, <b>big</b>.",
    "kind": "style",
    "author": "Jo",
    "license": "CC-BY-4.0",
    "consent_note": "asked",
    "trigger_words": ("sks duck",),
    "prompts": ("a photo of <me/toy-duck>",),
    "recipe": {"lr": 0.001, "seed": 3},
    "scores": {"likeness": 0.5},
}


def made(base: str, holds: str, kind: str = "full", rows: int = 1, token: str = "<me/toy-duck>") -> Concept:
    """kind: "full" has thumbnail, card and trigger words, "bare" none of them."""
    draw = np.random.default_rng([len(base), len(holds), rows])
    fields = {"base": base, "title": ""} | ({"class_noun": "duck"} if kind == "bare" else FILLED)
    numbers = {key: (0.02 * draw.normal(size=(rows, width))).astype(np.float32) for key, width in WIDTHS[base].items()}
    block, width = BLOCKS.get(base, ("down_blocks_0_attentions_0", 32))
    names = {f"lora_unet_{block}_transformer_blocks_0_attn2_to_k": (2, CONTEXT[base], width)}
    names[f"lora_unet_{block}_transformer_blocks_0_attn2_to_v"] = (3, CONTEXT[base], width)  # another rank
    names[f"lora_unet_{block}_transformer_blocks_0_attn1_to_q"] = (2, width, width)
    layers = {
        name: LoraLayer(
            draw.normal(size=(rank, width)).astype(np.float16), draw.normal(size=(out, rank)).astype(np.float16), 1.7
        )
        for name, (rank, width, out) in names.items()
    }
    return Concept(
        T(token),
        card(**fields),
        numbers if holds != "lora" else {},
        Lora(layers) if holds != "vectors" else None,
        make_thumbnail(Image.new("RGB", (24, 24), "red")) if kind == "full" else None,
    )


def laid(concept: Concept, format: str, place: Path) -> Path:
    for name, data in export(concept, format).files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin"))


def taken_in(library: Library, *locations: Path):
    return list(import_all(library, join_parts([source for path in locations for source in find_sources(str(path))])))


def check(library: Library, original: Concept, format: str, texts: bool = False) -> None:
    """texts: what stands beside the tensors was there too."""
    (entry,) = library.entries()
    loaded = library.get(entry.token)
    assert loaded.token == dataclasses.replace(original.token, version=1)
    expected = dataclasses.replace(original, lora=None) if format == "sd-concepts-library" else original
    assert loaded.identity == expected.identity and not loaded.part_of
    if format == "sd-concepts-library":
        assert loaded.card.base == original.card.base and (not texts or loaded.card.kind == original.card.kind)
        assert not texts or loaded.card.license == original.card.license.lower()
        assert not texts or loaded.card.title == (original.card.title or "toy-duck")
    else:
        assert loaded.card == original.card.model_copy(update={"token": str(loaded.token)})
        assert bool(loaded.thumbnail) == bool(original.thumbnail)


MATRIX = [
    *itertools.product(("tiny", "sdxl"), HOLDS, ("full",), (1,)),
    *itertools.product(("sd1", "sd2"), ("vectors", "both"), ("bare",), (8,)),
    *(("sd1", "lora", "bare", 1), ("sd2", "lora", "full", 1), ("sd1", "both", "full", 1), ("sdxl", "both", "bare", 8)),
]  # each base with each part, and each of these with and without card and thumbnail, of 1 and 8 vectors


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("base, holds, kind, rows", MATRIX)
def test_exported_concepts_can_be_imported_again_without_loss(base, holds, kind, rows, format, tmp_path):
    original = made(base, holds, kind, rows)
    try:
        folder = laid(original, format, tmp_path / "sent to me")
    except UserError as error:
        assert format == "sd-concepts-library" and error.hint and (holds == "lora" or base == "sdxl")
        return
    whole = Library(tmp_path / "by folder")
    assert [outcome.status for outcome in taken_in(whole, folder)] == ["imported"]
    check(whole, original, format, texts=True)
    assert [outcome.status for outcome in taken_in(whole, folder)] == ["here already"]
    at_once = Library(tmp_path / "all files at once")
    taken_in(at_once, *weights(folder))
    check(at_once, original, format)
    for number, order in enumerate((weights(folder), weights(folder)[::-1])):
        one_by_one = Library(tmp_path / f"one by one {number}")
        outcomes = [outcome for path in order for outcome in taken_in(one_by_one, path)]
        pair = base == "sdxl" and format == "diffusers" and holds != "lora"
        messages = [str(outcome.error) for outcome in outcomes if outcome.error]
        assert len(messages) == 2 * pair and not any("other content" in item for item in messages), messages
        if not pair:
            check(one_by_one, original, format)
        elif holds == "both":
            assert one_by_one.entries()[0].lora_rank == 3
            taken_in(one_by_one, folder)
            check(one_by_one, original, format)


@pytest.mark.parametrize("format", sorted(FORMATS.keys() - {"sd-concepts-library"}))
@pytest.mark.parametrize("base", ["tiny", "sdxl"])
def test_files_uploaded_to_the_app_are_imported_as_one_concept(base, format, tmp_path):
    """The browser sends files without their folders."""
    original = made(base, "both")
    house = Workspace(Library(tmp_path / "concepts"), tmp_path / "out", tmp_path / "runs", tmp_path / "shown")
    folder = laid(original, format, tmp_path / "sent")
    dropped = []
    for number, path in enumerate(path for path in folder.rglob("*") if path.is_file()):
        place = house.served_dir / f"upload{number}" / path.name
        place.parent.mkdir(parents=True)
        place.write_bytes(path.read_bytes())
        dropped.append(str(place))
    (came,) = import_uploads(house, dropped)
    assert came.status == "imported"
    check(house.library, original, format)


@pytest.mark.parametrize("format", ["a1111", "comfyui", "invokeai", "onetrainer", "diffusers", "kohya"])
def test_renamed_exports_are_imported_without_loss(format, tmp_path):
    folder = laid(made("sd1", "both"), format, tmp_path / "sent")
    for number, path in enumerate(weights(folder)):
        (tmp_path / f"mess {number}").mkdir()
        path.rename(tmp_path / f"mess {number}" / f"{chr(97 + number)}.safetensors")
    library = Library(tmp_path / "concepts")
    assert [outcome.status for outcome in taken_in(library, *sorted(tmp_path.glob("mess*")))] == ["imported"]
    check(library, made("sd1", "both"), format)


@pytest.mark.parametrize("format", ["a1111", "comfyui", "invokeai", "kohya", "onetrainer"])
def test_exports_without_headers_keep_their_weights(format, tmp_path):
    """Then an embedding and a LoRA of one name are one, without card; the numbers are the same."""
    original = made("sd1", "both")
    folder = laid(original, format, tmp_path / "sent")
    for path in weights(folder):
        path.write_bytes(save(load(path.read_bytes())))
    library = Library(tmp_path / "concepts")
    assert [outcome.status for outcome in taken_in(library, folder)] == ["imported"]
    loaded = library.get(T("<imported/me-toy-duck>"))
    assert np.array_equal(loaded.vectors["clip_l"], original.vectors["clip_l"])
    for name, layer in loaded.lora.layers.items():
        other = original.lora.layers[name]
        change = [(item.up.astype(np.float64) @ item.down) * item.alpha / item.rank for item in (layer, other)]
        np.testing.assert_allclose(*change, rtol=1e-6)
    alone = Library(tmp_path / "one by one")
    first, second = (outcome for path in weights(folder) for outcome in taken_in(alone, path))
    assert first.status == "imported"
    assert format == "kohya" or (
        "is already in the library with" in second.error.message and "alone" in second.error.message
    )


def test_changed_weights_make_a_different_concept(tmp_path):
    """A header's word for a file whose numbers are others is not taken."""
    from safetensors import safe_open

    folder = laid(made("sd1", "vectors"), "diffusers", tmp_path / "sent")
    (path,) = weights(folder)
    with safe_open(path, "np") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    path.write_bytes(save({key: -value for key, value in tensors.items()}, header))
    library = Library(tmp_path / "concepts")
    taken_in(library, folder)
    loaded = library.get(T("<me/toy-duck>"))
    assert loaded.card.recipe == {} and loaded.identity != made("sd1", "vectors").identity


# --- changes that are no plain LoRA ---


def other_kind(kind: str, base: str) -> Concept:
    """A word and a layer that is changed in that way."""
    draw, width = np.random.default_rng(len(kind)), {"sd1": 320, "sdxl": 640}[base]
    block = {"sd1": "down_blocks_0_attentions_0", "sdxl": "input_blocks_4_1"}[base]

    def rows(*shape: int) -> np.ndarray:
        return (0.05 * draw.normal(size=shape)).astype(np.float32)

    tensors = {
        "LoHa": {f"hada_w{i}_{part}": rows(*(width, 2)[:: 1 if part == "a" else -1]) for i in (1, 2) for part in "ab"},
        "LoKr": {"lokr_w1": rows(8, 8), "lokr_w2": rows(width // 8, width // 8)},
        "DoRA": {"lora_up.weight": rows(width, 2), "lora_down.weight": rows(2, width), "dora_scale": rows(width, 1)},
        "full weights": {"diff": rows(width, width), "diff_b": rows(width)},
        "OFT": {"oft_blocks": rows(width // 8, 8, 8), "alpha": np.float32(0.001).reshape(())},
    }[kind]
    original = made(base, "vectors")
    lora = Lora({}, {f"lora_unet_{block}_transformer_blocks_0_attn1_to_out_0": tensors})
    return dataclasses.replace(original, lora=lora)


EXACT = {"native", "a1111", "comfyui", "kohya", "invokeai"}
REFUSED = {
    ("DoRA", "diffusers"), ("DoRA", "onetrainer"), ("OFT", "diffusers"), ("OFT", "onetrainer"), ("OFT", "invokeai"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA", "full weights", "OFT"])
@pytest.mark.parametrize("base", ["sd1", "sdxl"])
def test_non_plain_loras_round_trip_or_are_refused_or_truncated(base, kind, tmp_path):
    original = other_kind(kind, base)
    for format in sorted(FORMATS.keys() - {"sd-concepts-library"}):
        if (kind, format) in REFUSED:
            with pytest.raises(UserError, match=kind) as refused:
                export(original, format)
            assert refused.value.hint
            continue
        notes = " ".join(export(original, format).notes)
        folder = laid(original, format, tmp_path / format)
        library = Library(tmp_path / f"from {format}")
        assert [outcome.status for outcome in taken_in(library, folder)] == ["imported"], format
        if format in EXACT:
            check(library, original, format, texts=True)
            assert library.entries()[0].kinds == kind and "The LoRA holds" not in notes
            continue
        again = library.get(T("<me/toy-duck>"))
        assert np.array_equal(again.vectors["clip_l"], original.vectors["clip_l"])
        [layer], [tensors] = again.lora.layers.values(), original.lora.changes.values()
        whole, cut = changed(tensors), layer.up @ layer.down * layer.alpha / layer.rank
        share = 1 - ((whole - cut) ** 2).sum() / (whole**2).sum()
        messages = re.search(r"The LoRA holds ([\d.]+)%", notes)
        assert abs(share - (float(messages[1]) / 100 if messages else 1)) < 0.002, format
        assert ("biases and norms are left out" in notes) == ("diff_b" in tensors)


def changed(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """What LoHa, LoKr or full weights add to a weight, after their papers."""
    if "diff" in tensors:
        return tensors["diff"]
    if "lokr_w1" in tensors:
        return np.kron(tensors["lokr_w1"], tensors["lokr_w2"])
    return (tensors["hada_w1_a"] @ tensors["hada_w1_b"]) * (tensors["hada_w2_a"] @ tensors["hada_w2_b"])


# --- library to library -----------------------------------------------------------------------------------------------


def test_a_whole_library_can_be_imported_into_another(tmp_path):
    """Several versions, parts, names that need care, and files with a header of every length."""
    original = Library(tmp_path / "mine")
    for seed, holds in enumerate(("vectors", "both", "lora")):
        concept = made("tiny", holds, rows=seed + 1)
        original.add(concept)
        original.add(dataclasses.replace(concept, token=T(f"<you/a-{seed}-b>")))
    lengths = set()
    for number in range(40):  # a title of another length each: the header grows by 8 bytes
        concept = made("tiny", "vectors", "bare", token=f"<me/x{number}>")
        concept = dataclasses.replace(concept, card=concept.card.model_copy(update={"description": "x" * 4 * number}))
        path = original.find(original.add(concept)).path
        lengths.add(struct.unpack("<Q", path.read_bytes()[:8])[0] & 0xFF)
    assert 0x80 in lengths  # what begins like a pickle is among them
    before = {entry.token: entry.identity for entry in original.entries()}
    by_folder, by_file = Library(tmp_path / "by folder"), Library(tmp_path / "by file")
    assert all(outcome.status == "imported" for outcome in taken_in(by_folder, original.folder))
    assert all(
        outcome.status == "imported" for entry in original.entries() for outcome in taken_in(by_file, entry.path)
    )
    for other in (by_folder, by_file):
        assert {entry.token: entry.identity for entry in other.entries()} == before
        assert [entry.card for entry in other.entries()] == [entry.card for entry in original.entries()]
        assert other.verify() == []


def test_an_exported_part_still_joins_its_other_part(tmp_path):
    """A part alone can be exported and imported again, and still finds its other part."""
    original = made("sd1", "both")
    first, second = weights(laid(original, "a1111", tmp_path / "sent"))
    library = Library(tmp_path / "concepts")
    taken_in(library, first)
    again = laid(library.get(T("<me/toy-duck>")), "native", tmp_path / "again")
    other = Library(tmp_path / "other")
    taken_in(other, again)
    taken_in(other, second)
    check(other, original, "a1111")
    with pytest.raises(UserError, match="other content"):  # another concept of that name joins nothing
        other.add_imported(dataclasses.replace(made("sd1", "vectors", rows=3), token=T("<me/toy-duck>")))


def test_a_part_stores_the_identity_of_its_whole_in_the_header():
    data = concept_to_bytes(dataclasses.replace(made("tiny", "vectors"), part_of="a" * 64))
    assert json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]["sdpersonal.whole"] == "a" * 64
    assert io.BytesIO(data).read(8)[4:] == bytes(4)
