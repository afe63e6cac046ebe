"""Read ComfyUI's parameters by walking its graph from the saved image back to the empty latent image.

    SaveImage <- VAEDecode <- KSampler <- EmptyLatentImage
                              KSampler <- CLIPTextEncode <- CLIPSetLastLayer
                              KSampler <- LoraLoader <- CheckpointLoaderSimple

Nodes are recognised by their inputs, so that those of packs (Efficiency, rgthree, Impact, Inspire, Comfyroll, pysssss,
Easy-Use) are read like ComfyUI's own: a sampler is a node with a seed, prompts and a latent image. Nothing is executed.
A walk visits each node once, and at most `_STEPS` nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import printable
from ..prompts import BlockWeights
from ..prompts.concept_options import read_block_weights
from .comfyui_graph import Graph, Link, Node
from .parameters import Parameters, Unreadable, base_name, number
from .prompt_syntax import Network

_Size = tuple[int, int]  # (width, height) in pixels
_STEPS = 2000  # nodes visited in one walk
_DEEP = 60  # length of a chain of nodes
_SAVES, _SHOWS = re.compile("save", re.IGNORECASE), re.compile("save|preview", re.IGNORECASE)
_PICTURES = (
    *("images", "image", "pixels", "samples", "latent_image", "latent", "latents", "optional_latent_image"),
    *("upscaled_image", "input_image", "destination", "samples_to", "image1", "IMAGE", "LATENT", "input", "any"),
)
_LATENTS = ("latent_image", "latent", "samples", "latents", "optional_latent_image", "init_latent")
_PIPES = ("pipe", "basic_pipe", "detailer_pipe", "sdxl_tuple", "base_basic_pipe", "context", "base_ctx", "settings")
_PARTS = ("noise", "guider", "sampler", "sigmas", *_PIPES)
_CONDITIONS = (
    *("conditioning", "conditioning_1", "conditioning_2", "conditioning_to", "conditioning_from", "cond1"),
    *("cond2", "conditioning1", "conditioning2", "conditioning_a", "conditioning_b", "cond", "CONDITIONING"),
)
_TEXTS = (
    "populated_text",
    "text",
    "text_g",
    "text_l",
    "clip_l",
    "t5xxl",
    "prompt",
    "string",
    "value",
    "STRING",
    "text1",
)
_JOINS = re.compile(r"concat|join|combine|append|merge", re.IGNORECASE)
_STRINGS = re.compile(r"(text|string|prompt|input|str)_?[a-z0-9]{0,2}$", re.IGNORECASE)
_WILD = re.compile(r"wildcard|random|dynamic|\bLLM|generat|ollama|interrogat|tagger|caption", re.IGNORECASE)
_MODELS = ("model", "MODEL", "model1", "lora_stack", "optional_lora_stack", "base_model", *_PIPES)
_CHECKPOINTS = ("ckpt_name", "base_ckpt_name", "unet_name", "model_name", "ckpt")
_LORA_KEY = re.compile(r"lora(?:_name)?_?([0-9]*)$|([0-9]*)_?lora_name$", re.IGNORECASE)
_STRENGTHS = (
    *("strength_model", "lora_model_strength", "model_strength", "strength", "lora_strength", "model_weight"),
    *("lora_wt", "model_str", "weight"),
)


@dataclass
class _Prompt:
    """Texts of the positive or negative prompt, in order.

    clip_skip: as A1111 counts; is_certain: false if a node that makes random or generated text is among their sources.
    """

    texts: list[str] = field(default_factory=list)
    clip_skip: int | None = None
    notes: list[str] = field(default_factory=list)
    is_certain: bool = True

    @property
    def text(self) -> str:
        return ", ".join(dict.fromkeys(text.strip() for text in self.texts if text.strip()))


@dataclass
class _Way:
    """The way from a saved image back to its start. path: its nodes in that order; samplers: those among them."""

    output: Node
    path: list[Node]
    samplers: list[Node]


def comfyui(graph: Graph, text: str, image_size: _Size | None = None) -> tuple[Parameters, bool]:
    """Return the graph's parameters and whether its prompt is certain. Raises Unreadable without a prompted sampler.

    image_size: the size of the image that holds the graph, which tells several saved images apart.
    """
    walk = _Walk(graph)
    ways = [way for way in map(walk.way, walk.outputs()) if way.samplers]
    if not ways:
        raise Unreadable("ComfyUI", "its graph has no sampler that leads to a saved image")
    saved = [way for way in ways if _SAVES.search(way.output.type)]
    ways = saved or ways  # an image that is only previewed is in no file
    way = next((way for way in ways if image_size and walk.sizes(way)[-1] == image_size), ways[0])
    of_its_size = image_size is not None and walk.sizes(way)[-1] == image_size
    parameters = Parameters("ComfyUI", text, syntax="comfyui", naming="comfyui")
    if len({id(candidate.samplers[0]) for candidate in ways}) > 1:
        which = "first that has its size" if of_its_size else "first of them"
        parameters.notes.append(f"Its graph saves several images; this was read as the {which}.")
    first, last = way.samplers[-1], way.samplers[0]
    positive, negative = walk.prompt(first, "positive"), walk.prompt(first, "negative")
    if not positive.text:
        raise Unreadable("ComfyUI", "its graph has no words for its sampler")
    parameters.prompt, parameters.negative = positive.text, negative.text
    _numbers(walk, first, positive, parameters)
    _passes(walk, way, parameters)
    parameters.model, parameters.networks = walk.weights(first)
    parameters.notes += positive.notes + negative.notes
    if last is not first and walk.prompt(last, "positive").text not in ("", positive.text):
        parameters.notes.append("Its second pass had other words, which are left out.")
    return parameters, positive.is_certain and negative.is_certain


def _numbers(walk: _Walk, sampler: Node, positive: _Prompt, parameters: Parameters) -> None:
    values = {
        "seed": walk.number(sampler, "seed", "noise_seed"),
        "steps": walk.number(sampler, "steps"),
        "guidance": walk.number(sampler, "cfg", "cfg_scale", "guidance"),
        "clip_skip": positive.clip_skip,
    }
    parameters.values |= {name: value for name, value in values.items() if value is not None}
    parameters.sampler = walk.word(sampler, "sampler_name", "sampler")
    parameters.schedule = (
        walk.word(sampler, "scheduler", "schedule", "scheduler_name") or walk.schedule_node(sampler) or None
    )


def _loads_image(kind: str) -> bool:
    """Return whether a node's type says that it loads an image."""
    pairs = (kind.partition(first)[2].find(second) for first, second in (("load", "image"), ("image", "load")))
    return "LoadImage" in kind or any(position >= 0 for position in pairs)


