"""Read packs of wildcard lists: one YAML or JSON file with several lists, found by their keys.

    animals:
      cats: [tabby cat, "2::{big|small} cat"]
      dogs:
        - husky

The layouts are those of the dynamic-prompts extension (adieyal/sd-dynamic-prompts, docs/SYNTAX.md: lists under keys, an
option as `{text, weight}`) and of Umi AI (an entry with `Prompts`, `Tags`, `Description`, ...: its prompts are the
options). Every scalar is text as written: `no` is the word no, and 1990 is not a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError, printable

SUFFIXES = (".yaml", ".yml", ".json")
MAX_DEPTH = 32  # nested keys and lists
MAX_NODES = 300_000  # of one pack, including what aliases repeat
MAX_TEXT = 20_000_000  # characters of its options, and of the keys of each list, including what aliases repeat

Path = tuple[str, ...]
"""The keys that lead to a list."""

_TEXT_KEYS = ("text", "content")
_UMI_KEYS = {"prompts", "tags", "title", "description", "prefix", "suffix", "aka", "author", "comments"}


def read_pack(text: str, name: str) -> dict[Path, list[str]]:
    """Read the lists of a pack, by their keys; () if the pack is a single list.

    name: the file's, for messages. Raises UserError if the text is not YAML or JSON, or is too deep or too large.
    """
    tree = _json(text, name) if name.lower().endswith(".json") else _yaml(text, name)
    lists = _Lists(name).lists(tree, ())
    return {tuple(map(_valid, keys)): list(map(_valid, options)) for keys, options in lists}


def _valid(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can write and no prompt can hold."""
    return text.encode("utf-8", "replace").decode()


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_joined)
    except json.JSONDecodeError as error:
        raise _unreadable(name, "JSON", error.lineno) from error
    except RecursionError:
        raise _too_deep(name) from None


def _yaml(text: str, name: str) -> Any:
    """Build the tree from the parser's events, so that depth and size are checked before anything is built. YAML's
    construction of objects, which can run code, is never used."""
    import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # the C implementation, if available
    tree = _Tree(name)
    try:
        for event in yaml.parse(text, Loader=loader):
            tree.take(event)
            if tree.done:  # only the first of several documents is read
                break
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _unreadable(name, "YAML", mark.line + 1 if mark else None) from error
    return tree.root


@dataclass
class _Open:
    """A mapping or sequence that is not closed yet. key: of the value that comes next."""

    node: dict[str, Any] | list[Any]
    key: str | None = None


@dataclass
class _Tree:
    """Builder of dicts, lists and texts from YAML's events."""

    name: str
    root: Any = None
    done: bool = False
    _open: list[_Open] = field(default_factory=list)
    _anchors: dict[str, Any] = field(default_factory=dict)
    _seen: int = 0

    def take(self, event: Any) -> None:
        self._seen += 1
        if self._seen > MAX_NODES:
            raise _too_large(self.name)
        kind = type(event).__name__.removesuffix("Event")
        if kind == "Scalar":
            self._put(event.value, event.anchor)
        elif kind in ("SequenceStart", "MappingStart"):
            node: Any = [] if kind == "SequenceStart" else {}
            self._put(node, None)
            self._open.append(_Open(node))
            if len(self._open) > MAX_DEPTH:
                raise _too_deep(self.name)
            if event.anchor:
                self._anchors[event.anchor] = node
        elif kind in ("SequenceEnd", "MappingEnd"):
            self._open.pop()
            self.done = not self._open
        elif kind == "Alias":
            self._alias(event.anchor)

    def _alias(self, anchor: str) -> None:
        if anchor not in self._anchors or any(node.node is self._anchors[anchor] for node in self._open):
            raise UserError(
                f"{printable(self.name, 80)}: *{printable(anchor, 40)} stands for what it is itself a "
                "part of, or for nothing.",
                "Write out what is meant.",
            )
        self._put(self._anchors[anchor], None)

    def _put(self, value: Any, anchor: str | None) -> None:
        if anchor:
            self._anchors[anchor] = value
        if not self._open:
            self.root, self.done = value, isinstance(value, str)
            return
        place = self._open[-1]
        if isinstance(place.node, list):
            place.node.append(value)
        elif place.key is None:
            place.key = value if isinstance(value, str) else ""
        else:
            self._seen += _add(place.node, place.key, value)
            place.key = None


