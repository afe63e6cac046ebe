"""Find every regular expression of a package, and measure whether one takes more than linear time on hostile text."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from re import _constants as codes  # type: ignore[attr-defined]  # the parser of `re`, which typeshed leaves out
from re import _parser as parser  # type: ignore[attr-defined]  # the same
from types import ModuleType

METHODS = ("search", "match", "fullmatch", "sub", "split", "findall", "finditer", "subn")


@dataclass(frozen=True)
class Use:
    """A pattern, and how it is used: by one of `METHODS`."""

    pattern: re.Pattern
    method: str
    place: str

    def run(self, text: str | bytes) -> None:
        if self.method in ("sub", "subn"):
            getattr(self.pattern, self.method)(text[:0], text)
        elif self.method == "finditer":
            for _ in self.pattern.finditer(text):
                pass
        else:
            getattr(self.pattern, self.method)(text)


def modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            with suppress(ModuleNotFoundError):  # triton, which is not on every system
                yield importlib.import_module(found.name)


def uses(module: ModuleType) -> tuple[list[Use], list[str]]:
    """Return the uses of patterns in a module, and the places of those that are made of something else than it."""
    if not module.__file__:
        return [], []
    with open(module.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    used: list[Use] = []
    unknown: list[str] = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        method, place = node.func.attr, f"{module.__name__}:{node.lineno}"
        owner = node.func.value
        if isinstance(owner, ast.Name) and owner.id == "re" and method in (*METHODS, "compile"):
            try:
                pattern = _compiled(node, method, module)
            except NameError:
                unknown.append(f"{module.__name__} {ast.unparse(node.args[0])}")
                continue
            used.append(Use(pattern, method, place))
        elif method in METHODS and isinstance(value := _value(owner, module), re.Pattern):
            used.append(Use(value, method, place))
    return used, unknown


def _compiled(node: ast.Call, method: str, module: ModuleType) -> re.Pattern:
    flags = next((keyword.value for keyword in node.keywords if keyword.arg == "flags"), None)
    place = {"compile": 1, "sub": 4, "subn": 4, "split": 3}.get(method, 2)
    flags = node.args[place] if len(node.args) > place else flags
    pattern = _evaluate(node.args[0], module)
    return re.compile(pattern, _evaluate(flags, module) if flags else 0)


def _evaluate(node: ast.expr, module: ModuleType) -> object:
    return eval(compile(ast.Expression(node), "pattern", "eval"), vars(module))


def _value(node: ast.expr, module: ModuleType) -> object:
    try:
        return _evaluate(node, module) if isinstance(node, ast.Name | ast.Attribute) else None
    except (NameError, AttributeError):
        return None


def all_uses(package: ModuleType) -> tuple[list[Use], list[str]]:
    """Return every use of a pattern in a package, and the patterns that are made when they are used.

    A pattern that no method is called of by its name is used by `search`, which is the slowest.
    """
    used: dict[tuple[re.Pattern, str], Use] = {}
    unknown: list[str] = []
    for module in modules(package):
        here, more = uses(module)
        unknown += more
        for use in (*here, *kept(module)):
            used.setdefault((use.pattern, use.method), use)
    called = {pattern for pattern, method in used if method != "compile"}
    searched = [Use(use.pattern, "search", use.place) for use in used.values() if use.pattern not in called]
    return [use for use in used.values() if use.method != "compile"] + searched, unknown


def kept(module: ModuleType) -> Iterator[Use]:
    """Yield the compiled patterns in a module's variables, also those in tuples and dictionaries."""
    stack: list[tuple[object, int]] = [(value, 0) for name, value in vars(module).items() if not name.startswith("__")]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, re.Pattern):
            yield Use(value, "compile", module.__name__)
        elif isinstance(value, dict | list | tuple | set | frozenset) and depth < 4 and len(value) < 1000:
            stack += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]


# --- hostile texts ----------------------------------------------------------------------------------------------------


_MOST_TEXTS = 1000


def hostile_texts(pattern: re.Pattern) -> list[tuple[str, str, str]]:
    """Return (beginning, repeated, end) of texts that may take long: parts of what matches, again and again."""
    tree = list(parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG))
    pumps = dict.fromkeys(text for text in _pumps(tree) if text)
    sample = _sample(tree)
    starts = dict.fromkeys(["", *(sample[: sample.find(pump)] for pump in pumps if pump in sample)])
    texts = [("", pump, end) for pump in pumps for end in ("\x00", "\nX")]
    texts += [(start, pump, "\x00") for start in list(starts)[1:4] for pump in pumps]
    return texts[:: len(texts) // _MOST_TEXTS + 1]


def _pumps(tree: list) -> Iterator[str]:
    """Yield samples of the pattern's parts: each item, runs of items, and what is inside of repeats."""
    for choice in (0, 1, 2):
        samples = [_sample([item], choice) for item in tree]
        for begin in range(len(tree)):
            for end in range(begin + 1, min(len(tree), begin + 4) + 1):
                yield "".join(samples[begin:end])[:40]
        yield "".join(samples)[:60]
    for item in tree:
        for inside in _insides(item):
            yield from _pumps(inside)
        if item[0] in _REPEATS:
            yield from _alphabet(item)


_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)


