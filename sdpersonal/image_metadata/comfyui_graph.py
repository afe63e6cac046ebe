"""Parse ComfyUI's two kinds of graph into one form: nodes by id, with values or links to other nodes as inputs.

`prompt` is the executed graph: `{"3": {"class_type": "KSampler", "inputs": {"seed": 5, "model": ["4", 0]}}}`.
`workflow` is the canvas: a list of nodes with `widgets_values` in the order of the node's widgets, and a table of
links. Since 2025 a node's type can be the id of a subgraph, whose nodes and links are in `definitions`. Sources:
`execution.py`, `nodes.py` of ComfyUI; `LGraph.serialize`, `Subgraph` and `graphToPrompt` of its frontend.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .image_text import MAX_GRAPH

MAX_NODES = 5000
_CONTROLS = (
    "fixed",
    "increment",
    "decrement",
    "randomize",
)  # values of a seed's control widget, which follows the seed
_MUTED, _BYPASSED = 2, 4  # modes of a node on the canvas
_WIDGETS = {  # type -> names of its widgets in order, for nodes that do not store the names
    "KSampler": "seed steps cfg sampler_name scheduler denoise",
    "KSamplerAdvanced": "add_noise noise_seed steps cfg sampler_name scheduler start_at_step end_at_step "
    "return_with_leftover_noise",
    "KSampler (Efficient)": "seed steps cfg sampler_name scheduler denoise preview_method vae_decode",
    "SamplerCustom": "add_noise noise_seed cfg",
    "KSamplerSelect": "sampler_name",
    "BasicScheduler": "scheduler steps denoise",
    "KarrasScheduler": "steps sigma_max sigma_min rho",
    "ExponentialScheduler": "steps sigma_max sigma_min",
    "PolyexponentialScheduler": "steps sigma_max sigma_min rho",
    "SDTurboScheduler": "steps denoise",
    "RandomNoise": "noise_seed",
    "CFGGuider": "cfg",
    "CLIPTextEncode": "text",
    "CLIPTextEncodeSDXL": "width height crop_w crop_h target_width target_height text_g text_l",
    "CLIPTextEncodeSDXLRefiner": "ascore width height text",
    "CLIPTextEncodeFlux": "clip_l t5xxl guidance",
    "CheckpointLoaderSimple": "ckpt_name",
    "CheckpointLoader": "config_name ckpt_name",
    "unCLIPCheckpointLoader": "ckpt_name",
    "UNETLoader": "unet_name weight_dtype",
    "LoraLoader": "lora_name strength_model strength_clip",
    "LoraLoaderModelOnly": "lora_name strength_model",
    "CLIPSetLastLayer": "stop_at_clip_layer",
    "EmptyLatentImage": "width height batch_size",
    "EmptySD3LatentImage": "width height batch_size",
    "LatentUpscale": "upscale_method width height crop",
    "LatentUpscaleBy": "upscale_method scale_by",
    "ImageScale": "upscale_method width height crop",
    "ImageScaleBy": "upscale_method scale_by",
    "LoadImage": "image upload",
    "PrimitiveNode": "value",
    "Seed (rgthree)": "seed",
    "Efficient Loader": "ckpt_name vae_name clip_skip lora_name lora_model_strength lora_clip_strength positive "
    "negative token_normalization weight_interpretation empty_latent_width empty_latent_height batch_size",
}


@dataclass(frozen=True)
class Link:
    """A link to output number `slot` of another node."""

    node: str
    slot: int


@dataclass(eq=False)
class Node:
    id: str
    type: str
    inputs: dict[str, Any] = field(default_factory=dict)

    def links(self) -> Iterator[tuple[str, Link]]:
        yield from ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))


Graph = dict[str, Node]


def lenient_json(text: str) -> Any:
    """Parse JSON as ComfyUI's nodes write it: NaN and Infinity occur, and become None. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=lambda word: None, strict=False)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def json_object(text: str | None) -> dict[str, Any] | None:
    """Parse a text that is a JSON object, which NULs may surround; None for anything else."""
    text = (text or "").strip("\0 \t\r\n")
    if not text.startswith("{"):
        return None
    try:
        value = lenient_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def graph_in(value: Any) -> Graph | None:
    """Return the graph in JSON of either kind, or None for anything else."""
    if not isinstance(value, dict):
        return None
    return _canvas(value) if isinstance(value.get("nodes"), list) else _run(value)


def _run(value: dict[str, Any]) -> Graph | None:
    graph: Graph = {}
    for name, entry in list(value.items())[:MAX_NODES]:
        if isinstance(entry, dict) and isinstance(entry.get("class_type"), str):
            inputs = entry.get("inputs")
            inputs = inputs if isinstance(inputs, dict) else {}
            graph[str(name)] = Node(str(name), entry["class_type"], {key: _value(item) for key, item in inputs.items()})
    return graph or None


