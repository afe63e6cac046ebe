"""What a tokenizer calls special is text in a prompt: against a byte-pair encoding of our own."""

import gzip
import unicodedata
from importlib import resources

import numpy as np
import pytest
import regex
import torch

from sdpersonal.errors import UserError
from sdpersonal.models.loading.single_file import clip_tokenizer
from sdpersonal.models.text_encoder import TextEncoder
from sdpersonal.prompts import parse

SPECIAL = [
    "<|endoftext|>",
    "<|startoftext|>",
    "<|ENDOFTEXT|>",
    "<|EndOfText|>",
    "<| endoftext |>",
    "<|endoftext|",
    "</w>",
]
AROUND = ["{}", "a {} cat", "a{}cat", "{0}{0}", "{}!", "A {}\n{}, dog"]
SIGNS = ["!", "wow!", "wow !", "!!", "a! b!! c!!!", "cat!dog", "!?", "¡hola!", "!@"]
WORDS = (
    "photo of the duck's café naïve 日本語 über 4k 1girl (masterpiece:1.2) [red] best_quality, don't I'll they're Ω 🙂",
    'hyper-realistic 8:45 a/b 50% #1 & "quoted" x<y <3 \u00e9 e\u0301 \u2019s ÆTHER straße \u200b ... --ar $5 ~^` |>',
)


class Model:
    """An embedding table of some length, which is all that `TextEncoder.ids` asks of a text model."""

    def __init__(self, words):
        self._table = torch.nn.Embedding(words, 2)

    def get_input_embeddings(self):
        return self._table


def letters():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


class Pairs:
    """CLIP's byte-pair encoding, from the description in Radford et al. 2021 and GPT-2's letters for bytes."""

    WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")

    def __init__(self):
        packed = (resources.files("sdpersonal.models.loading") / "clip" / "merges.txt.gz").read_bytes()
        merges = [tuple(line.split(" ")) for line in gzip.decompress(packed).decode().splitlines()]
        self.letters, self.rank = letters(), {pair: i for i, pair in enumerate(merges)}
        signs = list(self.letters.values())
        self.numbers = {w: i for i, w in enumerate([*signs, *(f"{s}</w>" for s in signs), *map("".join, merges)])}

    def ids(self, text):
        text = unicodedata.normalize("NFC", text).lower()
        return [number for word in self.WORD.findall(text) for number in self._word(word)]

    def _word(self, word):
        parts = [self.letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            at = min(range(len(parts) - 1), key=lambda i: self.rank.get((parts[i], parts[i + 1]), np.inf))
            if (parts[at], parts[at + 1]) not in self.rank:
                break
            pair, merged, i = (parts[at], parts[at + 1]), [], 0
            while i < len(parts):
                both = tuple(parts[i : i + 2]) == pair
                merged.append("".join(pair) if both else parts[i])
                i += 2 if both else 1
            parts = merged
        return [self.numbers[part] for part in parts]


@pytest.fixture(scope="module")
def pairs():
    return Pairs()


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"], ids=["SD 1.x, SDXL's first", "SD 2.x, SDXL's second"])
def encoder(request):
    return TextEncoder(clip_tokenizer(request.param), Model(49408))


@pytest.mark.parametrize(
    "text", [form.replace("{0}", "{}").replace("{}", s) for form in AROUND for s in SPECIAL] + SIGNS
)
def test_special_tokens_in_a_prompt_are_encoded_as_text(text, encoder, pairs):
    ids = encoder.ids(text)
    if encoder.tokenizer.pad_token == "!":  # a sign that diffusers' pipelines read as the padding's id
        parts = [pairs.ids(part) for part in text.split("!")]
        assert ids == [number for part in parts for number in (0, *part)][1:]
    else:
        assert ids == pairs.ids(text)
    assert not {encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id} & set(ids)


@pytest.mark.parametrize("text", SIGNS)
def test_exclamation_marks_are_encoded_as_in_diffusers(text, encoder):
    assert encoder.ids(text) == encoder.tokenizer(text, add_special_tokens=False).input_ids


def test_ordinary_prompts_are_encoded_as_by_the_tokenizer(encoder, pairs):
    """To the id, as the tokenizer reads them by itself."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(" ".join(WORDS).split(), size=draw.integers(1, 12))) for _ in range(300)]
    for text in texts:
        assert encoder.ids(text) == encoder.tokenizer(text, add_special_tokens=False).input_ids == pairs.ids(text)


def test_the_built_in_base_encodes_special_tokens_as_text(tiny):
    encoder = tiny.encoders["clip_l"]
    end = encoder.tokenizer.eos_token_id
    [piece] = parse(r"a \<|endoftext|\> cat").pieces
    assert piece.text == "a <|endoftext|> cat" and end not in encoder.ids(piece.text)
    assert encoder.ids(piece.text) == encoder.ids("a <| endoftext |> cat")
    assert encoder.chunks([])[0].ids.count(end) >= 1  # where the prompt ends it still stands


def test_a_custom_tokenizer_keeps_its_added_tokens(tmp_path):
    """Of a stranger's base: what it calls special is text, its own words stay, and one without a row is told."""
    tokenizer = clip_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|mine|>"]})
    tokenizer.add_tokens(["<cat-toy>"])
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    special, toy = loaded.convert_tokens_to_ids(["<|mine|>", "<cat-toy>"])
    whole = TextEncoder(loaded, Model(49410))
    assert special not in whole.ids("a <|mine|> <|endoftext|>") and loaded.eos_token_id not in whole.ids(
        "<|endoftext|>"
    )
    assert toy in whole.ids("a <cat-toy>")
    with pytest.raises(UserError, match="that its text encoder does not"):
        TextEncoder(loaded, Model(49408)).ids("a <cat-toy>")
