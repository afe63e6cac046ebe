"""Files that mean harm, or are broken: what a stranger could send. Each must end in words, soon, without effect."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import torch
from PIL import Image

from support import foreign, pictures_with
from support.foreign import rows, safetensors_bytes, torch_saved

CANARY = "PWNED"


class Evil:
    """Would make the canary file, if anything ran it."""

    def __reduce__(self):
        return os.mkdir, (CANARY,)


def corpus() -> dict[str, bytes]:
    """Every file, by what is wrong with it; all must be refused."""
    return {**pickles(), **safetensors(), **numbers(), **loras(), **pictures(), **archives()}


def pickles() -> dict[str, bytes]:
    """C-1: code in every place where a reader looks."""
    evil = Evil()
    places = {
        "alone": evil,
        "learned_embeds": {"<a>": evil},
        "a list": [rows(1), evil],
        "string_to_param": {"string_to_param": {"*": evil}, "name": "x"},
        "string_to_token": {"string_to_token": {"*": evil}, "string_to_param": {"*": rows(1)}},
        "beside vectors": foreign.a1111(rows(1), name=evil),
        "deep": {"a": [{"b": ({"c": evil},)}]},
        "state_dict": {"state_dict": {"a": rows(1), "b": evil}},
    }
    layouts = {"zip": {}, "old": {"_use_new_zipfile_serialization": False}}
    result = {
        f"evil, {place}, {name}": torch_saved(content, **layout)
        for place, content in places.items()
        for name, layout in layouts.items()
    }
    result |= {f"plain pickle {protocol}": pickle.dumps({"<a>": evil}, protocol) for protocol in range(6)}
    call = b"cos\nmkdir\n(X\x05\0\0\0PWNEDt"
    for name, code in {
        "state of a ParameterDict": b"ctorch.nn.modules.container\nParameterDict\n)\x81}X\x0b\0\0\0_parameters"
        + call
        + b"Rsb.",
        "class of NEWOBJ": call[:10] + b"(X\x05\0\0\0PWNEDt\x81.",
        "argument of a set": b"c__builtin__\nset\n" + call + b"R\x85R.",
        "another module's class": b"ctorch.nn.modules.linear\nLinear\n)\x81}b.",
        "state of a plain dictionary": b"}}b.",
        "ParameterDict with arguments": b"ctorch.nn.modules.container\nParameterDict\n(K\x01t\x81.",
        "ParameterDict in itself": b"ctorch.nn.modules.container\nParameterDict\n)\x81q\0}X\x0b\0\0\0_parametersh\0sb.",
        "many views of one storage": _views(3000),
        "bottomless lists": b"]" * 100_000 + b".",
        "a list that doubles": b"]q\0" + b"(h\0h\0l" * 20 + b".",
    }.items():
        result[name] = _zipped(b"\x80\x02" + code)
    return result


def _zipped(program: bytes, payload: bytes = bytes(4 * 768), **more: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", payload)
        for name, data in more.items():
            archive.writestr(name, data)
    return out.getvalue()


def _views(count: int) -> bytes:
    """One storage of 1,000,000 numbers and so many tensors that are all of it: 12 GB where each is copied."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpuJ\x40\x42\x0f\0tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0J\x40\x42\x0f\0\x85K\x01\x85\x89}tR"
    return b"](" + tensor + b"q\0" + b"h\0" * (count - 1) + b"e."


