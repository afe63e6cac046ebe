"""Parse A1111's infotext, which most programs write: in a PNG's `parameters`, or as Exif's UserComment.

    a cat <lora:add-detail:0.6>
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512, Model: v1-5, Version: v1.10.1

Sources: `parse_generation_parameters` of A1111's `modules/infotext_utils.py`; SD.Next's `modules/infotext.py`;
Fooocus' `modules/meta_parser.py`; Civitai's `automatic.metadata.ts`. Keys are compared without regard to capitals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import printable
from .parameters import MOST_NOTES, Foreign, Parameters, enlarged, foreign_of, number, size_of
from .prompt_syntax import Kind, Network

__all__ = ["Foreign", "a1111", "parse_infotext"]

_PARAMETER = re.compile(r'\s*(\w[\w \-/]*+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', re.DOTALL)  # as A1111 reads it
_FACT_LINE = re.compile(r"\s*Steps:\s*[0-9]+\s*(,|$)", re.IGNORECASE)
_NEGATIVE = "negative prompt:"
_MOST_JSON = 8  # JSON values of one text that are parsed to find their end
_A1111_NAMES = {  # our field -> A1111's keys
    "steps": ("steps",),
    "guidance": ("cfg scale", "guidance scale", "cfg"),
    "seed": ("seed",),
    "strength": ("denoising strength", "hires denoising strength", "denoise strength"),
    "clip_skip": ("clip skip",),
    "rescale": ("cfg rescale",),
}
_BEGAN = {
    *("mask blur", "inpaint area", "masked content", "init image size", "init image hash", "image cfg scale"),
    *("resize mode", "masked area padding", "conditional mask weight", "soft inpainting enabled", "mask mode"),
}
_OTHER_PARTS = {  # start of a key -> what else changed the image
    "adetailer": "ADetailer",
    "controlnet": "ControlNet",
    "refiner": "a refiner model",
    "freeu": "FreeU",
    "tiled diffusion": "Tiled Diffusion",
    "ip-adapter": "an IP-Adapter",
    "ip adapter": "an IP-Adapter",
    "dynamic thresholding": "Dynamic Thresholding",
    "face restoration": "face restoration",
    "hires prompt": "other words in its second pass",
    "hires checkpoint": "another model in its second pass",
    "hires negative": "other words in its second pass",
    "cfg end": "guidance that ends early",
    "seed resize from": "noise of another size",
    "postprocess": "postprocessing",
    "token merging ratio": "token merging",
    "sag": "self-attention guidance",
}


def parse_infotext(text: str) -> Foreign | None:
    """Parse A1111's infotext; None for any other text."""
    parameters = a1111(text)
    return None if parameters is None else foreign_of(parameters)


def a1111(text: str) -> Parameters | None:
    """Parse A1111's infotext into unchecked `Parameters`; None for any other text."""
    prompt, negative, facts = _split_infotext(text.replace("\r\n", "\n").replace("\r", "\n"))
    if "steps" not in facts and not {"seed", "sampler"} <= facts.keys():
        return None
    parameters = Parameters(_program(facts), text, prompt, negative)
    if parameters.program == "ComfyUI" and prompt == "unknown":  # written by save nodes without a prompt
        parameters.prompt, parameters.negative = "", ""
    for field, keys in _A1111_NAMES.items():
        if (key := next((key for key in keys if key in facts), None)) is not None:
            parameters.values[field] = number(facts[key])
    if facts.get("compose") == "False":  # written by sdpersonal
        parameters.values["compose"] = False
    _first_size(facts, parameters)
    _second_pass(facts, parameters)
    _seeds(facts, parameters)
    parameters.sampler, parameters.schedule, parameters.naming = _sampler(facts, parameters.program)
    parameters.model = facts.get("model") or _civitai_model(facts) or facts.get("model hash", "")
    parameters.networks += _hashed_networks(facts)
    parameters.img2img = _began(facts, parameters)
    parameters.notes += _collect_notes(facts, parameters)
    return parameters


# --- the text ---------------------------------------------------------------------------------------------------------


