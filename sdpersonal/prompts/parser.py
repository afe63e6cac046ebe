"""Parse a prompt, as typed, into its pieces.

Emphasis has A1111's meaning (AUTOMATIC1111/stable-diffusion-webui, modules/prompt_parser.py, parse_prompt_attention),
including its corner cases: round and square brackets are matched separately, so that `(a [b) c]` overlap; an
unclosed bracket reaches to the end; an extra closing bracket is text; a lone backslash is dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from ..errors import UserError, printable
from .ast import Break, ConceptRef, Prompt, Text
from .concept_syntax import parse_concept_ref

MAX_PROMPT = 2000  # characters; 77 tokens of English are about 350
MAX_WEIGHT = 10.0
MAX_DEPTH = 20  # brackets open at once

_ROUND_FACTOR, _SQUARE_FACTOR = 1.1, 1 / 1.1
# One alternative for each kind of lexeme; together they match any character.
_LEXEME = re.compile(
    r"""  \\(?P<plain>[()\[\]\\{}|<>_]?)
        | <(?=\S)(?P<word>[^<>]*)>
        | (?P<open>[(\[])
        | :\s*(?P<weight>[+-]?(?:[.\d]+ | \d[.\d]*e[+-]?\d+ | \d+,\d+ | nan | inf(?:inity)?))\s*\)
        | (?P<close>[)\]])
        | (?P<text>(?:[^\\()\[\]:<] | <(?!(?=\S)[^<>]*>))+ | [:<])
    """,
    re.VERBOSE | re.IGNORECASE,
)
_KEYWORD = re.compile(r"\b(BREAK|AND)\b")
# A1111's prompt editing, a change during the sampling: [from:to:when], [to:when], [from::when].
_SCHEDULED = re.compile(r"(?<!\\)(?:\\\\)*+:\s*+[+-]?(?:\d++\.?\d*+|\.\d++)\s*+\]\Z")


def parse(text: str) -> Prompt:
    """Parse a prompt without alternatives. Raises UserError, showing what is wrong and what works."""
    if len(text) > MAX_PROMPT:
        raise UserError(f"The prompt has {len(text):,} characters; the limit is {MAX_PROMPT:,}.", "Shorten it.")
    reading = _PromptParser(text)
    for lexeme in _LEXEME.finditer(text):
        reading.feed(lexeme)
    return Prompt(text, reading.pieces())


@dataclass
class _OpenBracket:
    """An opened bracket that is not closed yet."""

    at: int  # position in the prompt
    first: int  # index of the first piece in it
    has_bar: bool = False  # whether an unescaped | is directly in it


@dataclass
class _PromptParser:
    """Collects the pieces, each with its weight so far."""

    prompt: str
    weighted_pieces: list[tuple[Text | ConceptRef | Break, float]] = field(default_factory=list)
    open_brackets: dict[str, list[_OpenBracket]] = field(default_factory=lambda: {"(": [], "[": []})

    def feed(self, lexeme: re.Match[str]) -> None:
        kind = lexeme.lastgroup
        if kind == "plain":
            self._add(Text(lexeme["plain"]))
        elif kind == "word":
            self._add(parse_concept_ref(lexeme["word"]))
        elif kind == "open":
            self._open(lexeme[0], lexeme.start())
        elif kind == "weight" and self.open_brackets["("]:
            self._close(
                "(", lexeme, _parse_weight(self.prompt[self.open_brackets["("][-1].at : lexeme.end()], lexeme["weight"])
            )
        elif kind == "close" and self.open_brackets["(" if lexeme[0] == ")" else "["]:
            self._close("(" if lexeme[0] == ")" else "[", lexeme, _ROUND_FACTOR if lexeme[0] == ")" else _SQUARE_FACTOR)
        else:
            self._text(lexeme[0])

    def pieces(self) -> tuple[Text | ConceptRef | Break, ...]:
        for kind, factor in (("(", _ROUND_FACTOR), ("[", _SQUARE_FACTOR)):
            for bracket in self.open_brackets[kind]:
                self._multiply(bracket.first, factor)
        pieces: list[Text | ConceptRef | Break] = []
        for piece, weight in self.weighted_pieces:
            if isinstance(piece, Break):
                pieces.append(piece)
                continue
            piece = replace(piece, weight=_check_weight(piece, weight))
            before = pieces[-1] if pieces else None
            if isinstance(piece, Text) and isinstance(before, Text) and before.weight == piece.weight:
                pieces[-1] = Text(before.text + piece.text, piece.weight)
            else:
                pieces.append(piece)
        return tuple(pieces)

    def _add(self, piece: Text | ConceptRef | Break) -> None:
        if piece != Text(""):
            self.weighted_pieces.append((piece, 1.0))

    def _text(self, text: str) -> None:
        """Add plain text, but handle BREAK, which absorbs the spaces around it, and AND."""
        parts = _KEYWORD.split(text)
        for i, part in enumerate(parts):
            if i % 2:
                self._add_keyword(part)
                continue
            part = part.lstrip() if i else part
            self._add(Text(part.rstrip() if i + 1 < len(parts) else part))
        if "|" in text and (bracket := self._innermost_bracket()):
            bracket.has_bar = True

    def _add_keyword(self, word: str) -> None:
        if word == "AND":
            raise UserError(
                "AND in capitals joins two prompts in A1111, which is not supported.",
                "Write it small: a cat and a dog. For the capitals themselves: A\\ND.",
            )
        self._add(Break())

    def _innermost_bracket(self) -> _OpenBracket | None:
        return max(
            (brackets[-1] for brackets in self.open_brackets.values() if brackets),
            key=lambda bracket: bracket.at,
            default=None,
        )

    def _open(self, kind: str, at: int) -> None:
        self.open_brackets[kind].append(_OpenBracket(at, len(self.weighted_pieces)))
        if sum(map(len, self.open_brackets.values())) > MAX_DEPTH:
            raise UserError(
                f"More than {MAX_DEPTH} brackets are open at {printable(self.prompt[at:], 30)!r}.",
                r"Write the weight as a number, (word:1.3); for the bracket itself, \( or \[.",
            )

    def _close(self, kind: str, lexeme: re.Match[str], factor: float) -> None:
        bracket = self.open_brackets[kind].pop()
        if kind == "[":
            _refuse_scheduling(self.prompt[bracket.at : lexeme.end()], bracket.has_bar)
        self._multiply(bracket.first, factor)

    def _multiply(self, first: int, factor: float) -> None:
        self.weighted_pieces[first:] = [(piece, weight * factor) for piece, weight in self.weighted_pieces[first:]]


def _parse_weight(bracket: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:  # 1.3.4 or 1,3
        value = -1.0
    if 0 <= value <= MAX_WEIGHT and not text.startswith("-"):
        return value
    raise UserError(
        f"The weight {printable(text, 20)} in {printable(bracket)} must be a number from 0 to {MAX_WEIGHT:g}.",
        "For example (word:1.3); what must not be there goes into the negative prompt.",
    )


def _check_weight(piece: Text | ConceptRef, weight: float) -> float:
    if weight <= MAX_WEIGHT:
        return weight
    what = piece.text if isinstance(piece, Text) else " ".join(str(part.token) for part in piece.parts)
    raise UserError(
        f"The brackets around {printable(what, 40)!r} come to a weight of {weight:.4g}; the limit is {MAX_WEIGHT:g}.",
        "For example (word:1.3).",
    )


def _refuse_scheduling(bracket: str, stroke: bool) -> None:
    """Refuse A1111's `[a|b]` and `[a:b:0.5]`, which change words during the sampling: as plain text they are noise."""
    if stroke:
        raise UserError(
            f"{printable(bracket)} takes turns from step to step in A1111, which is not supported.",
            r"One of them in each image: {a|b}; two concepts in one: <me/a+me/b>; a plain stroke: \|.",
        )
    if _SCHEDULED.search(bracket):
        raise UserError(
            f"{printable(bracket)} changes words during the sampling in A1111; here only concepts can come or go.",
            "For example <me/duck@0-0.4> <me/cat@0.4-1>. For less weight: (word:0.8).",
        )