def safetensors() -> dict[str, bytes]:
    """C-2."""
    good = safetensors_bytes({"emb_params": rows(1)}, {"format": "pt"})
    entry = {"dtype": "F32", "shape": [768], "data_offsets": [0, 3072]}
    two = {"a": entry, "b": entry | {"data_offsets": [1000, 4072]}}
    hole = {"a": entry, "b": entry | {"data_offsets": [4000, 7072]}}
    zero = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(12_000)}
    raw = json.dumps(entry)
    return {
        "empty": b"",
        "eight bytes": bytes(8),
        "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
        "header of 1000 in 40 bytes": struct.pack("<Q", 1000) + b"{" + bytes(31),
        "header of 99 MB": struct.pack("<Q", 99_000_000) + b"{" + b" " * 99_000_000,
        "cut": good[:-100],
        "cut in the header": good[:50],
        "trailing bytes": good + b"PK\x03\x04",
        "overlap": _safe(two, 4072),
        "hole": _safe(hole, 7072),
        "shape overflow": _safe({"a": entry | {"shape": [2**33, 2**33]}}, 3072),
        "negative size": _safe({"a": entry | {"shape": [-768]}}, 3072),
        "negative offset": _safe({"a": entry | {"data_offsets": [-3072, 0]}}, 3072),
        "fractions": _safe({"a": entry | {"shape": [768.0]}}, 3072),
        "duplicate keys": _safe(f'{{"emb_params":{raw},"emb_params":{raw}}}', 3072),
        "duplicate fields": _safe(f'{{"emb_params":{raw[:-1]},"dtype":"F16"}}}}', 3072),
        "no tensors": _safe({"__metadata__": {}}, 0),
        "12,000 tensors of nothing": _safe(zero, 0),
        "10,000 tensors": safetensors_bytes({f"t{i}": torch.ones(1) for i in range(10_000)}),
        "metadata not text": _safe({"__metadata__": {"a": 1}, "emb_params": entry}, 3072),
        "metadata a list": _safe({"__metadata__": [], "emb_params": entry}, 3072),
        "not UTF-8": struct.pack("<Q", 4) + b'{"\xff}' + bytes(9),
        "nested": _safe("[" * 200_000 + "]" * 200_000, 0),
        "nested objects": _safe('{"a":' * 100_000 + "1" + "}" * 100_000, 0),
        "NaN": _safe('{"__metadata__":{},"a":NaN}', 0),
        "long number": _safe('{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,3072]}}', 3072),
        "a name of nothing": _safe({"": entry}, 3072),
        "a name that rings": _safe({"\x07\x1b[31m": entry}, 3072),
        "a name of 10,000 letters": _safe({"a" * 10_000: entry}, 3072),
        "F64": safetensors_bytes({"emb_params": rows(1).double()}),
        "I8": safetensors_bytes({"emb_params": torch.ones(1, 768, dtype=torch.int8)}),
        "a pickle renamed": pickle.dumps(Evil(), 0),
        "a web page": b"<!doctype html><title>Not found</title>" * 20,
        "zeros": bytes(5000),
    }


def _safe(header: dict | str, size: int) -> bytes:
    raw = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(size)


def numbers() -> dict[str, bytes]:
    """C-3, C-4."""
    spoiled = {"NaN": float("nan"), "infinite": float("inf"), "minus infinite": float("-inf")}
    result = {}
    for name, value in spoiled.items():
        vectors = rows(3)
        vectors[1, 5] = value
        result |= {
            f"{name} safetensors": safetensors_bytes({"emb_params": vectors}),
            f"{name} pickle": torch_saved({"<a>": vectors}),
        }
    shapes = {
        "10,000 rows": (10_000, 768),
        "(768, 4)": (768, 4),
        "3-D": (1, 1, 768),
        "a number": (),
        "1280 wide": (2, 1280),
    }
    result |= {f"shape {name}": safetensors_bytes({"emb_params": torch.ones(shape)}) for name, shape in shapes.items()}
    return result | {
        "no rows": torch_saved({"<a>": torch.ones(0, 768)}),
        "half of a pair": safetensors_bytes({"clip_g": rows(1, 1280)}),
        "a pair of other lengths": safetensors_bytes({"clip_l": rows(1), "clip_g": rows(2, 1280)}),
        "a pair for two bases": safetensors_bytes({"clip_l": rows(1, 1024), "clip_g": rows(1, 1280)}),
    }


def loras() -> dict[str, bytes]:
    """C-5."""
    import safetensors.torch

    good = safetensors.torch.load(foreign.kohya("sd1", every=20))
    name = min(key for key in good if key.startswith("lora_unet_")).partition(".")[0]
    changed = {
        "alpha 1e9": {f"{name}.alpha": torch.tensor(1e9)},
        "alpha of NaN": {f"{name}.alpha": torch.tensor(float("nan"))},
        "negative alpha": {f"{name}.alpha": torch.tensor(-1.0)},
        "alpha of two": {f"{name}.alpha": torch.ones(2)},
        "rank mismatch": {f"{name}.lora_up.weight": torch.ones(320, 3)},
        "no matrix": {f"{name}.lora_down.weight": torch.ones(640)},
        "a number": {f"{name}.lora_down.weight": torch.tensor(1.0)},
        "NaN": {f"{name}.lora_up.weight": torch.full((320, 2), torch.nan)},
        "unknown tensors": {"something.else": torch.ones(2)},
        "unknown piece": {f"{name}.lora_sideways.weight": torch.ones(2)},
        "another base's layer": {
            f"{name}_attn2_to_k.{end}": torch.ones(2, 2) for end in ("lora_down.weight", "lora_up.weight")
        },
        "two bundles": {"bundle_emb.a.clip_l": rows(1), "bundle_emb.b.clip_l": rows(1)},
        "a bundle for another base": {"bundle_emb.a.clip_l": rows(1, 1024)},
        "a bundle of what": {"bundle_emb.a.what": rows(1)},
        "a bundle without a name": {"bundle_emb..clip_l": rows(1)},
        "a layer twice": {
            f"{name.replace('lora_unet_', 'unet.')}.{e}": good[f"{name}.{e}"]
            for e in ("lora_down.weight", "lora_up.weight")
        },
    }
    result = {f"LoRA, {case}": safetensors_bytes(good | more) for case, more in changed.items()}
    half = {key: value for key, value in good.items() if key != f"{name}.lora_up.weight"}
    simo = foreign.cloneofsimo(embeds=0)
    result |= {
        "LoRA, half a layer": safetensors_bytes(half),
        "LoRA, a hostile pattern": safetensors_bytes(
            {
                "unet.mid_block.a.to_q.lora_A.weight": torch.ones(1, 4),
                "unet.mid_block.a.to_q.lora_B.weight": torch.ones(4, 1),
            },
            {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {"(a+)+$": 1}})},
        ),
        "LoRA, deep metadata": safetensors_bytes(
            {"unet.mid_block.a.to_q.lora_A.weight": torch.ones(1, 4)}, {"lora_adapter_metadata": "[" * 100_000}
        ),
        "cloneofsimo, too few layers": safetensors_bytes(
            {key: value for key, value in simo.items() if not key.startswith("unet:143:")}
        ),
        "cloneofsimo, far numbers": safetensors_bytes({"unet:9999:up": rows(1), "unet:9999:down": rows(1)}),
        "cloneofsimo, an odd list": torch_saved([rows(1)] * 3),
    }
    return result


