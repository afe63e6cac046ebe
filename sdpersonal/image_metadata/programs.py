"""Read the metadata of programs that store their settings as JSON objects with their own names.

Sources: InvokeAI's `invocations/metadata.py` and 2.x's `pngwriter.py`; SwarmUI's "Image Metadata Format"; Fooocus'
`meta_parser.py` and `private_logger.py`; Easy Diffusion's `save_utils.py`; NovelAI's own images and
`novelai-image-metadata`; Stability Matrix's `GenerationParameters.cs`; images of Draw Things and Civitai.
"""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping
from typing import Any

from ..errors import printable
from .comfyui_graph import json_object
from .parameters import Parameters, Unreadable, base_name, number, size_of
from .prompt_syntax import Network, Syntax

_KEYS: dict[str, tuple[str, ...]] = {  # setting -> its names in lower case, without blanks and punctuation
    "prompt": ("positiveprompt", "prompt", "c"),
    "negative": ("negativeprompt", "negative", "uc"),
    "seed": ("seed",),
    "steps": ("steps", "numinferencesteps"),
    "guidance": ("cfgscale", "guidancescale", "scale", "cfg"),
    "rescale": ("cfgrescale", "cfgrescalemultiplier", "guidancerescale"),
    "width": ("width",),
    "height": ("height",),
    "size": ("size", "resolution"),
    "sampler": ("samplername", "sampler", "ksamplername", "comfyuisampler"),
    "schedule": ("scheduler", "schedulename", "schedule", "noiseschedule", "comfyuischeduler"),
    "model": ("model", "basemodel", "basemodelname", "modelname", "usestablediffusionmodel", "stablediffusionmodel"),
    "clip_skip": ("clipskip",),
    "strength": ("strength", "denoisingstrength", "promptstrength", "initimagecreativity", "denoise"),
}
_NONE: tuple[object, ...] = (None, "", "None", "none", [], {})


class _Settings:
    """An object's values, looked up by setting or by simplified name."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = {_plain(name): value for name, value in values.items()}

    def get(self, *names: str) -> Any:
        """Return the first non-empty scalar of these names, or None."""
        values = (self._values[name] for name in names if name in self._values)
        return next(
            (value for value in values if not isinstance(value, list | dict | None) and value not in _NONE), None
        )

    def any(self, name: str) -> Any:
        return self._values.get(name)

    def text(self, what: str) -> str:
        value = self.get(*_KEYS[what])
        return value if isinstance(value, str) else ""

    def number(self, what: str) -> Any:
        return number(self.get(*_KEYS[what]))


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]", "", name.lower())


def _common(program: str, text: str, values: Mapping[str, Any], syntax: Syntax, naming: str = "") -> Parameters:
    """Read the settings that all programs share."""
    settings = _Settings(values)
    parameters = Parameters(program, text, settings.text("prompt"), settings.text("negative"), syntax, naming=naming)
    for setting in ("seed", "steps", "guidance", "rescale", "clip_skip"):
        if (value := settings.number(setting)) is not None:
            parameters.values[setting] = value
    if parameters.values.get("seed") == -1:
        del parameters.values["seed"]
        parameters.notes.append("Its seed is not in it (-1 stands for any).")
    size = settings.get("size", "resolution")
    pair = re.match(r"\s*+\(?+\s*+([0-9]{1,5})\s*+[x×,*]\s*+([0-9]{1,5})", size) if isinstance(size, str) else None
    size_text = size_of(*pair.groups()) if pair else size_of(settings.number("width"), settings.number("height"))
    if size_text:
        parameters.values["size"] = size_text
    parameters.sampler = settings.text("sampler")
    parameters.schedule = settings.text("schedule") or None
    model = next((settings.any(key) for key in _KEYS["model"] if settings.any(key) not in _NONE), "")
    parameters.model = base_name(_name(model)) if model else ""
    return parameters


def _name(model: Any) -> str:
    """Return the name of a model or a LoRA, given as a text or as an object with a name."""
    if isinstance(model, dict):
        keys = ("name", "model_name", "modelFileName", "file", "model")
        return next((str(model[key]) for key in keys if isinstance(model.get(key), str)), "")
    return model if isinstance(model, str) else ""


def _lora(name: Any, strength: Any) -> list[Network]:
    name, strength = base_name(_name(name)), number(strength)
    return [Network("LoRA", name, strength if isinstance(strength, int | float) else None)] if name else []


def _entries(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value[:64] if isinstance(entry, dict)] if isinstance(value, list) else []


# --- InvokeAI ---------------------------------------------------------------------------------------------------------


def invokeai(texts: Mapping[str, str]) -> Parameters | None:
    """Read InvokeAI's `invokeai_metadata` (3.x and later), `sd-metadata` (2.x) or `Dream` (1.x and 2.x)."""
    if (values := json_object(texts.get("invokeai_metadata"))) is not None:
        return _invokeai(values, texts["invokeai_metadata"])
    if (values := json_object(texts.get("sd-metadata"))) is not None:
        return _sd_metadata(values, texts["sd-metadata"])
    if "Dream" in texts:
        return _dream(texts["Dream"])
    graph_keys = [
        key for key in ("invokeai_workflow", "invokeai_graph", "invokeai_metadata", "sd-metadata") if key in texts
    ]
    if graph_keys:
        raise Unreadable("InvokeAI", f"it has {graph_keys[0]} without metadata, which holds no prompt")
    return None


