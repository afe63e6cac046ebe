"""Build CLIP's tokenizer for checkpoints that come without one.

`clip/merges.txt.gz` holds the 48,894 byte pairs of openai/CLIP's `bpe_simple_vocab_16e6.txt` that its tokenizer uses
(MIT licence, see NOTICE); the vocabulary follows from them as in that repository's `simple_tokenizer.py`.
"""

from __future__ import annotations

import gzip
from importlib import resources

from .architecture import CONTEXT_LENGTH

VOCAB_SIZE = 49408
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(pad: str = END):
    """Build a CLIPTokenizer equal to that of SD 1.x. pad: "!" (id 0) for open_clip's models."""
    from transformers import CLIPTokenizer

    packed = (resources.files("sdpersonal.models.loading") / "clip" / "merges.txt.gz").read_bytes()
    merges = [tuple(line.split(" ")) for line in gzip.decompress(packed).decode("utf-8").splitlines()]
    letters = _byte_characters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=CONTEXT_LENGTH)


def _byte_characters() -> list[str]:
    """Return a printable character for each byte (Radford et al. 2019, GPT-2): itself, or one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