def pictures() -> dict[str, bytes]:
    """C-9."""
    small = Image.new("RGB", (32, 32), "white")
    plain = pictures_with.png(small)
    head = plain[:33]

    def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
        size = len(data) if length is None else length
        return struct.pack(">I", size) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def told(text: bytes) -> bytes:
        return head + chunk(b"tEXt", b"sd-ti-embedding\0" + text) + plain[33:]

    def with_json(text: str) -> bytes:
        return told(base64.b64encode(text.encode()))

    bomb = pictures_with.with_pixels(foreign.a1111(rows(1)), Image.new("RGB", (64, 400), "white"))
    return {
        "picture, plain": plain,
        "picture, cut": plain[:40],
        "picture, chunk of 1 GB": head + chunk(b"tEXt", b"sd-ti-embedding\0", 2**30),
        "picture, not base64": told(b"\xff\xfe!"),
        "picture, not JSON": with_json("hello"),
        "picture, a list": with_json("[1]"),
        "picture, no tensor": with_json('{"string_to_param": {"*": 3}}'),
        "picture, ragged": with_json('{"string_to_param": {"*": {"TORCHTENSOR": [[1, 2], [3]]}}}'),
        "picture, text for numbers": with_json('{"string_to_param": {"*": {"TORCHTENSOR": ["a"]}}}'),
        "picture, objects for numbers": with_json('{"string_to_param": {"*": {"TORCHTENSOR": {"a": 1}}}}'),
        "picture, NaN": with_json('{"string_to_param": {"*": {"TORCHTENSOR": [NaN]}}}'),
        "picture, too large numbers": with_json(
            '{"string_to_param": {"*": {"TORCHTENSOR": [' + ",".join(["1e300"] * 768) + "]}}}"
        ),
        "picture, deep": with_json("[" * 100_000),
        "picture, deep numbers": with_json(
            '{"string_to_param": {"*": {"TORCHTENSOR": ' + "[" * 900 + "]" * 900 + "}}}"
        ),
        "picture, duplicate keys": with_json('{"string_to_param": {"*": 1, "*": 2}}'),
        "picture, cut pixels": pictures_with.png(bomb.crop((0, 0, bomb.width - 40, bomb.height))),
        "picture, many pixels": head[:16] + struct.pack(">II", 60_000, 60_000) + plain[24:],
        "picture, JPEG": pictures_with.png(small, "JPEG"),
        "picture, black": pictures_with.png(Image.new("RGB", (32, 32))),
        "picture, SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "picture, polyglot": plain + _zipped(b"\x80\x02cos\nmkdir\n(X\x05\0\0\0PWNEDtR."),
    }


def archives() -> dict[str, bytes]:
    """C-10."""
    bomb, tar, encrypted, crowd = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + bytes(200_000_000))
    with tarfile.open(fileobj=tar, mode="w") as archive:
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with zipfile.ZipFile(encrypted, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    locked = bytearray(encrypted.getvalue())
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    with zipfile.ZipFile(crowd, "w") as archive:
        for number in range(20_000):
            archive.writestr(f"archive/data/{number}", b"")
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("../../learned_embeds.safetensors", safetensors_bytes({"<a>": rows(1)}))
        archive.writestr("/etc/x", b"x")
    return {
        "zip, bomb": bomb.getvalue(),
        "zip, encrypted": bytes(locked),
        "zip, 20,000 members": crowd.getvalue(),
        "zip, paths out": plain.getvalue(),
        "zip, cut": torch_saved({"<a>": rows(1)})[:-30],
        "zip, head alone": b"PK\x03\x04" + bytes(40),
        "tar with a link": tar.getvalue(),
        "gzip": b"\x1f\x8b\x08" + bytes(60),
    }
