"""The concept's file: what goes in comes out, other readers agree, and nothing hostile gets past the door."""

import base64
import dataclasses
import getpass
import hashlib
import io
import json
import socket
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from PIL import Image, PngImagePlugin

from sdpersonal.concepts.concept import Concept, Lora, LoraLayer
from sdpersonal.concepts.concept_file import concept_from_bytes, concept_to_bytes, read_header
from sdpersonal.concepts.strict_safetensors import MAX_HEADER, MAX_TENSORS, parse_layout, read_tensor, serialize
from sdpersonal.concepts.thumbnail import make_thumbnail, reencode_thumbnail
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support.samples import LAYER, card, concept, embedding, lora, thumbnail, vectors

SDXL = {"clip_l": vectors(1, 3, 768), "clip_g": vectors(2, 3, 1280)}
KINDS = {
    "embedding": embedding(),
    "lora": concept(vectors={}, card=card(trigger_words=("sks duck",))),
    "both": concept("<a-b/c-d-v7>"),
    "half": concept(lora=lora(dtype=np.float16)),
    "convolution": concept(
        lora=Lora(
            {
                "lora_unet_conv_in": LoraLayer(
                    vectors(3, 2, 36).reshape(2, 4, 3, 3), vectors(4, 8, 2)[..., None, None], 2.0
                )
            }
        )
    ),
    "sd1": Concept(Token("me", "duck"), card(base="sd1"), {"clip_l": vectors(0, 1, 768)}),
    "sdxl": Concept(Token("me", "duck"), card(base="sdxl"), SDXL),
    "sdxl both": Concept(Token("me", "duck"), card(base="sdxl"), SDXL, lora(names=("lora_te1_x", "lora_te2_x", LAYER))),
}


@pytest.fixture(params=KINDS)
def example(request):
    return KINDS[request.param]


def same(first: Concept, other: Concept) -> bool:
    def numbers(example):
        yield from sorted(example.vectors.items())
        for name, layer in sorted(example.lora.layers.items() if example.lora else ()):
            yield from [(name + "d", layer.down), (name + "u", layer.up), (name + "a", np.float32(layer.alpha))]

    pairs = list(zip(numbers(first), numbers(other), strict=True))
    facts = (first.token, first.card, first.thumbnail) == (other.token, other.card, other.thumbnail)
    return facts and all(a == b and x.dtype == y.dtype and np.array_equal(x, y) for (a, x), (b, y) in pairs)


def metadata(data: bytes) -> dict[str, str]:
    """By the independent reader."""
    (path := Path("read-by-safetensors")).write_bytes(data)
    with safetensors.safe_open(path, "np") as file:
        return file.metadata()