def _value(value: Any) -> Any:
    """Convert a list of an id and a number to a Link; return other values unchanged."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and type(value[1]) is int:
        return Link(str(value[0]), value[1])
    return value


# --- the canvas -------------------------------------------------------------------------------------------------------


def _canvas(value: dict[str, Any]) -> Graph | None:
    value = _without_subgraphs(value)
    entries = [entry for entry in value["nodes"][:MAX_NODES] if isinstance(entry, dict) and "type" in entry]
    by_id = {str(entry.get("id")): entry for entry in entries}
    origins, setters = dict(_origins(value.get("links"))), _setters(by_id)
    graph: Graph = {}
    for name, entry in by_id.items():
        if entry.get("mode") in (_MUTED, _BYPASSED):
            continue
        node = Node(name, str(entry["type"]), _widgets(entry))
        for socket in _list(entry.get("inputs")):
            link = _through(origins.get(socket.get("link")), by_id, origins, setters)
            if link is not None:
                node.inputs[str(socket.get("name", ""))] = link
        graph[name] = node
    return graph or None


_INPUTS = "-10"  # id of the node that stands for a subgraph's inputs
_DEEPEST = 20  # nesting depth of subgraphs
_MAX_INLINED = 2 * MAX_GRAPH  # characters of all subgraphs, each counted as often as it is inlined


def _without_subgraphs(value: dict[str, Any]) -> dict[str, Any]:
    """Inline the nodes of subgraphs into the canvas. A canvas without subgraphs is returned unchanged."""
    definitions = value.get("definitions")
    subgraphs = definitions.get("subgraphs") if isinstance(definitions, dict) else None
    subgraphs = subgraphs if isinstance(subgraphs, list) else []
    flat = _Flat({str(graph.get("id")): graph for graph in subgraphs if isinstance(graph, dict)})
    if not flat.subgraphs:
        return value
    flat.add(value)
    return value | {"nodes": flat.nodes, "links": flat.all_links()}


@dataclass
class _Flat:
    """Nodes of a canvas and its subgraphs, with the ids of the executed graph: `57:3` is node 3 in node 57.

    links: the origin of each link, by its new number. outputs: the inner node behind each output of a subgraph's node.
    budget: how many more subgraphs may be inlined; characters: how long they may be together, written as JSON.
    """

    subgraphs: dict[str, dict[str, Any]]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    outputs: dict[Link, Link] = field(default_factory=dict)
    budget: int = MAX_NODES
    characters: int = _MAX_INLINED
    _lengths: dict[str, int] = field(default_factory=dict)  # of subgraphs as JSON

    def add(self, graph: dict[str, Any], prefix: str = "", inputs: tuple[Any, ...] = ()) -> dict[Any, Any]:
        """Add a graph's nodes. inputs: the Link or the typed value of each of the graph's inputs.

        Returns the Link or value by id of each link in the graph.
        """
        origins: dict[Any, Any] = {}
        for name, link in _origins(graph.get("links")):
            if link.node == _INPUTS and prefix:
                origins[name] = inputs[link.slot] if 0 <= link.slot < len(inputs) else None
            else:
                origins[name] = Link(prefix + link.node, link.slot)
        for entry in _list_or_none(graph.get("nodes")) or []:
            if len(self.nodes) < MAX_NODES and isinstance(entry, dict) and "type" in entry:
                self._add_node(entry, prefix, origins)
        return origins

    def _add_node(self, entry: dict[str, Any], prefix: str, origins: dict[Any, Any]) -> None:
        name, values, sockets = f"{prefix}{entry.get('id')}", {}, []
        for socket in _list(entry.get("inputs")):
            origin = origins.get(socket.get("link"))
            if origin is None or isinstance(origin, Link):
                sockets.append(socket | {"link": origin and len(self.links)})
                self.links += [origin] if origin else []
            else:
                values[str(socket.get("name", ""))] = origin
        subgraph = self.subgraphs.get(str(entry["type"]))
        is_off = entry.get("mode") in (_MUTED, _BYPASSED)
        if subgraph is None or is_off or name.count(":") >= _DEEPEST or not self._may_inline(str(entry["type"])):
            more = {"widgets_values": _widgets(entry) | values} if values else {}
            self.nodes.append(entry | {"id": name, "inputs": sockets} | more)
            return
        linked = {socket.get("name"): self.links[socket["link"]] for socket in sockets if socket["link"] is not None}
        by_name = _widgets(entry) | values | linked
        inputs = tuple(by_name.get(str(socket.get("name"))) for socket in _list(subgraph.get("inputs")))
        inner = self.add(subgraph, f"{name}:", inputs)
        for number, output in enumerate(_list(subgraph.get("outputs"))):
            ids = output.get("linkIds")
            sources = (
                [inner.get(link_id) for link_id in ids if isinstance(link_id, int)] if isinstance(ids, list) else []
            )
            if sources and isinstance(sources[0], Link):
                self.outputs[Link(name, number)] = sources[0]

    def _may_inline(self, subgraph: str) -> bool:
        """Count one more use of a subgraph; return whether it is still within the limits."""
        if subgraph not in self._lengths:
            self._lengths[subgraph] = len(json.dumps(self.subgraphs[subgraph]))
        self.budget -= 1
        self.characters -= self._lengths[subgraph]
        return self.budget >= 0 and self.characters >= 0

    def all_links(self) -> list[list[Any]]:
        """Return the links in the canvas' format; those from subgraphs start at the inner node that makes the value."""
        table = []
        for number, link in enumerate(self.links):
            for _ in range(_DEEPEST):
                link = self.outputs.get(link, link)
            table.append([number, link.node, link.slot])
        return table