def _invokeai(values: dict[str, Any], text: str) -> Parameters:
    parameters = _common("InvokeAI", text, values, "compel")
    if not parameters.prompt and not parameters.values:
        raise Unreadable("InvokeAI", "its metadata holds no prompt")
    parameters.sampler, parameters.schedule = str(values.get("scheduler") or ""), None
    if isinstance(skip := parameters.values.get("clip_skip"), int):
        parameters.values["clip_skip"] = skip + 1  # InvokeAI counts the skipped layers
    for entry in _entries(values.get("loras")):
        parameters.networks += _lora(entry.get("model") or entry.get("lora"), entry.get("weight"))
    mode, strength = str(values.get("generation_mode", "")), number(values.get("strength"))
    parameters.img2img = bool(re.search("img2img|paint", mode)) or values.get("init_image") not in _NONE
    if parameters.img2img and strength is not None:
        parameters.values["strength"] = strength
    _invokeai_second_pass(values, parameters)
    if values.get("rand_device") not in (None, "cpu"):
        parameters.notes.append("Its noise was generated on a GPU: the same seed begins from other noise here.")
    parts = {"controlnets": "ControlNet", "ipAdapters": "an IP-Adapter", "t2iAdapters": "a T2I-Adapter"}
    parts |= {"refiner_model": "a refiner model", "controlLayers": "control layers"}
    parameters.notes += _also(name for key, name in parts.items() if values.get(key) not in _NONE)
    style = values.get("positive_style_prompt")
    if isinstance(style, str) and style not in ("", parameters.prompt):
        parameters.notes.append(f"Its second text encoder had other words: {printable(style, 80)}.")
    return parameters


def _invokeai_second_pass(values: Mapping[str, Any], parameters: Parameters) -> None:
    if not values.get("hrf_enabled"):
        return
    first = size_of(values.get("hrf_width"), values.get("hrf_height"))
    size, strength = parameters.values.get("size"), number(values.get("hrf_strength"))
    if first and size:
        parameters.values |= {
            "size": first,
            "hires_scale": round(int(size.split("x")[0]) / int(first.split("x")[0]), 3),
        }
        if strength is not None:
            parameters.values["strength"] = strength
    else:
        parameters.notes.append(
            "It was generated in a second, larger pass, of which only the size at the end is known."
        )


def _sd_metadata(values: dict[str, Any], text: str) -> Parameters:
    image = values.get("image")
    if not isinstance(image, dict):
        raise Unreadable("InvokeAI", "its sd-metadata holds no image's settings")
    prompts = image.get("prompt")
    words = [str(entry.get("prompt", "")) for entry in _entries(prompts)] or [
        prompts if isinstance(prompts, str) else ""
    ]
    parameters = _common("InvokeAI", text, image | {"prompt": ""}, "compel")
    parameters.prompt, parameters.negative = _without_negative(" ".join(words))
    parameters.model = base_name(values.get("model_weights") or values.get("model") or "")
    parameters.img2img = image.get("type") == "img2img"
    if parameters.img2img and (strength := number(image.get("strength"))) is not None:
        parameters.values["strength"] = strength
    variations = _entries(image.get("variations"))
    if len(variations) == 1:
        parameters.values |= {
            "variation_strength": number(variations[0].get("weight")),
            "variation_seed": number(variations[0].get("seed")),
        }
    elif variations:
        parameters.notes.append(f"It is a mix of {len(variations) + 1} seeds, of which the first is taken.")
    parameters.notes += _also(["postprocessing"] if image.get("postprocessing") not in _NONE else [])
    return parameters