def _alphabet(item: tuple) -> Iterator[str]:
    yield from " \t\na0A_-,.:\\\"'<([{/"
    yield from ("a ", "a,", "\\a", "a\n", " ,", "0.", "a.", "--")


def _insides(item: tuple) -> Iterable[list]:
    code, argument = item
    if code in _REPEATS:
        return [list(argument[2])]
    if code is codes.SUBPATTERN:
        return [list(argument[3])]
    if code is codes.ATOMIC_GROUP:
        return [list(argument)]
    if code is codes.BRANCH:
        return [list(branch) for branch in argument[1][:3]]
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        return [list(argument[1])]
    return []


def _sample(tree: list, choice: int = 0) -> str:
    """Return a text that the pattern might match. choice: which alternative is taken."""
    return "".join(_sample_of_item(item, choice) for item in tree)


def _sample_of_item(item: tuple, choice: int) -> str:
    code, argument = item
    if code is codes.LITERAL:
        return chr(argument)
    if code is codes.ANY:
        return "a"
    if code is codes.NOT_LITERAL:
        return "a" if argument != ord("a") else "b"
    if code is codes.IN:
        return _sample_of_set(argument)
    if code is codes.BRANCH:
        return _sample(list(argument[1][min(choice, len(argument[1]) - 1)]), choice)
    if code in _REPEATS:
        return _sample(list(argument[2]), choice) * max(argument[0], 1)
    if code is codes.SUBPATTERN:
        return _sample(list(argument[3]), choice)
    return _sample(list(argument), choice) if code is codes.ATOMIC_GROUP else ""


_CATEGORIES = {codes.CATEGORY_DIGIT: "0", codes.CATEGORY_SPACE: " ", codes.CATEGORY_WORD: "a"}


def _sample_of_set(argument: list) -> str:
    if argument[0][0] is codes.NEGATE:
        [excluded] = [re.compile("[" + "".join(map(_spelled, argument[1:])) + "]")]
        return next((sign for sign in 'a0 .-_/<,:"\n' if not excluded.match(sign)), "~")
    code, value = argument[0]
    if code is codes.LITERAL:
        return chr(value)
    return chr(value[0]) if code is codes.RANGE else _CATEGORIES.get(value, "-")


def _spelled(item: tuple) -> str:
    code, value = item
    if code is codes.LITERAL:
        return re.escape(chr(value))
    if code is codes.RANGE:
        return f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}"
    names = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
    name = str(value).removeprefix("CATEGORY_")
    return names[name.removeprefix("NOT_")].upper() if name.startswith("NOT_") else names[name]


# --- time -------------------------------------------------------------------------------------------------------------

LENGTHS = (10, 250, 2500)  # characters: the shortest for what grows exponentially
_SHORTEST = 5e-6  # seconds that are worth a second look
_FAST = 150e-9  # seconds a character: linear patterns take a tenth
_LONG = 1e-3  # seconds that only an exponential pattern takes for 20 characters
_RATIO = 2.7  # of the times of twice the length and once: linear is 2, quadratic 4


def slow_text(use: Use) -> str | None:
    """Return a text on which the pattern's time grows faster than the text, shortened; None where there is none."""
    is_bytes = isinstance(use.pattern.pattern, bytes)
    for start, pump, end in hostile_texts(use.pattern):

        def seconds(length: int, start: str = start, pump: str = pump, end: str = end) -> float:
            text = start + pump * max(1, length // len(pump)) + end
            return _seconds(use, text.encode("latin-1", "replace") if is_bytes else text)

        if any(seconds(length) > max(_FAST * length, _SHORTEST) and _grows(seconds, length) for length in LENGTHS):
            return f"{start[:20]!r} + {pump!r} * n + {end!r}"
    return None


def _grows(seconds: Callable[[int], float], length: int) -> bool:
    """Return whether time grows faster than length: measured again, the shortest of several, before it is believed.

    It must go on growing: the time of `(a ){0,3}` does until the text has three of them, and not beyond.
    """
    for tries in (2, 3, 5, 10):
        short, long = (min(seconds(size) for _ in range(tries)) for size in (length, 2 * length))
        if long < _RATIO * short or long < _FAST * 2 * length:
            return False
        if long < _LONG and min(seconds(4 * length) for _ in range(tries)) < _RATIO * long:
            return False
    return True


def _seconds(use: Use, text: str | bytes) -> float:
    began = time.thread_time()
    use.run(text)
    return time.thread_time() - began
