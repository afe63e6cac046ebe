"""Read the prompt language: English with concept tokens, emphasis and alternatives.

    a photo of <karpathy/cool-object-v7> in the style of <coolperson/trippystyle:0.8>, (at dawn:1.2)

A token is `<owner/name-vN>`: lower-case ASCII letters, digits and hyphens. `-vN` is the version; without it the newest
is used. `<name>` alone works while only one owner has such a concept. `:0.8` sets the strength, -5 to 5; `@0.4-1` the
part of the sampling in which it acts; `<me/duck+me/cat>` blends two; options follow the strength,
`<me/duck:0.8:at=left>`. A `<` that opens no token ("a < b") is text. Tokens never reach a tokenizer: `parse` splits
the prompt into text and concept references, and the generator puts each concept's embeddings in their place.

`parser` parses emphasis, `(word:1.3)`; `alternatives` resolves alternatives, `{a|b}`, before a prompt is parsed.
The language for users: docs/prompts.md.
"""

from .alternatives import Wildcards, all_prompts, count_prompts, has_alternatives, nth_prompt, sample_prompt
from .ast import Break, ConceptRef, Mention, Prompt, Region, Text
from .block_weights import BlockWeights
from .concept_options import MAX_STRENGTH
from .parser import MAX_DEPTH, MAX_PROMPT, parse
from .render import format_prompt
from .tokens import Token, to_token_word

__all__ = [
    "MAX_DEPTH",
    "MAX_PROMPT",
    "MAX_STRENGTH",
    "BlockWeights",
    "Break",
    "ConceptRef",
    "Mention",
    "Prompt",
    "Region",
    "Text",
    "Token",
    "Wildcards",
    "all_prompts",
    "count_prompts",
    "format_prompt",
    "has_alternatives",
    "nth_prompt",
    "parse",
    "sample_prompt",
    "to_token_word",
]