def _dream(text: str) -> Parameters:
    """Parse InvokeAI's command line: `"a cat [blurry]" -s 50 -S 5 -W 512 -H 768 -C 7.5 -A k_lms`."""
    try:
        words = shlex.split(text[:20_000])
    except ValueError:
        words = text[:20_000].replace('"', " ").split()
    flags: dict[str, str] = {}
    prompt_words = []
    i = 0
    while i < len(words):
        if re.fullmatch(r"-{1,2}[A-Za-z_][\w-]*", words[i]) and i + 1 < len(words) and " " not in words[i]:
            flags.setdefault(words[i].lstrip("-"), words[i + 1])
            i += 2
            continue
        prompt_words.append(words[i])
        i += 1
    names = {"seed": "S", "steps": "s", "guidance": "C"}
    parameters = Parameters("InvokeAI", text, syntax="compel", sampler=flags.get("A", ""))
    parameters.prompt, parameters.negative = _without_negative(" ".join(prompt_words))
    parameters.values |= {field: number(flags[flag]) for field, flag in names.items() if flag in flags}
    if size := size_of(flags.get("W"), flags.get("H")):
        parameters.values["size"] = size
    if "I" in flags or "init_img" in flags:
        parameters.img2img = True
        if "f" in flags:
            parameters.values["strength"] = number(flags["f"])
    parameters.notes += _also(["postprocessing"] if {"G", "U", "gfpgan_strength", "upscale"} & flags.keys() else [])
    return parameters


def _without_negative(prompt: str) -> tuple[str, str]:
    """Split off words in square brackets, which were the negative prompt until 3.0."""
    negative = [words.strip() for words in re.findall(r"\[([^\[\]]*)\]", prompt)]
    return " ".join(re.sub(r"\[[^\[\]]*\]", " ", prompt).split()), ", ".join(filter(None, negative))


# --- NovelAI ----------------------------------------------------------------------------------------------------------


def novelai(texts: Mapping[str, str]) -> Parameters | None:
    """Read NovelAI's JSON in `Comment`; a WebP holds all of a PNG's texts as one JSON object in the UserComment."""
    outer = json_object(texts.get("UserComment")) or {}
    comment = texts.get("Comment") or outer.get("Comment")
    source = (
        f"{texts.get('Software', '')} {texts.get('Source', '')} {outer.get('Software', '')} {outer.get('Source', '')}"
    )
    values = json_object(comment) if isinstance(comment, str) else comment if isinstance(comment, dict) else None
    if "novelai" not in source.lower() and (values is None or not {"uc", "sampler", "scale"} <= values.keys()):
        return None
    if values is None:
        raise Unreadable("NovelAI", "its comment cannot be read")
    description = texts.get("Description") or outer.get("Description") or texts.get("ImageDescription")
    return _novelai(values, str(comment), description if isinstance(description, str) else "")


def _novelai(values: dict[str, Any], text: str, description: str) -> Parameters:
    parameters = _common("NovelAI", text, values, "novelai")
    parameters.prompt = _captions(values.get("v4_prompt"), parameters) or parameters.prompt or description
    parameters.negative = _captions(values.get("v4_negative_prompt"), None) or parameters.negative
    request = str(values.get("request_type", ""))
    strength = number(values.get("strength"))
    parameters.img2img = bool(re.search("img2img|inpaint|infill", request, re.IGNORECASE))
    if not parameters.img2img and not request and isinstance(strength, int | float) and 0 < strength < 1:
        parameters.img2img = None  # images of 2022 do not tell
    if parameters.img2img is not False and strength is not None:
        parameters.values["strength"] = strength
    if (count := number(values.get("n_samples"))) not in (None, 1):
        parameters.notes.append(f"It is one of {count} images that share a seed.")
    parts = ["SMEA"] if values.get("sm") else []
    if (
        values.get("reference_strength_multiple") not in _NONE
        or values.get("director_reference_strengths") not in _NONE
    ):
        parts.append("reference images")
    parameters.notes += _also(parts)
    return parameters


