"""Small files that cost much where a reader does not count: what a stranger could send to stop the program."""

from __future__ import annotations

import json
import struct

from support.hostile import _safe as safe
from support.hostile import _zipped as zipped

ORDERED = b"ccollections\nOrderedDict\n"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpuM\0\x03tQ"  # 768 numbers
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def corpus() -> dict[str, bytes]:
    """Every file, by what it would have cost; all must be refused."""
    return {
        **{f"pickle, {name}": zipped(b"\x80\x02" + code) for name, code in programs().items()},
        **{f"zip, {name}": data for name, data in zips().items()},
        **{f"safetensors, {name}": data for name, data in headers().items()},
    }


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _dict_items(count: int) -> bytes:
    return b"".join(b"M" + struct.pack("<H", number) + b"N" for number in range(count))


def _repeat(code: bytes, count: int) -> bytes:
    return b"](" + code * count + b"e."


def _long(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(raw)) + raw


def _learned(vectors: bytes, *facts: bytes) -> bytes:
    """A dictionary with vectors as A1111 has them, and other keys and values."""
    tensors = b"}" + _text("*") + vectors + b"s"
    return b"}" + _text("string_to_param") + tensors + b"s" + b"".join(fact + b"s" for fact in facts) + b"."


def programs() -> dict[str, bytes]:
    items = b"(" + _dict_items(20_000) + b"tq\x01"
    tensor = REBUILD + b"(" + STORAGE + b"K\0K\x01M\0\x03\x86M\0\x03K\x01\x86\x89}tR"
    colliding = b"".join(_long(number * (2**61 - 1)) + b"N" for number in range(1, 20_000))
    return {
        "copies of a dictionary by OrderedDict": ORDERED + b"q\0" + items + _repeat(b"h\0h\x01R", 30_000),
        "copies of a dictionary by BUILD": ORDERED
        + b"q\0}"
        + _text("_parameters")
        + b"}("
        + _dict_items(20_000)
        + b"usq\x01"
        + _repeat(b"h\0)Rh\x01b", 30_000),
        "long views of storages": b"ctorch\nFloatStorage\nq\0("
        + _text("storage")
        + b"h\0"
        + _text("0")
        + _text("cpu")
        + b"K\x01"
        + b"N" * 20_000
        + b"tq\x01"
        + _repeat(b"h\x01Q", 30_000),
        "a name from lists that double": b"]q\0" + b"(h\0h\0lq\0" * 60 + b"h\0h\0\x93.",
        "a storage's long name": b"ctorch\nFloatStorage\nq\0("
        + _text("storage")
        + b"h\0"
        + _text("x" * 1_000_000)
        + _text("cpu")
        + b"M\0\x03tq\x01"
        + _repeat(REBUILD + b"(h\x01QK\0K\x01\x85K\x01\x85\x89}tR", 2000),
        "a fact of 6,000 digits": _learned(tensor, _text("step") + _long(10**6000)),
        "a key of 6,000 digits": _learned(tensor, _long(10**6000) + b"K\x01"),
        "decimals": _learned(tensor, _text("step") + b"L" + b"9" * 200_000 + b"L\n"),
        "keys with one hash": b"}(" + colliding + b"u.",
        "a text again and again": _text("\U0001f986" * 2100) + b"q\0](" + b"h\0" * 120_000 + b"e.",
        "a text of 9 MB": _text("x" * 9_000_000 + "\U0001f986") + b".",
        "a line without an end": b"}(I" + b"1" * 9_000_000,
        "deep tuples as keys": b")" + b"\x85" * 100_000 + b"q\0}h\0Ns.",
        "deep lists as a name": b"]q\0h\0a" + b"h\0\x93.",
    }


def zips() -> dict[str, bytes]:
    return {
        "long names of members": zipped(b"\x80\x02}.", **{f"{number}/" + "n" * 60_000: b"" for number in range(70)}),
        "members that are all of the file": _overlapping(300),
    }


