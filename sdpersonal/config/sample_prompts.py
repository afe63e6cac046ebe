"""Check the sample prompts that users give to a training, and find the subject's place in them."""

from __future__ import annotations

from ..errors import FieldError
from .text_checks import plain_spaces, text_problem

MAX_SAMPLE_PROMPTS = 8
MAX_LENGTH = 300
_FIELD = "sample_prompts"
_HINT = "For example: {} on the beach"


def check_sample_prompts(value: object, token: str, kind: str) -> tuple[str, ...]:
    """Return the prompts with {} at the subject's place. Raises FieldError.

    The place is {}, or the token, or else the beginning; for a style the end.
    """
    if not isinstance(value, list | tuple):
        raise FieldError(_FIELD, f"{_FIELD} must be a list of prompts.", _HINT)
    if len(value) > MAX_SAMPLE_PROMPTS:
        raise FieldError(_FIELD, f"{_FIELD} must be up to {MAX_SAMPLE_PROMPTS}, got {len(value)}.")
    return tuple(dict.fromkeys(_place_subject(prompt, token, kind) for prompt in value))


def _place_subject(prompt: object, token: str, kind: str) -> str:
    problem = text_problem(prompt, False) if isinstance(prompt, str) else None
    if not isinstance(prompt, str) or problem:
        raise FieldError(_FIELD, f"{_FIELD} {problem.text if problem else 'must be text.'}", _HINT)
    text = plain_spaces(prompt).strip()
    if len(text) > MAX_LENGTH:
        raise FieldError(_FIELD, f"{_FIELD} must each be text of up to {MAX_LENGTH} characters, got {len(text)}.")
    if token:
        text = text.replace(token, "{}")
    if "{}" not in text:
        text = f"{text} in the style of {{}}" if kind == "style" else f"{{}} {text}"
    if text.count("{}") > 1:
        raise FieldError(_FIELD, f"{_FIELD} may name the concept once in a prompt.", _HINT)
    if "<" in text:
        raise FieldError(
            _FIELD, f"{_FIELD} may name no other concept: only this one is there while it is trained.", _HINT
        )
    return text