def _captions(prompt: Any, parameters: Parameters | None) -> str:
    """Join a prompt of version 4: the base caption and the caption of each character."""
    caption = prompt.get("caption") if isinstance(prompt, dict) else None
    if not isinstance(caption, dict) or not isinstance(caption.get("base_caption"), str):
        return ""
    captions = (entry.get("char_caption") for entry in _entries(caption.get("char_captions")))
    characters = [words.strip(" ,") for words in captions if isinstance(words, str) and words.strip(" ,")]
    if characters and parameters:
        subject = "Its character" if len(characters) == 1 else f"Each of its {len(characters)} characters"
        parameters.notes.append(f"{subject} had a prompt of its own; here they are one prompt.")
    return ", ".join([caption["base_caption"].strip(" ,"), *characters])


# --- Fooocus, SwarmUI, Easy Diffusion, Stability Matrix, Civitai, Draw Things -----------------------------------------


def fooocus(texts: Mapping[str, str]) -> Parameters | None:
    """Read Fooocus' own scheme in `parameters` or the UserComment, 2.1's in `Comment`, and RuinedFooocus'.

    `read_infotext` reads its A1111 scheme.
    """
    for key in ("parameters", "UserComment", "Comment", "JPEG comment"):
        values = json_object(texts.get(key))
        if values is None:
            continue
        have = _Settings(values)
        ruined = str(have.get("software")).lower() == "ruinedfooocus"
        if ruined or texts.get("fooocus_scheme") or have.any("admguidance") or have.any("fullprompt"):
            return _fooocus(values, texts[key], "RuinedFooocus" if ruined else "Fooocus")
    return None


def _fooocus(values: dict[str, Any], text: str, program: str) -> Parameters:
    parameters = _common(program, text, values, "comfyui", "comfyui")
    settings = _Settings(values)
    for side, key in (("prompt", "fullprompt"), ("negative", "fullnegativeprompt")):
        full_prompt = settings.any(key)
        parts = (
            [part for part in full_prompt if isinstance(part, str)] if isinstance(full_prompt, list) else [full_prompt]
        )
        if words := ", ".join(part.strip(" ,") for part in parts if isinstance(part, str) and part.strip(" ,")):
            setattr(parameters, side, words)
    parameters.values.pop("clip_skip", None) if program == "Fooocus" else None  # Fooocus' 2 is SDXL's default
    for name, value in values.items():
        if re.fullmatch(r"lora(combined)?[0-9]+", _plain(name)) and isinstance(value, str):
            lora, _, weight = value.rpartition(" : ")
            parameters.networks += _lora(lora, weight)
    loras = values.get("loras")
    for entry in loras[:64] if isinstance(loras, list) and not parameters.networks else []:
        if isinstance(entry, list) and len(entry) >= 2:
            parameters.networks += _lora(entry[0], entry[1])
        elif isinstance(entry, dict):
            parameters.networks += _lora(entry.get("name") or entry.get("lora"), entry.get("weight"))
    if settings.any("fullprompt") in _NONE and settings.get("styles") not in (None, "[]"):
        parameters.notes.append(f"Its styles are not here: {printable(str(settings.get('styles')), 80)}.")
    if program == "Fooocus":
        parameters.notes.append("Fooocus' own sharpness and guidance of sizes are not here.")
    refiner = settings.get("refinermodel", "refinermodelname")
    parameters.notes += _also(["a refiner model"] if refiner not in _NONE else [])
    return parameters


def swarmui(texts: Mapping[str, str]) -> Parameters | None:
    """Read SwarmUI's `sui_image_params` in `parameters`, the UserComment, or, until 2024, Exif's Model."""
    for key in ("parameters", "UserComment", "Model"):
        values = json_object(texts.get(key))
        if values is None or not isinstance(values.get("sui_image_params"), dict):
            continue
        return _swarmui(values["sui_image_params"], texts[key])
    return None


