"""Read the recipe in an image's bytes: ours, or another program's metadata. Time and memory are bounded; nothing that
the metadata names is opened.

Neither sd-parsers (0.6, April 2025; no LoRAs, strengths, EXIF of WebP, SwarmUI, Draw Things, Easy Diffusion) nor
sd-prompt-reader (1.3.5, May 2024; pins Pillow 10.3 and needs Tk) can be used: neither bounds what it reads. Both were
compared by hand as independent answers: see docs/recipes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import UserError, printable
from ..storage.reading import parse_strict_json
from . import programs
from .comfyui import comfyui
from .comfyui_graph import graph_in, json_object, lenient_json
from .image_text import MAX_TEXT_BYTES, TextTooLong, all_texts, png_text
from .parameters import Foreign, Parameters, Unreadable, foreign_of
from .read_infotext import a1111
from .recipe import Recipe
from .stealth import hidden_text
from .write_png import RECIPE_KEY

MAX_IMAGE_BYTES = 100_000_000  # bytes of a file to read
_A1111_TEXTS = ("parameters", "UserComment", "Comment", "ImageDescription", "JPEG comment")


def read_recipe(data: bytes, name: str = "The image") -> Recipe | Foreign:
    """Return the recipe of the image called `name`. Raises UserError if it holds nothing that can be read."""
    try:
        own_text = png_text(data, RECIPE_KEY)
        if own_text is not None:
            return _parse_recipe(own_text)
        parameters = _foreign(data)
    except TextTooLong:
        raise _refused_error(name, f"its text is longer than {MAX_TEXT_BYTES // 1000} kB") from None
    except Unreadable as error:
        raise UserError(
            f"{printable(name)} comes from {error.program}, but {error.reason}.", "Type its prompt yourself."
        ) from None
    except ValueError as error:
        raise _refused_error(name, str(error)) from None
    except UserError as error:
        raise UserError(f"The recipe in {printable(name)} is refused. {error.message}", error.hint) from None
    if parameters is None:
        raise UserError(
            f"{printable(name)} holds no recipe.",
            "Images generated with --private have none, and screenshots and messengers remove it.",
        )
    return foreign_of(parameters)


def _foreign(data: bytes) -> Parameters | None:
    """Return another program's parameters, or None. Raises TextTooLong or Unreadable if none can be used."""
    texts, too_long = all_texts(data)
    parameters, unreadable = _from_texts(texts, data)
    # Pillow reads texts of any length while it decodes the pixels, so images with a too long text are not decoded.
    if parameters is None and not too_long and (hidden := hidden_text(data)) is not None:
        parameters, other = _from_texts(_hidden_texts(hidden), data)
        unreadable = unreadable or other
    if parameters is None and unreadable:
        raise unreadable
    if parameters is None and not too_long and (unreadable := programs.unknown(texts, data)):
        raise unreadable
    if parameters is None and too_long & {"parameters", "prompt", "workflow", "UserComment", "Comment"}:
        raise TextTooLong
    return parameters


def _hidden_texts(text: str) -> dict[str, str]:
    """Return hidden texts by name: NovelAI hides all as one JSON object, A1111's extension hides only the infotext."""
    try:
        values = lenient_json(text)
    except ValueError:
        return {"parameters": text}
    if not isinstance(values, dict) or "sui_image_params" in values:
        return {"parameters": text}
    return {str(key): value for key, value in values.items() if isinstance(value, str)} or {"parameters": text}


def _from_texts(texts: Mapping[str, str], data: bytes) -> tuple[Parameters | None, Unreadable | None]:
    """Return the first reader's parameters, else why the first program that was recognised could not be read."""
    unreadable = None
    for read in _READERS:
        try:
            if (parameters := read(texts, data)) is not None:
                size = _image_size(data)
                if parameters.program == "NovelAI" and size and "size" not in parameters.values:
                    parameters.values["size"] = "x".join(map(str, size))  # its first images store the size nowhere else
                return parameters, None
        except Unreadable as error:
            unreadable = unreadable or error
    return None, unreadable


