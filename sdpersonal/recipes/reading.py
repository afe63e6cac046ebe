"""The recipe in a picture's bytes: ours, or what A1111's form says. Bounded in time and memory; nothing is opened."""

from __future__ import annotations

from ..errors import PersonalError
from ..prompts import show
from ..tensorfile import strict_json
from .containers import MAX_TEXT, TooLong, png_text, user_comment
from .foreign import Foreign, foreign
from .recipe import Recipe
from .writing import KEY, THEIR_KEY

MAX_PICTURE = 100_000_000  # bytes of a file to read


def read_recipe(data: bytes, name: str = "The picture") -> Recipe | Foreign:
    """What the picture called `name` was drawn from. Raises PersonalError where it holds nothing that I can read."""
    try:
        ours = png_text(data, KEY)
        if ours is not None:
            return _recipe(ours)
        theirs = png_text(data, THEIR_KEY) or user_comment(data)
    except TooLong:
        raise _refused(name, f"its text is longer than {MAX_TEXT // 1000} kB") from None
    except ValueError as error:
        raise _refused(name, str(error)) from None
    except PersonalError as error:
        raise PersonalError(f"The recipe in {show(name)} is refused. {error.problem}", error.fix) from None
    found = foreign(theirs) if theirs else None
    if found is None:
        raise PersonalError(
            f"{show(name)} holds no recipe.",
            "Pictures drawn with --private have none, and screenshots and messengers leave it out.",
        )
    return found


def _recipe(text: str) -> Recipe:
    fields = strict_json(text)
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    return Recipe(**fields)


def _refused(name: str, why: str) -> PersonalError:
    return PersonalError(f"The recipe in {show(name)} is refused: {why}.")
