"""Hostile files made by hand: what a stranger would write who has read the source."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Collection, Iterator

from support import bombs, hostile


def hostile_files(kinds: Collection[str]) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield (format, name in its folder, what it is, its bytes) of the formats in `kinds`.

    Each file must be refused, or read within the bounds.
    """
    if "refused" in kinds:
        for name, data in (hostile.corpus() | bombs.corpus()).items():
            yield "refused", "", name, data
    if "concept" in kinds:
        for name, data in {**_headers(), **_torch_files(), **_native()}.items():
            yield "concept", "", name, data
    if "library" in kinds:
        for name, data in _native().items():
            yield "library", "me/duck-v1.safetensors", name, data
    yield from (case for case in _texts() if case[0] in kinds)


def _safetensors(header: dict | str, size: int = 4) -> bytes:
    raw = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + bytes(size)


def _headers() -> dict[str, bytes]:
    """Headers: names that search patterns choke on, many names, deep and long JSON, surrogates."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    bombs = {
        "a regex bomb of a magnitude vector": ".lora_magnitude_vector" * 6000 + "\nX",
        "a regex bomb of 4 MB": ".lora_magnitude_vector" * 180_000 + "\nX",
        "dots": "." * 100_000 + "\nX",
        "layer numbers": "lora_unet_" + "down_blocks_0_" * 8000 + "\n",
        "digits": "unet:" + "9" * 100_000 + ":up",
        "brackets": "<" * 60_000 + ">" * 60_000,
        "spaces": " " * 100_000 + "x",
        "text model": "text_model." * 10_000 + "\nX",
        "a name of surrogates": "\ud800" * 1000,
        "a name with NUL": "a\0b.lora_A.weight",
    }
    many = {
        f"lora_unet_a{i}.{part}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        for i in range(60_000)
        for part in ("lora_up.weight",)
    }
    result = {name: _safetensors({tensor: entry}) for name, tensor in bombs.items()}
    for key in ("ss_tag_frequency", "modelspec.title", "lora_adapter_metadata", "ss_network_args", "sd_merge_models"):
        result |= {
            f"{key} of surrogates": _safetensors({"__metadata__": {key: "\ud800"}, "emb_params": entry}),
            f"{key} nested": _safetensors({"__metadata__": {key: "[" * 50_000}, "emb_params": entry}),
            f"{key} of one long number": _safetensors({"__metadata__": {key: "9" * 100_000}, "emb_params": entry}),
            f"{key} of 2 MB": _safetensors({"__metadata__": {key: "(a+)+$ \n" * 250_000}, "emb_params": entry}),
        }
    pattern = {"(a|a)*$": 1, ".*.*.*.*.*x": 2, "(.+)+!": 3}
    adapter = {"unet.rank_pattern": pattern, "unet.alpha_pattern": {key * 30: 1 for key in pattern}}
    result["patterns in an adapter"] = _safetensors(
        {"__metadata__": {"lora_adapter_metadata": json.dumps(adapter)}, "unet.a.lora_A.weight": entry}
    )
    result["60,000 names"] = _safetensors(many, 0)
    result["350,000 short names"] = _safetensors("{" + ",".join(f'"{i:x}":0' for i in range(350_000)) + "}", 0)
    result["a shape of a million axes"] = _safetensors({"a": entry | {"shape": [1] * 1_000_000}})
    result["a shape with a huge product"] = _safetensors({"a": entry | {"shape": [2**62] * 60}})
    return result


def _zipped(program: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), program)
        archive.writestr(zipfile.ZipInfo("archive/data/0"), bytes(3072))
    return out.getvalue()


def _torch_files() -> dict[str, bytes]:
    """Pickles: copies of copies, long integers, many keys, instructions that ask for memory."""
    entries = b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(25_000))
    ordered, parameters = b"ccollections\nOrderedDict\n", b"ctorch.nn.modules.container\nParameterDict\n"
    fill = b"\x80\x02" + ordered + b"q\0" + b"(" + entries + b"tq\1"
    state = b"}X\x0b\0\0\0_parameters}(" + entries + b"us"
    long_number = (10**6000).to_bytes(2500, "little")
    programs = {
        "a dict copied 30,000 times": fill + b"00](" + b"h\0h\1R" * 30_000 + b"e.",
        "a small dict copied 3,000 times": fill[: 20_000 * 3] + b"tq\1" + b"](" + b"h\0h\1R" * 3_000 + b"e.",
        "a state given 15,000 times": b"\x80\x02"
        + state
        + b"q\1"
        + b"]("
        + (parameters + b")\x81h\1b") * 9_000
        + b"e.",
        "a list doubled by APPENDS": b"\x80\x02]q\0" + b"(" + b"K\1" * 1000 + b"e" + b"(h\0h\0h\0h\0e" * 20_000 + b".",
        "tuples of tuples": b"\x80\x02K\1\x85q\0" + b"h\0h\0\x86q\0" * 40_000 + b".",
        "sets of lists": b"\x80\x02c__builtin__\nset\nq\0]("
        + b"K\1" * 20_000
        + b"e\x85q\1]("
        + b"h\0h\1R" * 20_000
        + b"e.",
        "an integer of 6,000 digits": b"\x80\x02}X\4\0\0\0step\x8b" + struct.pack("<I", 2500) + long_number + b"s.",
        "a key of 6,000 digits": b"\x80\x02}\x8b" + struct.pack("<I", 2500) + long_number + b"Ns.",
        "an integer in words": b"\x80\x02}X\4\0\0\0stepI" + b"9" * 4000 + b"\ns.",
        "an integer of 1 MB": b"\x80\x02\x8b" + struct.pack("<I", 1_000_000) + b"\x7f" * 1_000_000 + b".",
        "text of a surrogate": b"\x80\x02}X\3\0\0\0\xed\xa0\x80Ns.",
        "text of 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
        "text of 2^63": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b".",
        "a memo of 2^31": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "a frame of 2^63": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
        "140,000 keys": b"\x80\x02}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(70_000)) + b"u.",
        "a hundred thousand marks": b"\x80\x02" + b"(" * 100_000 + b".",
        "a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    }
    return {f"pickle, {name}": _zipped(program) for name, program in programs.items()}


def _native() -> dict[str, bytes]:
    """Files of our own format with values in the header that no version of this program wrote."""
    from sdpersonal.concepts.concept_file import concept_to_bytes

    from . import samples

    data = concept_to_bytes(samples.embedding("<me/duck-v1>"))
    length = int.from_bytes(data[:8], "little")
    header, payload = json.loads(data[8 : 8 + length]), data[8 + length :]
    result = {}
    fields = ["sdpersonal.header_sha256", "sdpersonal.card", "sdpersonal.format", "sdpersonal.whole"]
    fields += ["modelspec.hash_sha256", "modelspec.thumbnail", "modelspec.title", "modelspec.date"]
    values = {"a surrogate": "\ud800", "nothing": "", "a NUL": "\0", "1 MB": "é" * 500_000, "nesting": "[" * 50_000}
    values |= {"a long number": '{"token":' + "9" * 5000 + "}", "infinity": '{"token":1e999}', "null": "null"}
    for field in fields:
        for name, value in values.items():
            changed = header | {"__metadata__": header["__metadata__"] | {field: value}}
            raw = json.dumps(changed, separators=(",", ":"))
            if field != "sdpersonal.header_sha256":
                from .mutations import _sealed

                raw = _sealed(raw, "")
            text = raw.encode()
            result[f"own file, {field} is {name}"] = struct.pack("<Q", len(text)) + text + payload
    return result


def _texts() -> Iterator[tuple[str, str, str, bytes]]:
    """Texts beside photos, lists of prompts, run folders and checkpoints."""
    long_number, deep = "1" + "0" * 400, "[" * 100_000
    for name, text in {
        "an alias of itself": "a: &a\n  - *a\n",
        "a billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join('*' + chr(97 + i) for _ in range(9))}]\n" for i in range(12)
        ),
        "nesting": "a: " + deep,
        "a tag": "!!python/object/apply:os.mkdir [PWNED]\n",
        "stars": "?" * 5000 + "*" * 5000,
    }.items():
        yield "wildcard", "animals.yaml", name, text.encode()
        yield "wildcard", "colour.txt", name, text.encode()
        yield "wildcard", "more.json", name, text.encode()
    for name, text in {
        "brackets": "(" * 50_000,
        "alternatives": "{a|b}" * 1000,
        "nested alternatives": "{" * 500 + "a|b" + "}" * 500,
        "tokens": "<" * 2000,
        "emphasis": "((a:1.1" * 200,
        "colons": "a:" * 1000,
        "a surrogate": "\ud800",
        "a choice of many": "{1000$$" + "|".join("abcdefgh" * 30) + "}",
    }.items():
        yield "prompt", "", name, text.encode("utf-8", "surrogatepass")
    for name, text in {
        "no end of a long line": "a" * 3_000_000,
        "triggers": "<s" * 40_000,
        "many braces": "{ " * 50_000,
        "a table that nests": '{"file_name": "a.jpg", "text": ' + deep,
        "a surrogate": '{"file_name": "a.jpg", "text": "\\ud800"}',
        "a long number": '{"file_name": ' + "9" * 5000 + "}",
    }.items():
        for file in ("a.txt", "metadata.jsonl", "metadata.csv"):
            yield "caption", file, f"{file} with {name}", text.encode()
    values = {"long": long_number, "tiny": "1e-320", "huge": "1e308", "nesting": deep, "NaN": "NaN", "true": "true"}
    for file, words in _RUN_NUMBERS.items():
        for word in words:
            for name, value in values.items():
                line = (
                    f'{{"pid": 1, "steps": 5, "seconds": 1, "step": 1, "loss": 1, "token": "<a/b>", "{word}": {value}}}'
                )
                yield "run", file, f"{word} in {file} is {name}", line.encode() + b"\n"


_RUN_NUMBERS = {
    "runs/a/process.json": ("pid", "born", "began", "away"),
    "runs/a/cost.json": ("steps", "seconds", "held", "step"),
    "runs/b/cost.json": ("steps", "seconds", "held"),
    "runs/b/result.json": ("steps", "seconds", "token", "best"),
    "runs/a/progress.jsonl": ("step", "steps", "loss", "seconds", "left", "fixed"),
    "runs/a/trials.jsonl": ("step", "score", "likeness"),
    "runs/a/settings.json": ("token", "steps", "class_noun", "base"),
    "runs/pace.json": ("tiny dreambooth own",),
}