@dataclass
class _Lists:
    """Finder of the lists in a tree. Aliases make a small file a large tree, so visited nodes are counted here too."""

    name: str
    _visited: int = 0
    _characters: int = 0

    def lists(self, node: Any, path: Path) -> Iterator[tuple[Path, list[str]]]:
        self._count_node(len(path))
        self._count_text(path)
        if isinstance(node, dict):
            self._count_text(node)
            if (prompts := _prompts_of(node)) is not None:
                node = prompts
            else:
                for key, value in node.items():
                    yield from self.lists(value, (*path, *filter(None, key.strip().split("/"))))
                return
        if options := list(self._options(node, len(path))):
            yield path, options

    def _options(self, node: Any, depth: int) -> Iterator[str]:
        self._count_node(depth)
        if isinstance(node, list):
            for item in node:
                yield from self._options(item, depth + 1)
        elif isinstance(node, dict):
            self._count_text(node)
            self._count_text(value for value in node.values() if isinstance(value, str))
            yield from self._option(node)
        elif node is not None:
            self._count_text((str(node),))
            if text := _one_line(node):
                yield text

    def _option(self, node: dict[str, Any]) -> Iterator[str]:
        """Yield the option of `{text: red, weight: 2}`, an Umi entry's prompts, or `- a: b`, a mapping, as typed."""
        by_name = {key.lower(): value for key, value in node.items()}
        if (prompts := _prompts_of(node)) is not None:
            yield from self._options(prompts, MAX_DEPTH // 2)
        elif text := next((by_name[key] for key in _TEXT_KEYS if isinstance(by_name.get(key), str)), None):
            weight = by_name.get("weight")
            yield f"{weight}::{_one_line(text)}" if isinstance(weight, str) else _one_line(text)
        elif len(node) == 1 and isinstance(value := next(iter(node.values())), str):
            yield _one_line(f"{next(iter(node))}: {value}")

    def _count_node(self, depth: int) -> None:
        self._visited += 1
        if depth > MAX_DEPTH:
            raise _too_deep(self.name)
        if self._visited > MAX_NODES:
            raise _too_large(self.name)

    def _count_text(self, texts: Iterable[str]) -> None:
        self._characters += sum(map(len, texts))
        if self._characters > MAX_TEXT:
            raise UserError(
                f"{printable(self.name, 80)} expands to more than {MAX_TEXT:,} characters.",
                "Split it, or shorten its keys.",
            )


def _prompts_of(node: dict[str, Any]) -> list[Any] | None:
    """Return the prompts of an Umi AI entry: a list `Prompts` beside `Tags` and other remarks, and nothing else."""
    by_name = {key.strip().lower(): value for key, value in node.items()}
    if not {"prompts", "tags"} <= by_name.keys() <= _UMI_KEYS or not isinstance(by_name["prompts"], list):
        return None
    return by_name["prompts"]


def _joined(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    node: dict[str, Any] = {}
    for key, value in pairs:
        _add(node, key, value)
    return node


class _Joined(list[Any]):
    """The lists of a key that occurs several times; nothing else refers to it, so that it can be extended."""


def _add(node: dict[str, Any], key: str, value: Any) -> int:
    """Add a value; if the key occurs twice, its lists are joined. Returns the number of items that were copied."""
    before = node.get(key)
    if not (isinstance(before, list) and isinstance(value, list)):
        node[key] = value
        return 0
    if isinstance(before, _Joined):
        before.extend(value)
        return len(value)
    node[key] = _Joined([*before, *value])
    return len(node[key])


def _one_line(value: object) -> str:
    """Join an option that is written over several lines, with comments among them."""
    lines = [line.strip() for line in str(value).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("#"))


def _unreadable(name: str, kind: str, line: int | None) -> UserError:
    where = f"; line {line:,} is not" if line else ""
    return UserError(
        f"{printable(name, 80)} cannot be read as {kind}{where}.", "Correct it, or take it out of the folder."
    )


def _too_deep(name: str) -> UserError:
    return UserError(f"{printable(name, 80)} nests more than {MAX_DEPTH} deep.", "Make it flatter.")


def _too_large(name: str) -> UserError:
    return UserError(f"{printable(name, 80)} holds more than {MAX_NODES:,} keys and options.", "Split it.")