def raw(header: object, payload: bytes = b"") -> bytes:
    """A safetensors file made by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def tensor(begin: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# --- there and back ---------------------------------------------------------------------------------------------------


def test_written_concepts_are_read_without_loss(example):
    assert same(concept_from_bytes(concept_to_bytes(example), "x"), example)


def test_the_same_concept_gives_the_same_bytes(example):
    data = concept_to_bytes(example)
    assert concept_to_bytes(concept_from_bytes(data, "x")) == data
    turned = dataclasses.replace(example, vectors=dict(reversed(example.vectors.items())))
    assert concept_to_bytes(turned) == data


def test_the_safetensors_library_reads_the_same_tensors(example):
    tensors = safetensors.numpy.load(concept_to_bytes(example))
    expected = {}
    one_encoder = {"clip_l": "emb_params"} if example.lora is None else {"clip_l": "string_to_param.*"}
    prefix = f"bundle_emb.{example.token.owner}-{example.token.name}." if example.lora else ""
    for key, rows in example.vectors.items():
        expected[prefix + (key if example.card.base == "sdxl" else one_encoder[key])] = rows
    for name, layer in example.lora.layers.items() if example.lora else ():
        expected[f"{name}.lora_down.weight"] = layer.down
        expected[f"{name}.lora_up.weight"] = layer.up
        expected[f"{name}.alpha"] = np.float32(layer.alpha)
    assert tensors.keys() == expected.keys()
    assert all(
        tensors[key].dtype == expected[key].dtype and np.array_equal(tensors[key], expected[key]) for key in expected
    )


def test_identity_is_the_sha256_of_the_payload(example):
    data = concept_to_bytes(example)
    [length] = struct.unpack("<Q", data[:8])
    digest = hashlib.sha256(data[8 + length :]).hexdigest()
    assert example.identity == digest
    assert metadata(data)["modelspec.hash_sha256"] == "0x" + digest


def test_identity_does_not_depend_on_name_or_card(example):
    renamed = dataclasses.replace(
        example, token=Token("zz", "other", 3), card=card(base=example.card.base, title="Other")
    )
    assert renamed.identity == example.identity != dataclasses.replace(KINDS["both"], lora=lora(9)).identity


def test_the_header_contains_metadata_for_other_programs():
    header = metadata(concept_to_bytes(KINDS["both"]))
    assert (
        header.items()
        >= {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": "sdpersonal-tiny/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.title": "Toy duck",
            "modelspec.resolution": "128x128",
            "modelspec.date": "2026-01-31T12:00:00Z",
            "modelspec.trigger_phrase": "a-b-c-d",
            "modelspec.prediction_type": "epsilon",
            "ss_v2": "False",
            "ss_network_module": "networks.lora",
            "ss_network_dim": "4",
            "ss_network_alpha": "2",
            "sshs_model_hash": KINDS["both"].identity,
        }.items()
    )
    assert base64.b64decode(header["modelspec.thumbnail"].removeprefix("data:image/webp;base64,")) == thumbnail()
    assert json.loads(header["sdpersonal.card"])["class_noun"] == "duck"
    assert list(header) and all(isinstance(value, str) for value in header.values())


@pytest.mark.parametrize(
    ("base", "recipe", "architecture", "kohya"),
    [
        ("sd1", {}, "stable-diffusion-v1", "sd_v1"),
        ("sd2", {"resolution": 512}, "stable-diffusion-v2-512", "sd_v2"),
        ("sd2", {"prediction_type": "v_prediction", "resolution": 768}, "stable-diffusion-v2-768-v", "sd_v2_v"),
    ],
)
def test_the_header_names_the_architecture(base, recipe, architecture, kohya):
    header = metadata(concept_to_bytes(Concept(Token("me", "x"), card(base=base, recipe=recipe), lora=lora())))
    assert header["modelspec.architecture"] == architecture + "/lora"
    assert header["ss_base_model_version"] == kohya
    side = recipe.get("resolution", 512)
    assert header["modelspec.resolution"] == f"{side}x{side}"


def test_header_keys_are_sorted(example):
    data = concept_to_bytes(example)
    [length] = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert list(header) == sorted(header) and list(header["__metadata__"]) == sorted(header["__metadata__"])
    assert length % 8 == 0


def test_the_header_alone_contains_the_data_of_a_listing(tmp_path, example):
    path = tmp_path / "x.safetensors"
    path.write_bytes(concept_to_bytes(example))
    header = read_header(path)
    assert (header.token, header.card, header.thumbnail, header.identity) == (
        example.token,
        example.card,
        example.thumbnail,
        example.identity,
    )
    assert header.vectors == len(next(iter(example.vectors.values()), ()))
    assert header.lora_rank == (example.lora.rank if example.lora else 0)
    assert header.payload_size == len(path.read_bytes()) - struct.unpack("<Q", path.read_bytes()[:8])[0] - 8


def test_bfloat16_is_read_exactly():
    numbers = np.array([[1.5, -2.0, 2.0**-70, 65280.0]], np.float32)  # none needs more than 8 significant bits
    payload = (numbers.view("<u4") >> 16).astype("<u2").tobytes()
    data = raw({"t": tensor(0, 8, [1, 4], "BF16")}, payload)
    assert np.array_equal(read_tensor(data, parse_layout(data, "x"), "t"), numbers)


def test_vectors_are_copied_and_lora_weights_are_views_of_the_file(example):
    loaded = concept_from_bytes(concept_to_bytes(example), "x")
    for numbers in loaded.vectors.values():
        numbers += 1  # torch.from_numpy warns about others
    for layer in loaded.lora.layers.values() if loaded.lora else ():
        assert layer.down.flags.aligned and not layer.down.flags.writeable and not layer.up.flags.owndata


# --- hostile files ----------------------------------------------------------------------------------------------------

GOOD = {"t": tensor(0, 4, [1])}
HOSTILE = {
    "empty": b"",
    "cut length": b"\x01\0\0",
    "length 2^63": struct.pack("<Q", 2**63) + b"{}",
    "length 1000 of 40": struct.pack("<Q", 1000) + b"{" + b" " * 31,
    "99 MB header": struct.pack("<Q", 99_000_000) + b"{" + b" " * 99_000_000,
    "no tensors": raw({}),
    "only metadata": raw({"__metadata__": {"a": "b"}}),
    "overlap": raw({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, bytes(12)),
    "hole": raw({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, bytes(12)),
    "late start": raw({"a": tensor(4, 8, [1])}, bytes(8)),
    "trailing zip": raw(GOOD, bytes(4) + b"PK\x03\x04"),
    "cut": raw(GOOD, bytes(3)),
    "shape does not fit": raw({"t": tensor(0, 4, [2])}, bytes(4)),
    "shape overflow": raw({"t": tensor(0, 4, [2**31, 2**31, 2**31, 2**31])}, bytes(4)),
    "shape wraps to fit": raw({"t": tensor(0, 0, [2**32, 2**32])}),
    "negative": raw({"t": tensor(4, 0, [-1])}, bytes(4)),
    "floats": raw({"t": tensor(0, 4, [1.0])}, bytes(4)),
    "bools": raw({"t": tensor(False, 4, [True])}, bytes(4)),
    "endless digits": raw(b'{"t":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,4]}}', bytes(4)),
    "six axes": raw({"t": tensor(0, 4, [1] * 6)}, bytes(4)),
    "duplicate keys": raw(
        b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "duplicate inner keys": raw(b'{"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "many tensors": raw(
        {f"{i}": tensor(4 * i, 4 * i + 4, [1]) for i in range(MAX_TENSORS + 1)}, bytes(4 * MAX_TENSORS + 4)
    ),
    "300k empty tensors": raw({f"{i}": tensor(0, 0, [0]) for i in range(300_000)}),
    "empty tensor": raw({"t": tensor(0, 0, [0, 768])}),
    "metadata not text": raw({"__metadata__": {"a": 1}, **GOOD}, bytes(4)),
    "metadata a list": raw({"__metadata__": ["a"], **GOOD}, bytes(4)),
    "not UTF-8": raw(b'{"\xff":' + json.dumps(GOOD["t"]).encode() + b"}", bytes(4)),
    "deep objects": raw(b'{"a":' * 100_000),
    "deep lists": raw(b'{"t":' + b"[" * 200_000 + b"]" * 200_000 + b"}", bytes(4)),
    "nested pairs": raw(b"[" + b'["a"],' * 150_000 + b"0]"),
    "a list": raw([GOOD]),
    "leading space": raw(b" " + json.dumps(GOOD).encode(), bytes(4)),
    "NaN": raw(b'{"t":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "F64": raw({"t": tensor(0, 8, [1], "F64")}, bytes(8)),
    "I8": raw({"t": tensor(0, 1, [1], "I8")}, b"a"),
    "dtype a list": raw({"t": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "unknown entry": raw({"t": GOOD["t"] | {"url": "http://evil"}}, bytes(4)),
    "odd name": raw({"a\x1b[31m": GOOD["t"]}, bytes(4)),
    "right to left": raw({"\u202egnp": GOOD["t"]}, bytes(4)),
    "long name": raw({"a" * 257: GOOD["t"]}, bytes(4)),
    "no name": raw({"": GOOD["t"]}, bytes(4)),
    "html": b"<!doctype html><title>Not found</title>",
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_quickly_with_a_message(case):
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        concept_from_bytes(HOSTILE[case], "evil\x1b.safetensors")
    assert time.process_time() - began < 0.5  # 0.05 s on an idle machine
    assert caught.value.message.startswith("evil\\x1b.safetensors is refused: ")
    assert "\n" not in caught.value.message and len(caught.value.message) < 250


def test_the_header_reader_refuses_the_same_files(tmp_path):
    for number, (case, data) in enumerate(HOSTILE.items()):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(data)
        with pytest.raises(UserError, match="is refused"):
            read_header(path)
            pytest.fail(case)


def test_foreign_safetensors_files_are_not_concept_files(tmp_path):
    data = raw(GOOD, bytes(4))
    assert parse_layout(data, "x").tensors["t"].shape == (1,)
    with pytest.raises(UserError, match="not a concept file of sdpersonal"):
        concept_from_bytes(data, "x")


def test_flipped_bits_are_detected():
    data = concept_to_bytes(embedding())
    for position in range(0, len(data), 3):
        spoiled = bytearray(data)
        spoiled[position] ^= 1 << (position // 3 % 8)
        with pytest.raises(UserError):
            concept_from_bytes(bytes(spoiled), "x")


def forged(change=lambda header: None, payload: bytes | None = None, of: Concept | None = None) -> bytes:
    """A file whose sums are right and whose content is whatever `change` makes of it."""
    data = concept_to_bytes(of or embedding())
    [length] = struct.unpack("<Q", data[:8])
    header, payload = json.loads(data[8 : 8 + length]), data[8 + length :] if payload is None else payload
    facts = header["__metadata__"]
    facts["modelspec.hash_sha256"] = "0x" + hashlib.sha256(payload).hexdigest()
    facts["sdpersonal.header_sha256"] = "0" * 64
    change(header)
    text = json.dumps(header, separators=(",", ":"), sort_keys=True)
    head = struct.pack("<Q", len(text)) + text.encode()
    return head.replace(b"0" * 64, hashlib.sha256(head).hexdigest().encode()) + payload


def test_forged_files_with_valid_checksums_are_read():
    assert same(concept_from_bytes(forged(), "x"), embedding())


def test_a_newer_format_version_is_refused_with_a_message():
    with pytest.raises(UserError, match="newer sdpersonal"):
        concept_from_bytes(forged(lambda header: header["__metadata__"].update({"sdpersonal.format": "2"})), "x")


@pytest.mark.parametrize(
    "name", ["../../etc/x", "unet.conv_in.weight", "lora_unet_x.hada_w1_a", "bundle_emb.you-duck.clip_l"]
)
def test_unknown_tensors_are_refused_by_name(name):
    def add(header):
        header[name] = tensor(2 * 192 * 4, 2 * 192 * 4 + 4, [1])

    with pytest.raises(UserError, match="it has unknown tensors " + name):
        concept_from_bytes(forged(add, vectors().tobytes() + bytes(4)), "x")


# --- vectors and weights that cannot work -----------------------------------------------------------------------------


def spoiled(at: float) -> np.ndarray:
    rows = vectors(rows=3)
    rows[1, 7] = at
    return rows


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (spoiled(np.nan), "Row 1 .* not finite"),
        (spoiled(-np.inf), "Row 1 .* not finite"),
        (vectors().astype(np.float64), "float32"),
        (vectors().astype(np.int8), "float32"),
        (vectors()[0], "float32"),
        (np.zeros((0, 192), np.float32), "1 to 64"),
        (vectors(rows=65), "1 to 64"),
        (np.zeros((10_000, 192), np.float32), "1 to 64"),
    ],
)
def test_invalid_vectors_are_refused(rows, says):
    with pytest.raises(UserError, match=says):
        concept(vectors={"clip_l": rows})


def test_a_non_finite_row_in_a_file_is_refused_with_its_number():
    payload = spoiled(np.nan).tobytes()
    with pytest.raises(UserError, match=r"x.safetensors is refused. Row 1"):
        concept_from_bytes(
            forged(lambda header: header.update(emb_params=tensor(0, len(payload), [3, 192])), payload), "x.safetensors"
        )


@pytest.mark.parametrize(
    ("base", "given"),
    [
        ("sd1", {"clip_l": vectors(width=1024)}),
        ("sd2", {"clip_l": vectors(width=768)}),
        ("sdxl", {"clip_l": vectors(width=768)}),
        ("sdxl", {"clip_l": vectors(width=768), "clip_g": vectors(width=768)}),
        ("sdxl", {"clip_l": vectors(width=768), "clip_g": vectors(rows=3, width=1280)}),
        ("sd1", SDXL),
        ("tiny", {"t5": vectors()}),
    ],
)
def test_vectors_of_a_different_base_are_refused(base, given):
    with pytest.raises(UserError):
        Concept(Token("me", "x"), card(base=base), given)


def layer(down=(4, 32), up=(16, 4), alpha=4.0, value=0.5, dtype=np.float32) -> LoraLayer:
    return LoraLayer(np.full(down, value, dtype), np.full(up, value, dtype), alpha)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (layer(alpha=1e9), "alpha 1e[+]09 with rank 4"),
        (layer(alpha=257), "out of bounds"),
        (layer(alpha=0.0), "out of bounds"),
        (layer(alpha=-1.0), "out of bounds"),
        (layer(alpha=np.nan), "out of bounds"),
        (layer(up=(16, 5)), "do not multiply"),
        (layer(down=(4,)), "do not multiply"),
        (layer(down=(4, 32, 3, 3)), "do not multiply"),
        (layer(down=(4, 32, 3, 3), up=(16, 4, 3, 3)), "do not multiply"),
        (layer(down=(0, 32), up=(16, 0)), "empty"),
        (layer(value=np.nan), "not finite"),
        (layer(value=np.inf, dtype=np.float16), "not finite"),
        (layer(dtype=np.float64), "float32 or float16"),
    ],
)
def test_invalid_loras_are_refused(bad, says):
    with pytest.raises(UserError, match=f"LoRA layer {LAYER}: .*{says}"):
        concept(lora=Lora({LAYER: bad}))


@pytest.mark.parametrize(
    ("base", "name"), [("sd1", "lora_te1_x"), ("sdxl", "lora_te_x"), ("sd1", "../x"), ("sd1", "lora_unet_a.b")]
)
def test_layers_of_a_different_base_are_refused(base, name):
    with pytest.raises(UserError, match="not a LoRA layer of " + base):
        Concept(Token("me", "x"), card(base=base), lora=Lora({name: layer()}))


def test_an_incomplete_layer_is_refused():
    whole = concept(vectors={}, lora=lora(names=(LAYER,)))
    tensors = whole.tensors()
    del tensors[LAYER + ".alpha"]
    data = b"".join(serialize(tensors, {"a": "b"})[1:])

    def drop(header):
        del header[LAYER + ".alpha"]
        header[LAYER + ".lora_down.weight"] = tensor(0, 512, [4, 32])
        header[LAYER + ".lora_up.weight"] = tensor(512, 768, [16, 4])

    with pytest.raises(UserError, match="lacks its alpha"):
        concept_from_bytes(forged(drop, data, whole), "x")


def test_empty_concepts_and_invalid_tokens_are_refused():
    with pytest.raises(UserError, match="neither vectors nor a LoRA"):
        concept(vectors={}, lora=None)
    with pytest.raises(UserError, match="no owner"):
        concept("<duck>")
    for token in (Token("me", "duck-v2"), Token("me", "../x"), Token("Me", "x"), Token("me", "con"), Token("..", "x")):
        with pytest.raises(UserError):
            Concept(token, card(), {"clip_l": vectors()})


# --- cards ------------------------------------------------------------------------------------------------------------


def test_control_characters_are_removed_from_a_card():
    result = card(title="a\x1b[31m\u202eb\x00c\r\nd\u200b", prompts=("x\ty",), author=" \udcff me ")
    assert (result.title, result.prompts, result.author) == ("a[31mbc  d", ("x y",), "me")


def test_markup_in_a_card_is_preserved_as_text():
    text = "<img src=x onerror=alert(1)> [x](javascript:1) ![](http://t/p.png) </textarea>"
    assert concept_from_bytes(concept_to_bytes(concept(card=card(description=text))), "x").card.description == text


@pytest.mark.parametrize(
    "fields",
    [
        {"title": "x" * 101},
        {"description": "x" * 2001},
        {"prompts": ["x"] * 17},
        {"prompts": "abc"},
        {"trigger_words": ["x" * 101]},
        {"title": ["a"]},
        {"title": 7},
        {"kind": "animal"},
        {"base": "sd3"},
        {"steps": -1},
        {"steps": True},
        {"steps": 1.5},
        {"steps": "7"},
        {"created": "yesterday"},
        {"scores": {"a": float("nan")}},
        {"scores": {"a": float("inf")}},
        {"recipe": {"a": float("nan")}},
        {"recipe": {"a": [1]}},
        {"recipe": {"a": {"b": 1}}},
        {"recipe": {"A b": 1}},
        {"recipe": {f"k{i}": 1 for i in range(65)}},
        {"recipe": {"a": "x" * 501}},
        {"html": "x"},
        {"__class__": "x"},
        {"model_config": {}},
    ],
)
def test_invalid_card_fields_are_refused(fields):
    with pytest.raises(UserError, match=r"^The card's "):
        card(**fields)


def test_scalars_of_a_recipe_keep_their_type():
    recipe = {"seed": 7, "lr": 1e-4, "flip": True, "note": "x", "crop": None, "one": 1.0}
    loaded = concept_from_bytes(concept_to_bytes(concept(card=card(recipe=recipe))), "x").card.recipe
    assert loaded == recipe and [type(loaded[key]) for key in recipe] == [type(value) for value in recipe.values()]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x" * 200_001, "too long"),
        ('"' + "x" * 150_000 + '"', "not a JSON object"),
        ("[" * 90_000, "nested|cannot be read"),
        ('{"a":' * 30_000, "nested|cannot be read"),
        ('{"base":"tiny","steps":NaN}', "NaN"),
        ('{"base":"tiny","base":"tiny"}', "twice"),
        ('{"base":"tiny","evil":1}', "evil"),
        ('{"base":"tiny","title":["a"]}', "title"),
        ('{"title":"x"}', "base"),
        ("", "cannot be read"),
    ],
)
def test_hostile_cards_are_refused(text, says):
    with pytest.raises(UserError, match=says) as caught:
        concept_from_bytes(forged(lambda header: header["__metadata__"].update({"sdpersonal.card": text})), "x")
    assert str(caught.value).startswith("x is refused") and len(caught.value.message) < 300


@pytest.mark.parametrize("word", ["<Mу/cat>", "<me/../x>", "<|endoftext|>", "<duck>", "", "<a/b:2>", "<a/con>"])
def test_a_card_with_an_invalid_token_is_refused(word):
    fields = json.loads(card().model_dump_json()) | {"token": word}
    with pytest.raises(UserError):
        concept_from_bytes(
            forged(lambda header: header["__metadata__"].update({"sdpersonal.card": json.dumps(fields)})), "x"
        )


def test_card_text_that_resembles_a_checksum_is_preserved():
    odd = concept(card=card(title="0" * 64, description='"sdpersonal.header_sha256":"' + "0" * 64 + '"'))
    assert same(concept_from_bytes(concept_to_bytes(odd), "x"), odd)


def test_a_concept_file_contains_no_private_data(example):
    data = concept_to_bytes(example)
    for secret in (getpass.getuser(), str(Path.home()), socket.gethostname(), str(Path.cwd())):
        assert len(secret) < 5 or secret.encode() not in data


# --- thumbnails -------------------------------------------------------------------------------------------------------


def test_a_thumbnail_is_small_and_has_no_metadata():
    exif = Image.Exif()
    exif[0x010E] = "CANARY"
    out = io.BytesIO()
    Image.radial_gradient("L").resize((1000, 700)).convert("RGB").save(out, "JPEG", exif=exif, comment=b"CANARY")
    small = make_thumbnail(Image.open(io.BytesIO(out.getvalue())))
    result = Image.open(io.BytesIO(small))
    assert (result.format, result.size, result.info.get("exif"), result.info.get("icc_profile")) == (
        "WEBP",
        (512, 358),
        None,
        None,
    )
    assert b"CANARY" not in small and b"CANARY" in out.getvalue()
    mean = np.asarray(result, float).mean() - np.asarray(Image.open(out), float).mean()
    assert abs(mean) < 2


def test_a_thumbnail_of_noise_fits_in_the_header():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8))
    assert concept_from_bytes(concept_to_bytes(concept(thumbnail=make_thumbnail(noise))), "x").thumbnail


def png(text_bytes: int = 0, size=(8, 8), **options) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "CANARY" + "x" * text_bytes, zip=True)
    out = io.BytesIO()
    Image.new("RGBA", size, (200, 0, 0, 255)).save(out, "PNG", pnginfo=text, **options)
    return out.getvalue()


def test_foreign_thumbnails_are_encoded_again():
    polyglot = png() + b"<script>CANARY</script>PK\x03\x04"
    for data in (png(), polyglot, png(size=(900, 30))):
        again = reencode_thumbnail(data)
        assert b"CANARY" not in again and max(Image.open(io.BytesIO(again)).size) <= 512
        assert np.abs(np.asarray(Image.open(io.BytesIO(again)).convert("RGB"), int) - [200, 0, 0]).max() < 20


def huge_png(side: int) -> bytes:
    data = bytearray(png())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"GIF89a" + bytes(20),
        b"RIFF\0\0\0\0WAVE",
        png()[:60],
        png(100_000_000),
        huge_png(12_000),
        huge_png(20_000),
        huge_png(5_000),
        b"",
    ],
    ids=["svg", "gif", "wav", "cut", "text bomb", "144 MP", "400 MP", "25 MP", "empty"],
)
def test_invalid_and_oversized_thumbnail_images_are_refused(data):
    with pytest.raises(UserError):
        reencode_thumbnail(data)


def test_thumbnails_that_are_not_small_images_are_refused():
    for data in (b"<svg/>", b"RIFF\0\0\0\0WAVE", png() + bytes(250_000)):
        with pytest.raises(UserError, match="thumbnail"):
            concept(thumbnail=data)


@pytest.mark.parametrize(
    "url",
    [
        "http://tracker/p.png",
        "javascript:alert(1)",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/png;base64,@@",
        "data:,x",
    ],
)
def test_thumbnail_urls_without_an_image_are_refused(url):
    with pytest.raises(UserError, match="thumbnail"):
        concept_from_bytes(forged(lambda header: header["__metadata__"].update({"modelspec.thumbnail": url})), "x")


def test_headers_over_the_size_limit_are_refused():
    many = concept(lora=lora(names=tuple(f"lora_unet_{'x' * 190}{i}" for i in range(1300))))
    with pytest.raises(UserError):
        concept_to_bytes(many)
    assert MAX_HEADER == 1_000_000
