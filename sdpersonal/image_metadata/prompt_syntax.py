"""Translate other programs' prompts to our syntax: remove tags that load weights, escape signs of our syntax alone.

Emphasis: A1111, SD.Next, SwarmUI and Draw Things share our `(x:1.2)` and `[x]`. To ComfyUI and Fooocus a square
bracket is text (`comfy/sd1_clip.py`). InvokeAI and Easy Diffusion use compel: `word+`, `(some words)1.2`, and a bare
`(x)` only groups (compel's `prompt_parser.py`). NovelAI: `{x}` is 1.05 times stronger, `[x]` weaker, `1.5::x::` a
weight, and `(x)` is text (docs.novelai.net, "Strengthening and Weakening Vectors").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..config.text_checks import plain_spaces
from ..errors import UserError, printable
from ..prompts import MAX_PROMPT, BlockWeights, Token
from ..prompts.block_weights import format_blocks
from ..prompts.concept_options import read_a1111_blocks

Syntax = Literal["a1111", "comfyui", "compel", "novelai"]
Kind = Literal["LoRA", "embedding", "hypernetwork"]

_NETWORK = re.compile(r"<(lora|lyco|lycoris|hypernet):([^<>:]*)(?::([^<>]*))?>", re.IGNORECASE)
_EMBEDDING = re.compile(r"\bembedding:([^\s,:()\[\]<>]+)")  # ComfyUI's
_MOST_NETWORKS = 20
_LONGEST = 100_000  # characters of a prompt that are read
_OURS_ALONE = re.compile(r"\\.|[{}]|__(?=[^\W_])|<(?=\S)([^<>]*)>", re.DOTALL)  # syntax of ours that is text to A1111
_SQUARE = re.compile(r"\\.|[\[\]]", re.DOTALL)
_COMPEL = re.compile(
    r"""  \\.
        | \((?P<group>[^()\\]*)\)(?P<weight>[0-9]*\.?[0-9]+|[+]+|-+)?
        | (?P<word>[^\W\d_][\w']*+)(?P<marks>[+]+|-+)(?=[\s,.;!?]|$)
        | (?P<plain>[^\W\d_][\w']*+)
    """,
    re.VERBOSE,
)
_NAI_WEIGHT = re.compile(r"((?:-|(?<![0-9]))(?:[0-9]++(?:\.[0-9]++)?+|\.[0-9]++))::(.*?)(?:::|$)", re.DOTALL)
_NAI_DEEP = 12  # nesting depth of brackets


@dataclass(frozen=True)
class Network:
    """The name of a LoRA, embedding or hypernetwork that an image used.

    strength: None if not stated; blocks: the LoRA's block weights, None for none, or none that can be read.
    """

    kind: Kind
    name: str
    strength: float | None = None
    blocks: BlockWeights | None = None

    def __str__(self) -> str:
        options = [] if self.strength is None else [f"{self.strength:g}"]
        options += [format_blocks(self.blocks)] if self.blocks else []
        weight = f" ({':'.join(options)})" if options else ""  # as it is written after a token of ours
        return f"the {self.kind} {printable(self.name, 60)}{weight}"


def translated(prompt: str, syntax: Syntax) -> tuple[str, list[Network]]:
    """Return the prompt in our syntax on one line, and the networks that it names."""
    networks = _networks(prompt)
    text = plain_spaces(_NETWORK.sub("", prompt)[:_LONGEST])
    if len(text) > 2 * MAX_PROMPT:
        return text, networks  # too long for any use
    if syntax == "comfyui":
        networks += [Network("embedding", _stem(name)) for name in _EMBEDDING.findall(text)][:_MOST_NETWORKS]
        text = _SQUARE.sub(_backslashed, _EMBEDDING.sub(lambda match: _stem(match[1]), text))
    elif syntax == "compel":
        text = _COMPEL.sub(_from_compel, _SQUARE.sub(_backslashed, text))
    elif syntax == "novelai":
        text = _from_novelai(text)
    return _OURS_ALONE.sub(_escaped, text), networks


def _networks(prompt: str) -> list[Network]:
    kinds: dict[str, Kind] = {"hypernet": "hypernetwork"}
    return [
        Network(
            kinds.get(kind.lower(), "LoRA"), name.strip(), _strength(rest), read_a1111_blocks(f"{kind}:{name}:{rest}")
        )
        for kind, name, rest in _NETWORK.findall(prompt[:_LONGEST])[:_MOST_NETWORKS]
    ]


def _strength(text: str) -> float | None:
    """Parse the strength in `<lora:x:0.8>` or `<lora:x:0.8:0.5>`: the first number, the image model's."""
    first = text.partition(":")[0].strip()
    return float(first) if re.fullmatch(r"-?[0-9]{0,5}\.?[0-9]{1,9}", first) else None


def _stem(name: str) -> str:
    return re.sub(r"\.(pt|safetensors|bin)$", "", name)


def _escaped(sign: re.Match[str]) -> str:
    if sign[0].startswith("\\"):
        return sign[0]
    if sign[1] is None:
        return "".join(f"\\{letter}" for letter in sign[0])
    try:
        Token.parse(sign[1])  # `<cat-toy>`, a common name for an embedding: the library may have it
    except UserError:
        return f"\\{sign[0]}"
    return sign[0]


def _backslashed(sign: re.Match[str]) -> str:
    return sign[0] if sign[0].startswith("\\") else f"\\{sign[0]}"


def _from_compel(part: re.Match[str]) -> str:
    if part[0].startswith("\\") or part["plain"]:
        return part[0]
    words = part["word"] if part["group"] is None else part["group"]
    mark = (part["marks"] if part["group"] is None else part["weight"]) or "1"
    weight = {"+": 1.1, "-": 0.9}.get(mark[0], 0) ** min(len(mark), 20) or float(mark)
    return words if weight == 1 else f"({words}:{weight:.4g})"


def _from_novelai(text: str) -> str:
    """Translate NovelAI's weights; an unsupported negative one is kept, and refused when the prompt is parsed."""
    pieces, position = [], 0
    for match in _NAI_WEIGHT.finditer(text):
        pieces.append(_nai_brackets(text[position : match.start()]))
        pieces.append(f"({_nai_brackets(match[2])}:{float(match[1]):g})" if match[2].strip() else "")
        position = match.end()
    return "".join([*pieces, _nai_brackets(text[position:])])


def _nai_brackets(text: str) -> str:
    """Translate `{{x}}` to `(x:1.103)`. An unmatched bracket is text."""
    result: list[str] = []
    open_brackets: list[tuple[str, int]] = []  # (sign, place in `result`)
    for letter in text:
        if letter in "{[" and len(open_brackets) < _NAI_DEEP:
            open_brackets.append((letter, len(result)))
            result.append("")
        elif letter in "}]" and open_brackets and open_brackets[-1][0] == ("{" if letter == "}" else "["):
            result[open_brackets.pop()[1]] = "("
            result.append(f":{1.05 if letter == '}' else 1 / 1.05:.4g})")
        else:
            result.append(f"\\{letter}" if letter in "()[]{}" else letter)
    for sign, index in open_brackets:
        result[index] = f"\\{sign}"
    return "".join(result)