def _a1111(texts: Mapping[str, str]) -> Parameters | None:
    for key in _A1111_TEXTS:
        if key in texts and (parameters := a1111(texts[key])) is not None:
            return parameters
    if "postprocessing" in texts:
        raise Unreadable("A1111", "it was only enlarged there, which needs no prompt")
    return None


def _graph(texts: Mapping[str, str], data: bytes) -> Parameters | None:
    """Read ComfyUI's graphs, the executed one before the canvas.

    A1111's infotext beside them is used if a node in the graph makes words at random or picks them from a list.
    """
    unreadable, unsure = None, None
    graphs = _graphs(texts)
    if not graphs:
        return None
    for text, value in graphs:
        extra = value.pop("extraMetadata", None) if isinstance(value, dict) else None
        graph = graph_in(value)
        if graph is None:
            continue
        extra = extra or texts.get("extraMetadata")
        requested = json_object(extra) if isinstance(extra, str) else None
        try:
            parameters, is_certain = comfyui(graph, text, _image_size(data))
        except Unreadable as error:
            if requested:
                return programs.civitai(requested, str(extra))
            unreadable = unreadable or error
            continue
        if requested and parameters.img2img:  # it began from the generator's own earlier image: the request says more
            return programs.civitai(requested, str(extra))
        parameters.program = _graph_program(texts, parameters.program)
        if is_certain:
            return parameters
        unsure = unsure or parameters
    fallback = _a1111_or_none(texts) or unsure
    if fallback is None and unreadable:
        raise unreadable
    return fallback


def _a1111_or_none(texts: Mapping[str, str]) -> Parameters | None:
    try:
        return _a1111(texts)
    except Unreadable:
        return None


def _graph_program(texts: Mapping[str, str], otherwise: str) -> str:
    if "parameters-json" in texts or "smproj" in texts:
        return "Stability Matrix"
    return "Tensor.Art" if "generation_data" in texts else otherwise


def _graphs(texts: Mapping[str, str]) -> list[tuple[str, object]]:
    """Return (text, its JSON) for each graph, from a PNG's keys, or from Exif, where a graph follows a word
    ("Prompt: {...}") or one object holds both."""
    graphs: list[tuple[str, object]] = []
    for key in ("prompt", "Make", "Model", "UserComment", "ImageDescription", "workflow"):
        text = texts.get(key, "")
        if key in ("Make", "Model", "ImageDescription"):
            word, colon, rest = text.partition(":")
            text = rest if colon and word.strip().lower() in ("prompt", "workflow") else ""
        if (value := json_object(text)) is None:
            continue
        inner = [value[name] for name in ("prompt", "workflow") if name in value] if "nodes" not in value else []
        inner = [json_object(entry) if isinstance(entry, str) else entry for entry in inner]
        graphs += [(text, graph) for graph in inner if isinstance(graph, dict)] or [(text, value)]
    return graphs


def _image_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a PNG from its first chunk."""
    if data[12:16] != b"IHDR":
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _alone(read: Callable[[Mapping[str, str]], Parameters | None]):
    return lambda texts, data: read(texts)


_READERS: tuple[Callable[[Mapping[str, str], bytes], Parameters | None], ...] = (
    _alone(programs.swarmui),  # before the graph that its images also have
    _alone(programs.invokeai),
    _alone(programs.fooocus),
    _alone(programs.novelai),
    _alone(programs.draw_things),
    _alone(programs.easy_diffusion),  # before graphs: its PNGs have a text "prompt" too
    _graph,
    _alone(programs.stability_matrix),
    _alone(programs.midjourney),
    _alone(_a1111),
    _alone(programs.other),
)


def _parse_recipe(text: str) -> Recipe:
    fields = parse_strict_json(text)
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    return Recipe(**fields)


def _refused_error(name: str, why: str) -> UserError:
    return UserError(f"The recipe in {printable(name)} is refused: {why}.")
