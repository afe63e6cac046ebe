"""Foreign files: read as their own programs read them, and never run."""

import io
import os
import pickle
import random
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpersonal.concepts.concept import Concept
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.importers import pickles, read_any
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support.samples import concept, thumbnail

LAYOUTS = {"zip": {}, "old": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}


def saved(content: object, **layout) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **layout)
    return out.getvalue()


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param]


# --- diffusers' learned_embeds ----------------------------------------------------------------------------------------

WHOLE = torch.randn(9, 768, generator=torch.Generator().manual_seed(0))
TENSORS = {
    "one row, 1-D": WHOLE[0].clone(),
    "rows": WHOLE[:3].clone(),
    "a view": WHOLE[4:7],
    "half": WHOLE[:2].half(),
    "bfloat16": WHOLE[:2].bfloat16(),
    "a parameter": torch.nn.Parameter(WHOLE[:1].clone()),
    "SD 2": torch.ones(1, 1024),
    "tiny": torch.ones(4, 192),
}


@pytest.mark.parametrize("case", TENSORS)
def test_learned_embeds_are_read_the_same_as_by_torch(case, layout):
    data = saved({"<cat-toy>": TENSORS[case]}, **layout)
    if "pickle_protocol" not in layout:  # torch's own careful reader knows protocol 2 only
        assert torch.equal(torch.load(io.BytesIO(data), weights_only=True)["<cat-toy>"], TENSORS[case])
    expected = TENSORS[case].detach().float()
    imported = read_any(data, "learned_embeds.bin")
    assert imported.token == Token("imported", "cat-toy")
    assert np.array_equal(imported.vectors["clip_l"], torch.atleast_2d(expected).numpy())
    assert imported.card.base == {768: "sd1", 1024: "sd2", 192: "tiny"}[expected.shape[-1]]


@pytest.mark.parametrize("case", TENSORS)
def test_learned_embeds_in_safetensors_are_read_exactly(case, tmp_path):
    data = safetensors.torch.save({"<cat-toy>": TENSORS[case].detach().contiguous().clone()}, {"format": "pt"})
    imported = read_any(data, "learned_embeds.safetensors")
    assert np.array_equal(imported.vectors["clip_l"], torch.atleast_2d(TENSORS[case].detach().float()).numpy())


def test_foreign_tokens_are_converted_to_valid_tokens():
    data = saved({"<Marc_Allante>": torch.ones(768)})
    assert read_any(data, "learned_embeds.bin").token == Token("imported", "marc-allante")
    assert read_any(data, "x", Token("you", "marc")).token == Token("you", "marc")


def test_tokens_with_lookalike_letters_are_refused_with_a_hint():
    data = saved({"<M\u0443-cat>": torch.ones(768)})
    with pytest.raises(UserError, match="CYRILLIC SMALL LETTER U") as caught:
        read_any(data, "learned_embeds.bin")
    assert "--as" in caught.value.hint


def test_the_file_name_does_not_affect_the_detected_format(layout):
    data = saved({"<cat>": torch.ones(768)}, **layout)
    assert all(read_any(data, name).token.name == "cat" for name in ("a.safetensors", "a.png", "", "../\x00"))


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        7,
        torch.ones(768),
        {"<a>": torch.ones(768), "<b>": torch.ones(768)},
        {"<a>": [1.0] * 768},
        {7: torch.ones(768)},
        {"<a>": torch.ones(2, 2, 768)},
        {"<a>": torch.ones(65, 768)},
        {"<a>": torch.ones(1, 999)},
        {"<a>": torch.ones(1, 1280)},
        {"<a>": torch.full((768,), torch.nan)},
        {"<a>": torch.ones(768, dtype=torch.float64)},
        {"<a>": torch.ones(768, dtype=torch.int64)},
        {"<a>": torch.ones(768, 2).T},
        {"<a>": torch.ones(1).expand(768)},
        {"<a>": torch.ones(0, 768)},
        {"clip_g": torch.ones(2, 1280)},
        {"<a>": {"<b>": {"<c>": torch.ones(768)}}},
    ],
)
def test_unsupported_pickle_content_is_refused_with_a_message(content, layout):
    with pytest.raises(UserError, match=r"^x.bin "):
        read_any(saved(content, **layout), "x.bin")