def _overlapping(count: int) -> bytes:
    """Tensors of storages that are members at one place of the archive."""
    tensor = b"".join(
        REBUILD
        + b"(("
        + _text("storage")
        + b"ctorch\nFloatStorage\n"
        + _text(f"{number:03}")
        + _text("cpu")
        + b"J\x40\x42\x0f\0tQK\0J\x40\x42\x0f\0\x85K\x01\x85\x89}tR"
        for number in range(count)
    )
    data = bytearray(zipped(b"\x80\x02](" + tensor + b"e.", bytes(4_000_000)))
    begin = data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x05\x06"))
    end = data.rindex(b"PK\x05\x06")
    entry, records = bytes(data[begin:end]), bytes(data[data.index(b"PK\x01\x02") : begin])
    name = b"archive/data/0"
    more = b"".join(
        entry[:28] + struct.pack("<H", len(name) + 2) + entry[30:46] + name[:-1] + b"%03d" % number
        for number in range(count)
    )
    directory = data.index(b"PK\x01\x02")
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count + 2, count + 2, len(records + more), directory, 0)
    return bytes(data[:directory]) + records + more + tail


def headers() -> dict[str, bytes]:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    repeats = {
        "a name of repeats": ".lora_magnitude_vector" * 6000 + "\nX",
        "a name of dots": "." * 200_000 + "\n",
        "a name of underscores": "lora_unet_" + "_" * 200_000 + ".alpha\n",
    }
    result = {name: safe({text: entry}, 4) for name, text in repeats.items()}
    few = json.dumps(entry)
    crowd = ",".join(f'"{number:x}":{few}' for number in range(40_000))
    return result | {
        "350,000 names": safe("{" + ",".join(f'"{number:x}":0' for number in range(350_000)) + "}", 0),
        "40,000 tensors": safe("{" + crowd + "}", 4),
        "a million lists": safe('{"a":[' + ",".join(["[]"] * 1_000_000) + "]}", 0),
        "a text without an end": safe('{"' + '\\"' * 1_000_000, 0),
        "a million dictionaries": safe('{"a":[' + ",".join(["{}"] * 1_000_000) + "]}", 0),
        "6,500 long names": _long_names(6500, "model.diffusion_mode."),
        "3,000 layers of underscores": _long_names(3000, "lora_unet_", "_", ".diff_b"),
        "3,000 layers of dots": _long_names(3000, "unet.", ".", ".lora_A.weight"),
        **patterns(),
    }


def _long_names(count: int, start: str, pad: str = "x", end: str = "") -> bytes:
    """As many tensors as a header holds, with names as long as they may be."""
    width = 225 - len(start) - len(end)
    header, position = {}, 0
    for number in range(count):
        name = start + f"{number:05}".ljust(width, pad) + end
        header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [position, position := position + 4]}
    return safe(json.dumps(header, separators=(",", ":")), position)


def _peft(table: dict[str, int], modules: list[str]) -> bytes:
    """A LoRA of those modules, whose alphas PEFT looks up in that table of patterns."""
    header: dict[str, dict] = {"__metadata__": {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": table})}}
    position = 0
    for module in modules:
        for end in ("A", "B"):
            offsets = [position, position := position + 4]
            header[f"unet.{module}.lora_{end}.weight"] = {"dtype": "F32", "shape": [1, 1], "data_offsets": offsets}
    return safe(json.dumps(header, separators=(",", ":")), position)


def patterns() -> dict[str, bytes]:
    long_modules = [f"mid_block.{number:05}" + "." * 150 for number in range(1000)]
    return {
        "700 patterns for 700 modules": _peft(
            {f"mid_block.{number}x": 1 for number in range(700)}, [f"mid_block.{number}" for number in range(700)]
        ),
        "patterns of two wildcards": _peft({f".*.*{number}x": 1 for number in range(60)}, long_modules),
        "sets of any length": _peft({f"[a.-]+[a.-]+{number}x": 1 for number in range(60)}, long_modules),
    }