def _origins(links: Any) -> Iterator[tuple[Any, Link]]:
    """Yield (id of a link, its origin): links are lists, or since 2025 objects."""
    for link in links if isinstance(links, list) else []:
        if isinstance(link, list) and len(link) >= 3 and type(link[2]) is int and isinstance(link[0], str | int):
            yield link[0], Link(str(link[1]), link[2])
        elif isinstance(link, dict) and type(link.get("origin_slot")) is int and isinstance(link.get("id"), str | int):
            yield link["id"], Link(str(link.get("origin_id")), link["origin_slot"])


def _setters(by_id: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the first SetNode of the same name for each GetNode, by the GetNode's id."""
    names = {
        id_: json.dumps(values)
        for id_, entry in by_id.items()
        if entry["type"] in ("GetNode", "SetNode") and (values := _list_or_none(entry.get("widgets_values")))
    }
    by_name: dict[str, dict[str, Any]] = {}
    for id_, name in names.items():
        if by_id[id_]["type"] == "SetNode":
            by_name.setdefault(name, by_id[id_])
    return {id_: by_name[name] for id_, name in names.items() if name in by_name}


def _through(
    link: Link | None, by_id: dict[str, dict[str, Any]], origins: dict[Any, Link], setters: dict[str, dict[str, Any]]
) -> Link | None:
    """Resolve a link's origin: bypassed nodes pass on their input, and a GetNode stands for its SetNode."""
    for _ in range(100):
        if link is None or (entry := by_id.get(link.node)) is None or entry.get("mode") == _MUTED:
            return None
        if entry["type"] == "GetNode":
            setter = setters.get(link.node)
            sockets = _list(setter.get("inputs")) if setter else []
            link = origins.get(sockets[0].get("link")) if sockets else None
        elif entry.get("mode") == _BYPASSED:
            outputs = _list(entry.get("outputs"))
            kind = outputs[link.slot].get("type") if 0 <= link.slot < len(outputs) else None
            same_kind = (
                socket for socket in _list(entry.get("inputs")) if socket.get("type") == kind and socket.get("link")
            )
            link = origins.get(next(same_kind, {}).get("link"))
        else:
            return link
    return None


def _list(value: Any) -> list[dict[str, Any]]:
    """Return the entries that are objects with a hashable `link`."""
    entries = value if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("link"), str | int | None)]


def _list_or_none(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) and value else None


def _widgets(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a node's widgets by name."""
    values = entry.get("widgets_values")
    if isinstance(values, dict):
        return {str(name): value for name, value in values.items()}
    if not isinstance(values, list):
        return {}
    named = [
        socket["widget"].get("name") for socket in _list(entry.get("inputs")) if isinstance(socket.get("widget"), dict)
    ]
    names = _WIDGETS.get(str(entry["type"]), "").split() or [str(name) for name in named]
    widgets: dict[str, Any] = {}
    rest = deque(values)
    for name in names:
        if not rest:
            break
        widgets[name] = rest.popleft()
        if re.search("seed", name) and rest and rest[0] in _CONTROLS:
            rest.popleft()
    if not names:  # such as texts of unknown node packs, and rgthree's lists of LoRAs
        widgets |= {f"lora_{i}" if isinstance(value, dict) else f"widget_{i}": value for i, value in enumerate(rest)}
        texts = [value for value in rest if isinstance(value, str)]
        if len(texts) == 1:
            widgets["text"] = texts[0]
    return widgets
