"""No regular expression takes more than linear time, whatever a file or a user brings."""

import re

import pytest

import sdpersonal
from support.patterns import Use, all_uses, slow_text

# Patterns that are made when they are used, and what they are like then.
MADE = {
    "cli.diffusers_compat.rules re.escape(words)": r"sks\ dog",
    "concepts.card f'(?<=[<+]){owner}{old.name}(?=[>:@+]|-v[0-9])'": r"(?<=[<+])(?:me/)?duck(?=[>:@+]|-v[0-9])",
    "concepts.importers.peft_patterns expression": "[a-z]",
    "concepts.importers.unsupported pattern": "",  # all of them are in a table, which is measured
    'image_metadata.programs re.escape(name) + \'="([^"]*)"\'': 'xmp:x="([^"]*)"',
    "models.loading.architecture pattern": r"input_blocks\.(\d+)\.0\.in_layers\.2\.weight",
    "models.loading.hub_cache re.escape(f'{part}{stem}{variant}-') + '\\\\d+-of-\\\\d+\\\\.safetensors'": (
        r"unet/model\-\d+-of-\d+\.safetensors"
    ),
    "playground.xyz_grid.prompt_edits before + re.escape(target) + after": r"(?<!\w)duck\ pond(?!\w)",
    "prompts.wildcards f'(?={re.escape(sign)})'": "(?=aaa)",
}


def test_every_regular_expression_takes_linear_time():
    used, made = all_uses(sdpersonal)
    assert len(used) > 200
    assert {place.removeprefix("sdpersonal.") for place in made} == MADE.keys()
    used += [Use(re.compile(pattern), "search", place) for place, pattern in MADE.items()]
    slow = {f"{use.place} {use.method} {use.pattern.pattern!r}": text for use in used if (text := slow_text(use))}
    assert not slow


@pytest.mark.parametrize(
    "pattern, method",
    [
        (r"\.(dora_scale|lora_magnitude_vector(\..+)?)$", "search"),
        (r"\s+--(?=[a-z])", "split"),
        (r"(a+)+$", "match"),
        (r"\s*,?\s*(?:and)?\s*", "fullmatch"),
        (r"(-?[0-9]*\.?[0-9]+)::", "finditer"),
        (r"load.*image", "search"),
        (r"models--(?P<owner>.+?)--(?P<name>.+)", "fullmatch"),
    ],
)
def test_slow_regular_expressions_are_detected(pattern, method):
    assert slow_text(Use(re.compile(pattern), method, "here"))