def test_images_and_web_pages_and_empty_files_are_refused_by_name():
    for data, says in ((thumbnail(), "image"), (b"<!doctype html>" * 9, "a web page"), (b"", "empty")):
        with pytest.raises(UserError, match=says):
            read_any(data, "x")


def test_native_files_are_read_with_a_reencoded_thumbnail():
    first = concept("<me/duck-v3>")
    imported = read_any(concept_to_bytes(first), "x", Token("you", "toy"))
    assert (imported.token, imported.identity) == (Token("you", "toy"), first.identity)
    assert imported.thumbnail not in (None, first.thumbnail)


# --- code in files ----------------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


EVILS = {
    "os.system": Evil(os.system, "touch PWNED"),
    "os.mkdir": Evil(os.mkdir, "PWNED"),
    "builtins.eval": Evil(eval, "open('PWNED', 'w')"),
    "builtins.getattr": Evil(getattr, "x", "system"),
    "io.open": Evil(open, "PWNED", "w"),
    "pathlib.Path": Evil(Path, "PWNED"),
    "torch.serialization.load": Evil(torch.load, "PWNED"),
}


@pytest.mark.parametrize("name", EVILS)
@pytest.mark.parametrize("place", ["value", "key", "alone", "beside"])
def test_code_in_a_file_is_never_run_and_is_refused_by_name(name, place, layout):
    evil = EVILS[name]
    content = {
        "value": {"<a>": evil},
        "key": {evil: torch.ones(768)},
        "alone": evil,
        "beside": {"<a>": torch.ones(768), "<b>": [evil]},
    }[place]
    data = saved(content, **layout)
    for file in ("evil.bin", "evil.pt", "evil.safetensors"):
        with pytest.raises(UserError) as caught:
            read_any(data, file)
        assert str(caught.value).startswith(f"{file} asks to run {name}; refused.")
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_refused_without_running_code(protocol):
    with pytest.raises(UserError, match="refused"):
        read_any(pickle.dumps(EVILS["os.system"], protocol), "evil.ckpt")
    assert not Path("PWNED").exists()


def test_the_canary_detects_executed_code():
    pickle.loads(pickle.dumps(EVILS["os.mkdir"]))
    assert Path("PWNED").exists()