def _swarmui(values: dict[str, Any], text: str) -> Parameters:
    parameters = _common("SwarmUI", text, values, "a1111", "comfyui")
    settings = _Settings(values)
    if isinstance(layer := number(settings.get("clipstopatlayer")), int) and layer:
        parameters.values["clip_skip"] = abs(layer)
    names, weights = _listed(settings.any("loras")), _listed(settings.any("loraweights"))
    for i, name in enumerate(names):
        parameters.networks += _lora(name, weights[i] if i < len(weights) else None)
    creativity = number(settings.get("initimagecreativity"))
    parameters.img2img = creativity is not None or settings.any("initimage") not in _NONE
    if parameters.img2img and creativity is not None:
        parameters.values["strength"] = creativity
    scale, control = number(settings.get("refinerupscale")), number(settings.get("refinercontrolpercentage"))
    if isinstance(scale, int | float) and scale > 1 and not parameters.img2img:
        parameters.values["hires_scale"] = scale
        parameters.values |= {"strength": control} if control else {}
    strength = number(settings.get("variationseedstrength"))
    if strength:
        parameters.values |= {"variation_strength": strength, "variation_seed": number(settings.get("variationseed"))}
    if parameters.schedule is None and parameters.sampler:
        parameters.schedule = "normal"
    tags = sorted(set(re.findall(r"<(segment|object|region|video|refiner|base)\b", parameters.prompt, re.IGNORECASE)))
    if tags:
        parameters.notes.append(f"Its prompt has parts for {', '.join(tags)}, which are text here.")
    models = {"refinermodel": "a refiner model", "controlnetmodel": "ControlNet"}
    parameters.notes += _also(name for key, name in models.items() if settings.any(key) not in _NONE)
    return parameters


def _listed(value: Any) -> list[str]:
    """Return a list's entries as texts; a text is split at commas."""
    if isinstance(value, list):
        return [str(entry) for entry in value[:64]]
    return [part.strip() for part in value.split(",")][:64] if isinstance(value, str) and value else []


def _names_easy_diffusions_model(values: Mapping[str, Any]) -> bool:
    return not {_plain(name) for name in values}.isdisjoint({"usestablediffusionmodel", "stablediffusionmodel"})


def easy_diffusion(texts: Mapping[str, str]) -> Parameters | None:
    """Read Easy Diffusion: one text per setting in a PNG, one JSON object in other files.

    Names are those of its code or, in older versions, of its web page.
    """
    values: Mapping[str, Any] = texts
    if not _names_easy_diffusions_model(texts):
        decoded = (json_object(texts.get(key)) for key in ("UserComment", "parameters"))
        values = next(filter(None, decoded), {})
        if not _names_easy_diffusions_model(values):
            return None
    parameters = _common(
        "Easy Diffusion", "\n".join(f"{key}: {value}" for key, value in values.items())[:50_000], values, "compel"
    )
    parameters.schedule = None
    settings = _Settings(values)
    skip = settings.any("clipskip")
    parameters.values.pop("clip_skip", None)
    if str(skip).lower() == "true":
        parameters.values["clip_skip"] = 2
    names = _strings(settings.any("useloramodel") or settings.any("loramodel"))
    weights = _strings(settings.any("loraalpha") or settings.any("lorastrength"))
    for i, name in enumerate(names):
        parameters.networks += _lora(name, weights[i] if i < len(weights) else None)
    embeddings = _strings(settings.any("useembeddingsmodel") or settings.any("embeddingmodels"))
    parameters.networks += [Network("embedding", base_name(name)) for name in embeddings]
    strength = number(settings.get("promptstrength"))
    parameters.img2img = strength is not None
    if parameters.img2img:
        parameters.values["strength"] = strength
    parts = {"useupscale": "an upscaler", "usefacecorrection": "face correction", "usecontrolnetmodel": "ControlNet"}
    parts |= {"upscaling": "an upscaler", "useupscaling": "an upscaler", "controlnetmodel": "ControlNet"}
    parameters.notes += _also(name for key, name in parts.items() if settings.any(key) not in (*_NONE, "False", False))
    return parameters


def _strings(value: Any) -> list[str]:
    """Return the texts in a single value, a list, or a text that spells a list in Python or with commas."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(value)]
    if isinstance(value, str):
        value = [part.strip(" '\"") for part in value.strip("[]").split(",")]
    texts = [str(entry) for entry in value[:64]] if isinstance(value, list) else []
    return [entry for entry in texts if entry and entry != "None"]


def stability_matrix(texts: Mapping[str, str]) -> Parameters | None:
    """Read Stability Matrix' `parameters-json` or project, if the graph beside it could not be read."""
    if (values := json_object(texts.get("parameters-json"))) is not None:
        return _common("Stability Matrix", texts["parameters-json"], values, "a1111")
    if (project := json_object(texts.get("smproj"))) is None:
        return None
    state = project.get("State")
    if not isinstance(state, dict):
        raise Unreadable("Stability Matrix", "its project holds no prompt")
    return _project(state, texts["smproj"])