def _passes(walk: _Walk, way: _Way, parameters: Parameters) -> None:
    """Set size, hires scale, denoising strength, and whether it began from another image."""
    first, start = way.samplers[-1], way.path[-1]
    first_size, last_size, final_size = walk.sizes(way)
    if first_size:
        parameters.values["size"] = f"{first_size[0]}x{first_size[1]}"
    has_image = "image" in start.inputs and not isinstance(start.inputs["image"], Link)
    if has_image or _loads_image(start.type):
        parameters.img2img = True
        parameters.values.pop("size", None)  # it is the init image's
        if change := walk.change(first):
            parameters.values["strength"] = change
    _second_pass(walk, way, parameters, first_size, last_size)
    if last_size and final_size and final_size != last_size:
        parameters.notes.append(
            f"It was enlarged to {final_size[0]}x{final_size[1]} afterwards, which is not done here."
        )
    _note_batch_and_details(walk, way, parameters)


def _second_pass(
    walk: _Walk, way: _Way, parameters: Parameters, first_size: _Size | None, last_size: _Size | None
) -> None:
    """Set the hires scale and its denoising strength, or note what the samplers after the first did."""
    last = way.samplers[0]
    if last is way.samplers[-1]:
        return
    if not walk.adds_noise(last):
        parameters.notes.append("Its last steps were made by another sampler, often a refiner's, which is left out.")
        return
    scales = (last_size[0] / first_size[0], last_size[1] / first_size[1]) if first_size and last_size else (0.0, 0.0)
    scale = round(scales[0], 3)
    if abs(scales[0] - scales[1]) < 0.03 and scale > 1 and not parameters.img2img:
        parameters.values |= {"hires_scale": scale, "strength": walk.change(last) or 0.6}
    else:
        parameters.notes.append(f"It was generated in {len(way.samplers)} passes, of which the first is taken.")