def program(code: bytes) -> bytes:
    """A zip as torch writes it, with a program of our own."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + code)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(4 * 768))
    return out.getvalue()


def rebuilt(
    storage=b"cFloatStorage", count=b"M\x00\x03", offset=b"K\x00", shape=b"M\x00\x03\x85", strides=b"K\x01\x85"
) -> bytes:
    """{"<a>": tensor}, opcode by opcode."""
    kind = b"ctorch\n" + storage[1:] + b"\n"
    persistent = b"(X\x07\0\0\0storage" + kind + b"X\x01\0\0\x000X\x03\0\0\0cpu" + count + b"tQ"
    return b"}X\x03\0\0\0<a>ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + offset + shape + strides + b"\x89}tRs."


def test_handwritten_pickle_programs_can_be_valid():
    assert read_any(program(rebuilt()), "x").vectors["clip_l"].shape == (1, 768)


PROGRAMS = {
    "BUILD": b"}}b.",
    "INST": b"(S'touch PWNED'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch PWNED'\no.",
    "NEWOBJ": b"ccollections\nOrderedDict\n)\x81.",
    "EXT1": b"\x82\x01.",
    "stack global": b"\x8c\x02os\x8c\x06system\x93X\x05\0\0\0touch\x85R.",
    "a global that is text": b"X\x02\0\0\0os)R.",
    "calls a storage": b"ctorch\nFloatStorage\n)R.",
    "empty stack": b"R.",
    "no mark": b"t.",
    "no stop": b"}",
    "unknown opcode": b"\xff.",
    "memo far away": b"}r\xff\xff\xff\xffj\xfe\xff\xff\xff.",
    "long text": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fab.",
    "long number": b"\x8b\xff\xff\xff\x7fab.",
    "digits": b"I" + b"9" * 10_000 + b"\n.",
    "deep tuples as a key": b"}" + b")" + b"\x85" * 15_000 + b"K\x01s.",
    "deep tuples": b")" + b"\x85" * 15_000 + b".",
    "too long": b"0" * 10 + b"K\x00" * 300_000 + b".",
    "list in itself": b"]q\x00h\x00a.",
    "dictionary in itself": b"}q\x00X\x03\0\0\0<a>h\x00s.",
    "odd pairs": b"}(K\x01K\x02K\x03u.",
    "beyond its storage": rebuilt(offset=b"K\x01"),
    "negative offset": rebuilt(offset=b"J\xff\xff\xff\xff"),
    "negative shape": rebuilt(shape=b"J\x00\xfd\xff\xff\x85"),
    "huge shape": rebuilt(shape=b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
    "stride 0": rebuilt(shape=b"J\xff\xff\xff\x7fM\x00\x03\x86", strides=b"K\x00K\x01\x86"),
    "storage claims more": rebuilt(count=b"J\xff\xff\xff\x7f"),
    "storage of ints": rebuilt(storage=b"cLongStorage"),
    "member elsewhere": rebuilt().replace(b"X\x01\0\0\x000", b"X\x0a\0\0\x00../data.pk"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_hostile_pickle_programs_are_refused_quickly_with_a_message(case):
    began = time.process_time()
    with pytest.raises(UserError, match=r"^x.bin "):
        read_any(program(PROGRAMS[case]), "x.bin")
    assert time.process_time() - began < 1
    assert not Path("PWNED").exists()


def test_compressed_crowded_and_ambiguous_archives_are_refused():
    bomb, crowd, twice = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with zipfile.ZipFile(crowd, "w") as archive:
        for number in range(5000):
            archive.writestr(f"archive/data/{number}", b"")
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("a/data.pkl", b"}.")
        archive.writestr("b/data.pkl", b"}.")
    for item in (bomb, crowd, twice):
        with pytest.raises(UserError, match=r"x.zip is refused"):
            read_any(item.getvalue(), "x.zip")


def test_a_false_element_count_in_the_legacy_layout_is_refused():
    data = saved({"<a>": torch.ones(768)}, **LAYOUTS["old"])
    at = len(data) - 768 * 4 - 8
    assert data[at : at + 8] == struct.pack("<Q", 768)
    for count in (0, 767, 769, 2**61, 2**64 - 1):
        with pytest.raises(UserError):
            read_any(data[:at] + struct.pack("<Q", count) + data[at + 8 :], "x")


SEEDS = [saved({"<cat-toy>": torch.arange(768.0)}, **layout) for layout in LAYOUTS.values()]


@settings(max_examples=500, deadline=None)
@given(st.randoms(use_true_random=False))
def test_corrupted_files_are_read_or_refused_with_a_message(chance: random.Random):
    data = bytearray(chance.choice(SEEDS))
    heads = [at for at in range(len(data)) if at < 600 or at > len(data) - 600]  # where the structure is
    for _ in range(chance.randint(1, 5)):
        at = min(chance.choice(heads), len(data) - 1)
        if chance.random() < 0.2:
            del data[at : at + chance.randint(1, 20)]
        else:
            data[at] = (data[at] + chance.randint(1, 255)) % 256
    try:
        imported = read_any(bytes(data), "x")
    except UserError as error:
        assert "\n" not in error.message and len(error.message) < 400
    else:
        assert isinstance(imported, Concept)


def test_the_pickle_reader_imports_neither_pickle_nor_torch():
    source = Path(pickles.__file__).read_text()
    assert "import pickle\n" not in source and "import torch" not in source