def _project(state: dict[str, Any], text: str) -> Parameters:
    """Read a project's cards: `Prompt`, `Sampler`, `Seed`, `Model`."""
    cards = {name: card for name, card in state.items() if isinstance(card, dict)}
    prompt, sampler = cards.get("Prompt", {}), cards.get("Sampler", {})
    values: dict[str, Any] = {key: value for key, value in sampler.items() if isinstance(value, str | int | float)}
    values |= {"Seed": cards.get("Seed", {}).get("Seed"), "prompt": prompt.get("Prompt")}
    values["negative_prompt"] = prompt.get("NegativePrompt")
    values["model"] = cards.get("Model", {}).get("SelectedModelName")
    parameters = _common("Stability Matrix", text[:50_000], values, "a1111", "comfyui")
    if not parameters.prompt:
        raise Unreadable("Stability Matrix", "its project holds no prompt")
    parameters.sampler = _chosen(sampler.get("SelectedSampler"))
    parameters.schedule = _chosen(sampler.get("SelectedScheduler")) or None
    model = cards.get("Model", {})
    if model.get("IsClipSkipEnabled") and (skip := number(model.get("ClipSkip"))) is not None:
        parameters.values["clip_skip"] = skip
    return parameters


def _chosen(card: Any) -> str:
    return str(card.get("Name", "")) if isinstance(card, dict) else card if isinstance(card, str) else ""


def civitai(values: Mapping[str, Any], text: str) -> Parameters:
    """Read Civitai's `extraMetadata`: the request to its generator."""
    parameters = _common("Civitai", text, values, "a1111", "a1111")
    parameters.model = base_name(values.get("baseModel") or "")
    for entry in _entries(values.get("resources")):
        if str(entry.get("type", "")).lower() in ("lora", "locon", "lycoris", "dora"):
            name = entry.get("name") or entry.get("modelName") or entry.get("modelVersionId")
            parameters.networks += _lora(str(name or ""), entry.get("strength", entry.get("weight")))
    workflow = str(values.get("workflow", ""))
    parameters.img2img = "img2img" in workflow and "upscale" not in workflow and "hires" not in workflow
    changed = [str(entry.get("type", "")) for entry in _entries(values.get("transformations"))]
    if changed:
        parameters.notes.append(
            f"Afterwards it was changed ({printable(', '.join(changed), 40)}), which is not done here."
        )
    return parameters


def draw_things(texts: Mapping[str, str]) -> Parameters | None:
    """Read Draw Things' JSON in XMP's `exif:UserComment`."""
    xmp = next((texts[key] for key in ("XML:com.adobe.xmp", "xmp") if key in texts), "")
    values = json_object(_xmp_value(xmp, "exif:UserComment")) if xmp else json_object(texts.get("UserComment"))
    if values is not None and "c" in values and ("uc" in values or "scale" in values):
        return _draw_things(values, str(values))
    if "Draw Things" in xmp:
        raise Unreadable("Draw Things", "its XMP holds no settings")
    return None


def _xmp_value(xmp: str, name: str) -> str:
    """Return the value of an element, without tags, or of an attribute. No XML parser is used: nothing is expanded."""
    begin = xmp.find(f"<{name}")
    end = xmp.find(f"</{name}>", begin)
    if begin >= 0 and end >= 0:
        return html.unescape(re.sub(r"<[^<>]*>", "", xmp[begin:end])).strip()
    match = re.search(re.escape(name) + r'="([^"]*)"', xmp)
    return html.unescape(match[1]) if match else ""