def _note_batch_and_details(walk: _Walk, way: _Way, parameters: Parameters) -> None:
    batch = next((walk.number(node, "batch_size") for node in way.path if "batch_size" in node.inputs), None)
    if isinstance(batch, int | float) and batch > 1:
        parameters.notes.append(f"It is one of {batch:g} images of one seed; the first of them begins from this noise.")
    detailers = [
        node.type for node in way.path if node not in way.samplers and {"seed", "positive"} <= node.inputs.keys()
    ]
    if detailers:
        parameters.notes.append(
            f"Parts of it were generated again ({printable(', '.join(detailers), 60)}), which is not done here."
        )


class _Walk:
    """Queries on a graph. Each is bounded for any graph, even one with cycles."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self._used = {link.node for node in graph.values() for _, link in node.links()}

    # --- from the saved image back ----------------------------------------------------------------------------------

    def outputs(self) -> list[Node]:
        """List up to 20 nodes that save or preview an image: save nodes first, in the order of the graph."""
        ends = [
            node
            for node in self.graph.values()
            if any(isinstance(node.inputs.get(name), Link) for name in ("images", "image"))
            and (node.id not in self._used or _SHOWS.search(node.type))
        ]
        if not ends:  # a client of ComfyUI's API saved the image itself
            ends = [node for node in self.graph.values() if node.id not in self._used and "samples" in node.inputs]
        ends.sort(key=lambda node: not _SAVES.search(node.type))
        return ends[:20]

    def way(self, output: Node) -> _Way:
        path: list[Node] = []
        seen: set[str] = set()
        node: Node | None = output
        while node is not None and node.id not in seen and len(path) < _STEPS:
            seen.add(node.id)
            path.append(node)
            node = self._image_before(node)
        return _Way(output, path, [step for step in path if self.is_sampler(step)])

    def is_sampler(self, node: Node) -> bool:
        inputs = node.inputs
        prompts = any(isinstance(inputs.get(name), Link) for name in ("positive", "guider", "text_embeds", *_PIPES))
        seeded = any(name in inputs for name in ("seed", "noise_seed", "noise"))
        has_image = any(isinstance(inputs.get(name), Link) for name in ("image", "images", "upscaled_image", "pixels"))
        return prompts and seeded and not has_image

    def _image_before(self, node: Node) -> Node | None:
        names = _LATENTS if self.is_sampler(node) else _PICTURES
        for name in self._chosen(node) or names:
            if isinstance(link := node.inputs.get(name), Link):
                return self.graph.get(link.node)
        if self.is_sampler(node):
            pipe = next((node.inputs[name] for name in _PIPES if isinstance(node.inputs.get(name), Link)), None)
            return self.graph.get(pipe.node) if pipe else None
        links = [link for _, link in node.links()]
        if "latent" in node.type.lower() and {"width", "height"} <= node.inputs.keys():
            return None
        return self.graph.get(links[0].node) if len(links) == 1 else None

    def _chosen(self, node: Node) -> list[str]:
        """List the inputs that a switch passes on: the selected one; for rgthree's, the first that is connected."""
        if not re.search("switch", node.type, re.IGNORECASE):
            return []
        select = self._scalar(node.inputs.get("select", node.inputs.get("Input")), "select")
        others = sorted(name for name, _ in node.links() if re.fullmatch(r"any_[0-9]+|input[0-9]", name))
        return [f"input{select}", f"image{select}", f"latent{select}", *others]

    def sizes(self, way: _Way) -> tuple[_Size | None, _Size | None, _Size | None]:
        """Return the image sizes after the first sampler, after the last, and at the end; None if unknown."""
        size: _Size | None = None
        sampled: list[_Size | None] = []
        for node in reversed(way.path):
            size = self._size_after(node, size)
            if node in way.samplers:
                sampled.append(size)
        return sampled[0] if sampled else None, sampled[-1] if sampled else None, size

    def _size_after(self, node: Node, size: _Size | None) -> _Size | None:
        text = node.inputs.get("dimensions", node.inputs.get("resolution"))
        if isinstance(text, str) and (match := re.match(r"\s*([0-9]{2,5})\s*[x×*]\s*([0-9]{2,5})", text)):
            return int(match[1]), int(match[2])
        for pair in (("width", "height"), ("empty_latent_width", "empty_latent_height")):
            if set(pair) <= node.inputs.keys() and not self.is_sampler(node):
                width, height = (self._scalar(node.inputs[name], name) for name in pair)
                if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
                    return width, height
                return None if isinstance(node.inputs[pair[0]], Link) else size
        factor = next((self._scalar(node.inputs[name], name) for name in _FACTORS if name in node.inputs), None)
        if size and isinstance(factor, int | float) and 0 < factor <= 16:
            return round(size[0] * factor), round(size[1] * factor)
        if "upscale_model" in node.inputs and "upscale_by" not in node.inputs:
            return None  # the factor depends on the upscale model
        return size

    # --- values ------------------------------------------------------------------------------------------------------

    def number(self, node: Node, *names: str) -> int | float | str | None:
        return number(self._value(node, names))

    def word(self, node: Node, *names: str) -> str:
        value = self._value(node, names)
        return value if isinstance(value, str) else ""

    def _value(self, node: Node, names: tuple[str, ...]) -> Any:
        """Return the value of the first of these inputs that has one, of the node or of its parts."""
        for part in self._with_parts(node):
            for name in names:
                if name in part.inputs and (value := self._scalar(part.inputs[name], name)) is not None:
                    return value
        return None

    def _with_parts(self, node: Node) -> Iterator[Node]:
        """Yield the node, and the nodes behind its noise, guider, sampler, sigmas and pipes, each once."""
        waiting, seen = [node], {node.id}
        while waiting and len(seen) < _DEEP:
            node = waiting.pop(0)
            yield node
            for part in _PARTS:
                link = node.inputs.get(part)
                if isinstance(link, Link) and link.node not in seen and link.node in self.graph:
                    seen.add(link.node)
                    waiting.append(self.graph[link.node])

    def _scalar(self, value: Any, name: str) -> Any:
        """Return a value, following links to it; None for anything but a number or a text."""
        for _ in range(_DEEP):
            if not isinstance(value, Link):
                break
            node = self.graph.get(value.node)
            if node is None:
                return None
            candidates = [name, *(("width", "height") if name in ("width", "height") else ())]
            names = (
                *candidates,
                "seed",
                "noise_seed",
                "value",
                "Value",
                "int",
                "INT",
                "float",
                "FLOAT",
                "number",
                "sampler",
            )
            if name in ("width", "height") and {"width", "height"} <= node.inputs.keys():
                names = ("width", "height")[value.slot : value.slot + 1] or names
            literal = next((node.inputs[key] for key in names if key in node.inputs), None)
            links = [link for _, link in node.links()]
            value = literal if literal is not None else links[0] if len(links) == 1 else None
        return value if isinstance(value, int | float | str) and not isinstance(value, bool) else None

    def change(self, sampler: Node) -> float | None:
        """Return the denoising strength, for KSamplerAdvanced from the skipped steps; None for full denoising."""
        strength = self.number(sampler, "denoise", "denoise_strength", "strength")
        start, steps = self.number(sampler, "start_at_step"), self.number(sampler, "steps")
        if isinstance(start, int) and isinstance(steps, int) and 0 < start < steps:
            strength = round(1 - start / steps, 3)
        return float(strength) if isinstance(strength, int | float) and 0 < strength < 1 else None

    def adds_noise(self, sampler: Node) -> bool:
        value = sampler.inputs.get("add_noise")
        noise = self.graph.get(sampler.inputs["noise"].node) if isinstance(sampler.inputs.get("noise"), Link) else None
        return not (value in ("disable", False) or (noise and noise.type == "DisableNoise"))

    def schedule_node(self, sampler: Node) -> str:
        """Return the schedule that a scheduler node's type names, such as KarrasScheduler."""
        link = sampler.inputs.get("sigmas")
        node = self.graph.get(link.node) if isinstance(link, Link) else None
        match = re.fullmatch(r"(\w+)Scheduler", node.type) if node else None
        return match[1] if match and match[1] != "Basic" else ""

    # --- prompts -----------------------------------------------------------------------------------------------------

    def prompt(self, sampler: Node, side: str) -> _Prompt:
        """Collect the texts of a sampler's prompt. side: positive or negative."""
        prompt = _Prompt()
        if (start := self._start(sampler, side)) is not None:
            self._collect_texts(*start, prompt, set())
        if len(dict.fromkeys(prompt.texts)) > 1:
            prompt.notes.append(f"Several {side} prompts are combined in it; here they are one, with commas.")
        return prompt

    def _start(self, sampler: Node, side: str) -> tuple[Link, str] | None:
        """Return the origin of a sampler's prompt: its own input, a part's input, or a part that holds the text."""
        names = (side, *(("conditioning", "cond1") if side == "positive" else ()), "text_embeds")
        for node in self._with_parts(sampler):
            for name in names:
                if isinstance(link := node.inputs.get(name), Link):
                    return link, side
            if node is not sampler and isinstance(node.inputs.get(side), str):
                return Link(node.id, 0), side
        return None

    def _collect_texts(self, link: Link, side: str, prompt_parts: _Prompt, seen: set[tuple[str, str]]) -> None:
        node = self.graph.get(link.node)
        if node is None or (node.id, side) in seen or len(seen) > _STEPS // 10:
            return
        seen.add((node.id, side))
        if node.type == "ConditioningZeroOut":
            return
        if "SetArea" in node.type or "SetMask" in node.type:
            prompt_parts.notes.append(
                "Some of its words were for a part of the image only; here they are for all of it."
            )
        if "control_net" in node.inputs:
            prompt_parts.notes.append("A ControlNet guided it, which is not here.")
        if isinstance(node.inputs.get("positive"), Link) and isinstance(node.inputs.get("negative"), Link):
            side = (
                "negative" if link.slot == 1 else "positive"
            )  # a node with both sides, such as ControlNetApplyAdvanced
        onward = [value for name, value in node.links() if name in (side, *_CONDITIONS) and not self._gives_text(value)]
        if onward and "clip" not in node.inputs:
            for next_link in onward:
                self._collect_texts(next_link, side, prompt_parts, seen)
            return
        texts = self._texts(node, side, prompt_parts)
        if not texts:  # an unknown node with a single input
            links = [value for _, value in node.links()]
            if len(links) == 1:
                self._collect_texts(links[0], side, prompt_parts, seen)
            return
        prompt_parts.texts += texts
        prompt_parts.clip_skip = prompt_parts.clip_skip or self._clip_skip(node)

    def _gives_text(self, link: Link) -> bool:
        node = self.graph.get(link.node)
        return node is not None and "clip" not in node.inputs and bool(self._own_text(node))

    def _texts(self, node: Node, side: str, prompt_parts: _Prompt) -> list[str]:
        """Return the texts of a text encoder: its own values or those behind links."""
        sides = (side, f"text_{side}", f"{side}_prompt", f"{side}_text", f"{side}_g", f"text_{side}_g")
        names = [*sides, *_TEXTS] if any(name in node.inputs for name in sides) else list(_TEXTS)
        values = [(name, node.inputs[name]) for name in names if name in node.inputs]
        if any(name in sides for name, _ in values):
            values = [(name, value) for name, value in values if name in sides]
        texts = [self._string(value, side, prompt_parts, set()) for _, value in values]
        if not any(texts) and isinstance(styler := node.inputs.get("style"), str):
            prompt_parts.notes.append(f"It has the style {printable(styler, 40)} of a node.")
        return [text for text in texts if text]

    def _string(self, value: Any, side: str, prompt_parts: _Prompt, seen: set[str]) -> str:
        """Return a text, following nodes that hold, show, or join texts."""
        if isinstance(value, str):
            return value
        node = self.graph.get(value.node) if isinstance(value, Link) else None
        if node is None or node.id in seen or len(seen) > _DEEP:
            return ""
        seen.add(node.id)
        if _WILD.search(node.type):
            prompt_parts.is_certain = False
        if _JOINS.search(node.type):
            separator = node.inputs.get("delimiter", node.inputs.get("separator", ""))
            separator = separator.replace("\\n", "\n") if isinstance(separator, str) else ""
            names = [name for name in node.inputs if _STRINGS.match(name)]
            parts = [self._string(node.inputs[name], side, prompt_parts, seen) for name in names]
            return (separator or " ").join(part for part in parts if part)[:100_000]
        if (branch := self._branch(node)) is not None:
            return self._string(branch, side, prompt_parts, seen)
        text = self._own_text(node, side)
        if isinstance(text, str):
            return text
        links = [text] if isinstance(text, Link) else [link for _, link in node.links()][:1]
        return self._string(links[0], side, prompt_parts, seen) if links else ""

    def _branch(self, node: Node) -> Any:
        """Return the input that ComfyUI's own switch passes on, or None for any other node."""
        if not {"on_true", "on_false", "switch"} <= node.inputs.keys():
            return None
        condition = node.inputs["switch"]
        for _ in range(_DEEP):
            other = self.graph.get(condition.node) if isinstance(condition, Link) else None
            if other is None:
                break
            condition = other.inputs.get("value", other.inputs.get("boolean"))
        return node.inputs["on_true" if condition is True else "on_false"]

    def _own_text(self, node: Node, side: str = "positive") -> str | Link | None:
        for name in (f"text_{side}", side, f"{side}_prompt", *_TEXTS, "wildcard_text", "text_0", "Text", "String"):
            if isinstance(value := node.inputs.get(name), str | Link) and value != "":
                return value
        return None

    def _clip_skip(self, node: Node | None) -> int | None:
        """Return clip skip as A1111 counts: 2 for `stop_at_clip_layer` -2."""
        seen: set[str] = set()
        while node is not None and node.id not in seen and len(seen) < _DEEP:
            seen.add(node.id)
            layer = self._scalar(node.inputs.get("stop_at_clip_layer", node.inputs.get("clip_skip")), "clip_skip")
            if isinstance(layer, int) and layer:
                return abs(layer)
            link = next((node.inputs[name] for name in _CLIPS if isinstance(node.inputs.get(name), Link)), None)
            node = self.graph.get(link.node) if link else None
        return None

    # --- weights -----------------------------------------------------------------------------------------------------

    def weights(self, sampler: Node) -> tuple[str, list[Network]]:
        """Return the model's name and the LoRAs on the way to it, the nearest to the model first."""
        model = ""
        networks: list[Network] = []
        waiting, seen = [sampler], {sampler.id}
        while waiting and len(seen) < _STEPS:
            node = waiting.pop(0)
            networks = [*_loras(self, node), *networks]
            if isinstance(name := node.inputs.get("hypernetwork_name"), str):
                networks.insert(0, Network("hypernetwork", base_name(name), _finite(node.inputs.get("strength"))))
            if not model and node is not sampler:
                names = (node.inputs.get(key) for key in _CHECKPOINTS)
                model = next((base_name(name) for name in names if isinstance(name, str) and name), "")
            onward = [self._branch(node), *(node.inputs.get(name) for name in (*_MODELS, "guider"))]
            for link in onward:
                if isinstance(link, Link) and link.node not in seen:
                    seen.add(link.node)
                    if other := self.graph.get(link.node):
                        waiting.append(other)
        return model, networks