def _split_infotext(text: str) -> tuple[str, str, dict[str, str]]:
    """Split into prompt, negative prompt, and the parameters after them by lower-case key."""
    lines = text.strip().split("\n")
    begin, facts = _last_lines(lines)
    lines = [line.strip() for line in lines[:begin]]
    cut = next((i for i, line in enumerate(lines) if line.lower().startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[cut:])[len(_NEGATIVE) :]
    return "\n".join(lines[:cut]).strip(), negative.strip(), facts


def _last_lines(lines: list[str]) -> tuple[int, dict[str, str]]:
    """Return the line where the parameters begin, and the parameters.

    That is the last line, if it has three as A1111 requires; else the last that begins with "Steps:", since a quoted
    value after it may contain line ends.
    """
    last = len(lines) - 1
    facts = _parse_parameters(lines[last])
    if len(facts) >= 3 and ("steps" in facts or {"seed", "sampler"} <= facts.keys()):
        return last, facts
    starts = [i for i in range(last, max(-1, last - 200), -1) if _FACT_LINE.match(lines[i])]
    for i in starts[:3]:
        if len(more_facts := _parse_parameters("\n".join(lines[i:]))) >= 3:
            return i, more_facts
    return (last, facts) if len(facts) >= 3 else (len(lines), {})


def _parse_parameters(line: str) -> dict[str, str]:
    """Parse `key: value` pairs in a single pass; text that does not match is skipped to the next comma."""
    facts: dict[str, str] = {}
    position, json_values = 0, 0
    while position < len(line):
        if fact := _PARAMETER.match(line, position):
            value, end = fact[2].strip(), fact.end()
            if value[:1] in ("[", "{") and json_values < _MOST_JSON:
                json_values += 1
                value, end = _whole_json(line, fact.start(2), value, end)
            facts.setdefault(fact[1].strip().lower(), _unquote(value))
            position = max(end, position + 1)
        else:
            comma = line.find(",", position)
            position = comma + 1 if comma >= 0 else len(line)
    return facts


def _whole_json(line: str, begin: int, value: str, end: int) -> tuple[str, int]:
    """Return a JSON list or object, which may contain commas, and where the next parameter begins."""
    try:
        last = json.JSONDecoder().raw_decode(line[begin : begin + 100_000].lstrip())[1]
    except (ValueError, RecursionError):
        return value, end
    begin += len(line[begin:]) - len(line[begin:].lstrip()) if line[begin : begin + 1].isspace() else 0
    comma = line.find(",", begin + last)
    return line[begin : begin + last], comma + 1 if comma >= 0 else len(line)


def _unquote(value: str) -> str:
    if len(value) < 2 or value[0] != '"':
        return value
    try:
        return str(json.loads(value, strict=False))
    except (ValueError, RecursionError):
        return value.strip('"')


# --- the parameters ---------------------------------------------------------------------------------------------------


_VERSIONS = (  # start of "Version" -> program
    ("fooocus", "Fooocus"),
    ("comfyui", "ComfyUI"),
    ("sdpersonal", "sdpersonal"),
    ("stable-diffusion.cpp", "stable-diffusion.cpp"),
    ("koboldcpp", "KoboldCpp"),
)


def _program(facts: Mapping[str, str]) -> str:
    version, app = facts.get("version", ""), facts.get("app", "")
    for word, name in _VERSIONS:
        if version.lower().startswith(word):
            return name
    if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", facts.get("sampler", "")):
        return "ComfyUI"  # one of its save nodes: no other program writes "euler_ancestral" there
    if "sd.next" in app.lower() or facts.get("backend") == "Diffusers":
        return "SD.Next"
    if "civitai resources" in facts or "civitai metadata" in facts:
        return "Civitai"
    return "Forge" if re.match(r"f[0-9]|neo|classic|forge", version) else "A1111"


def _pair(text: str | None) -> tuple[str, str] | None:
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*x\s*([0-9]{1,6})\s*", text or "")
    return (match[1], match[2]) if match else None


def _first_size(facts: Mapping[str, str], parameters: Parameters) -> None:
    if (text := facts.get("size")) is not None:
        pair = _pair(text)
        parameters.values["size"] = (size_of(*pair) if pair else None) or text
    elif size := size_of(facts.get("size-1"), facts.get("size-2")):
        parameters.values["size"] = size


def _second_pass(facts: Mapping[str, str], parameters: Parameters) -> None:
    """Set `hires_scale` from a factor, a target size, or the size of the first pass that images of 2022 have."""
    factor = number(facts.get("hires upscale", facts.get("hires scale")))
    if factor is not None and factor != 0:
        parameters.values["hires_scale"] = factor
        return
    size = parameters.values.get("size")
    sides = _pair(size if isinstance(size, str) else None)
    if not sides:
        return
    resized: tuple[object, object] = (
        _pair(facts.get("hires resize"))
        or _pair(facts.get("hires size"))
        or (facts.get("hires resize-1"), facts.get("hires resize-2"))
    )
    first: tuple[object, object] = _pair(facts.get("first pass size")) or (
        facts.get("first pass size-1"),
        facts.get("first pass size-2"),
    )
    if (first_size := size_of(*first)) and (scale := enlarged(first_size, sides)):
        parameters.values |= {"size": first_size, "hires_scale": scale}
    elif scale := enlarged(size, resized):
        parameters.values["hires_scale"] = scale
    elif any(number(side) for side in (*resized, *first)) or facts.get("first pass size") == "0x0":
        size_text = facts.get("hires resize") or facts.get("first pass size") or "another size"
        parameters.notes.append(f"Its second pass changed its shape ({printable(size_text, 20)}), which is left out.")
    if parameters.values.get("hires_scale") == 1.0:  # both passes have the same size
        del parameters.values["hires_scale"]


def _seeds(facts: Mapping[str, str], parameters: Parameters) -> None:
    if parameters.values.get("seed") == -1:
        del parameters.values["seed"]
        parameters.notes.append("Its seed is not in it (-1 stands for any).")
    near = number(facts.get("variation seed strength", facts.get("subseed strength")))
    if not near:  # "Variation seed strength: 0" means no variation
        return
    seed = number(facts.get("variation seed", facts.get("subseed")))
    if seed == -1:
        parameters.notes.append(f"It is {near} of the way to noise of a seed that is not in it (-1 stands for any).")
        return
    parameters.values["variation_strength"] = near
    if seed is not None:
        parameters.values["variation_seed"] = seed


def _sampler(facts: Mapping[str, str], program: str) -> tuple[str, str | None, str]:
    sampler = facts.get("sampler", "")
    schedule = facts.get("schedule type", facts.get("scheduler", facts.get("sampler sigma")))
    if program not in ("A1111", "Forge", "Civitai"):
        return sampler, schedule, "comfyui" if program in ("Fooocus", "ComfyUI") else ""
    return sampler, schedule, "a1111"


def _civitai(facts: Mapping[str, str]) -> list[dict[str, Any]]:
    try:
        resources = json.loads(facts.get("civitai resources", "[]"))
    except (ValueError, RecursionError):
        return []
    return [entry for entry in resources if isinstance(entry, dict)] if isinstance(resources, list) else []


def _civitai_model(facts: Mapping[str, str]) -> str:
    return next((str(entry.get("modelName", "")) for entry in _civitai(facts) if entry.get("type") == "checkpoint"), "")


_CIVITAI_KINDS: dict[str, Kind] = {
    "lora": "LoRA",
    "lycoris": "LoRA",
    "embed": "embedding",
    "textualinversion": "embedding",
}
_HASH_KEYS: dict[str, Kind] = {"lora hashes": "LoRA", "ti hashes": "embedding", "embeddings": "embedding"}


def _hashed_networks(facts: Mapping[str, str]) -> list[Network]:
    """Return the networks that the parameters name, with their strengths where given."""
    networks = []
    for entry in _civitai(facts)[:MOST_NOTES]:
        if kind := _CIVITAI_KINDS.get(str(entry.get("type", "")).lower()):
            strength = number(entry.get("weight"))
            name = str(entry.get("modelName") or entry.get("modelVersionId") or "without a name")
            networks.append(Network(kind, name, strength if isinstance(strength, int | float) else None))
    for part in filter(None, map(str.strip, facts.get("lora weights", "").split(","))):
        name, _, weight = part.rpartition(":")
        strength = number(weight)
        networks.append(Network("LoRA", name.strip(), strength if isinstance(strength, int | float) else None))
    for key, kind in _HASH_KEYS.items():
        names = (part.partition(":")[0].strip() for part in facts.get(key, "").split(","))
        networks += [Network(kind, name) for name in names if name]
    return networks[: 2 * MOST_NOTES]


def _began(facts: Mapping[str, str], parameters: Parameters) -> bool | None:
    """Return whether it began from another image, or None if unclear. A denoising strength alone does not tell:
    programs that use A1111's API write it into every image."""
    if "img2img" in facts.get("operations", "").lower() or "inpaint" in facts.get("operations", "").lower():
        return True
    if any(key in facts for key in _BEGAN):
        return True
    if "strength" not in parameters.values:
        return False
    hires = any(key.startswith(("hires", "first pass size")) for key in facts)
    return False if hires or "hires_scale" in parameters.values else None


def _collect_notes(facts: Mapping[str, str], parameters: Parameters) -> list[str]:
    notes = []
    if parameters.program in ("A1111", "Forge", "Civitai") and facts.get("rng", "GPU") != "CPU":
        notes.append("Its noise was generated on a GPU: the same seed begins from other noise here.")
    if facts.get("ensd", "0") not in ("0", ""):
        notes.append(f"The noise that its sampler adds had other seeds (ENSD {printable(facts['ensd'], 12)}).")
    if parameters.program == "Fooocus":
        notes.append("Fooocus' own sharpness and guidance of sizes are not here.")
    parts = [name for start, name in _OTHER_PARTS.items() if any(key.startswith(start) for key in facts)]
    if parts:
        notes.append(f"It was also made with {', '.join(dict.fromkeys(parts))}, which is not done here.")
    return notes