def _draw_things(values: dict[str, Any], text: str) -> Parameters:
    parameters = _common("Draw Things", text, values, "a1111")
    parameters.schedule = None
    v2 = v2 if isinstance(v2 := values.get("v2"), dict) else {}
    for entry in _entries(values.get("lora")) or _entries(v2.get("loras")):
        parameters.networks += _lora(entry.get("model") or entry.get("file"), entry.get("weight"))
    skip = number(values.get("clip_skip", v2.get("clipSkip")))
    if isinstance(skip, int):
        parameters.values["clip_skip"] = skip
    strength = number(values.get("strength"))
    parameters.img2img = isinstance(strength, int | float) and 0 < strength < 1
    if parameters.img2img:
        parameters.values["strength"] = strength
    if v2.get("hiresFix") is True:
        first = size_of(v2.get("hiresFixWidth"), v2.get("hiresFixHeight"))
        size = parameters.values.get("size")
        if first and size:
            parameters.values |= {
                "size": first,
                "hires_scale": round(int(size.split("x")[0]) / int(first.split("x")[0]), 3),
            }
            if (second_strength := number(v2.get("hiresFixStrength"))) is not None:
                parameters.values["strength"] = second_strength
    if "cpu" not in str(values.get("seed_mode", "")).lower():
        parameters.notes.append("Its noise was generated in its own way: the same seed begins from other noise here.")
    parameters.notes += _also(["control nets"] if (values.get("control") or v2.get("controls")) not in _NONE else [])
    return parameters


def midjourney(texts: Mapping[str, str]) -> Parameters | None:
    """Read Midjourney's `a cat --ar 16:9 --no dogs --seed 5 --v 6.1 Job ID: ...` in a PNG's Description."""
    text = texts.get("Description") or texts.get("ImageDescription") or ""
    if not (job := re.search(r"(?<!\s)\s*+Job ID: *+[0-9a-f-]{30,40}\s*+$", text, re.IGNORECASE)):
        return None
    prompt, *flags = re.split(r"(?<!\s)\s++--(?=[a-z])", f" {text[: job.start()]}")
    values = {name: value.strip() for name, _, value in (flag.partition(" ") for flag in flags)}
    parameters = Parameters("Midjourney", text, prompt.strip(), values.get("no", ""), "comfyui")
    if "seed" in values:
        parameters.values["seed"] = number(values["seed"])
    parameters.notes.append(
        "It was generated with Midjourney's own model: the same words and seed give another image here."
    )
    return parameters


def other(texts: Mapping[str, str]) -> Parameters | None:
    """Read a JSON object of any other program that uses common names, as Spaces of the Hub do."""
    for key, text in texts.items():
        values = json_object(text)
        if values is None:
            continue
        program = "Tensor.Art" if key == "generation_data" else "another program"
        parameters = _common(program, text, values, "a1111")
        if parameters.prompt and ("steps" in parameters.values or "seed" in parameters.values):
            for entry in _entries(values.get("loras")) or _entries(values.get("models")):
                if entry.get("type") in (None, "LORA"):
                    name = entry.get("name") or entry.get("modelFileName") or entry.get("label") or entry.get("model")
                    parameters.networks += _lora(name, entry.get("weight"))
            return parameters
    return None


_SIGNED = (b"ChatGPT", b"OpenAI", b"Adobe Firefly", b"Bing Image Creator", b"Microsoft Designer", b"Google")
_STANDARD = re.compile(  # texts in which no program stores its settings, in lower case
    r"title|author|description|copyright|creation time|disclaimer|warning|source|comment|software|"
    r"(raw profile|date:|exif:|tiff:|png:|pdf:|icc|thumb::|xml:|dpi|signature).*|xmp|make|model|imagedescription|"
    r"usercomment|makernote|documentname|jpeg comment|sd-ti-embedding"
)


def unknown(texts: Mapping[str, str], data: bytes) -> Unreadable | None:
    """Return an Unreadable that names the program of an image that no reader recognised; None if it is unknown."""
    start = data[:200_000]
    if b"jumb" in start and b"c2pa" in start:
        name = next((f"{name.decode()}, which" for name in _SIGNED if name in start), "a program that")
        return Unreadable(f"{name} signs its images (C2PA)", "the signature holds no prompt")
    tool = re.search(r'xmp:CreatorTool(?:>|=")([^<"]{1,80})', texts.get("XML:com.adobe.xmp", ""))
    if program := texts.get("Software", "").strip() or (tool and html.unescape(tool[1])):
        return Unreadable(printable(program, 40), "it holds no prompt that is known here")
    if names := [printable(name, 30) for name in texts if not _STANDARD.fullmatch(name.lower())]:
        return Unreadable("another program", f"its texts ({', '.join(names[:4])}) hold no prompt that is known here")
    return None


def _also(names: Any) -> list[str]:
    names = list(dict.fromkeys(names))
    return [f"It was also made with {', '.join(names)}, which is not done here."] if names else []