_FACTORS = ("scale_by", "upscale_by", "rescale_factor", "scale_factor", "factor")
_CLIPS = ("clip", "opt_clip", "CLIP", "clip1")


def _loras(walk: _Walk, node: Node) -> Iterator[Network]:
    """Yield the LoRAs that a node applies: a single one, a numbered list, or rgthree's objects."""
    count = node.inputs.get("lora_count", node.inputs.get("num_loras"))
    for key, value in node.inputs.items():
        if isinstance(value, dict) and isinstance(value.get("lora"), str):
            if value.get("on", True) and value["lora"] != "None":
                yield Network("LoRA", base_name(value["lora"]), _finite(value.get("strength", 1)))
            continue
        match = _LORA_KEY.match(key) if isinstance(value, str) else None
        if not match or value in ("", "None"):
            continue
        digits = match[1] or match[2] or ""
        off = node.inputs.get(f"switch_{digits}") in ("Off", False) if digits else False
        if off or (digits and isinstance(count, int) and int(digits) > count):
            continue
        keys = [f"{name}_{digits}" if digits else name for name in _STRENGTHS]
        strength = next((walk._scalar(node.inputs[name], name) for name in keys if name in node.inputs), None)
        if strength != 0:
            yield Network("LoRA", base_name(value), _finite(strength), _block_weights(node))


def _block_weights(node: Node) -> BlockWeights | None:
    """Return the block weights of the Inspire Pack's loader, `OUTALL:1,0,...`; None where they are not plain numbers.

    It gives them to the blocks that a LoRA has, in order: those of the list, if only attention was trained.
    """
    vector = node.inputs.get("block_vector")
    if not isinstance(vector, str) or node.inputs.get("inverse"):
        return None
    return read_block_weights(vector.rpartition(":")[2][:1000])


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e6 else None
