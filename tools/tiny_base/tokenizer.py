"""A byte-pair vocabulary in CLIP's manner, learned from captions and from the names of all emoji."""

import json

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from . import art, captions, scenes
from .captions import COLOURS

SIZE = 2560
START, END = "<|startoftext|>", "<|endoftext|>"
# English around the world's own words, so that a prompt in plain words does not fall to single letters.
ENGLISH = """
a an the of in on at to from with by for and or as is are was be it its this that there here my your his her our
photo picture image painting drawing sketch portrait render illustration cartoon style art print ink watercolor oil
close up of, very beautiful cute funny old new good bad small big large tiny huge little tall short round square
person people man woman girl boy child baby dog cat toy thing object animal food plant vehicle tool house room
wearing holding riding sitting standing lying running flying eating drinking sleeping playing looking made full
next top bottom left right front back behind under over above below inside outside between near far against around
red orange yellow green blue purple pink brown black white gray grey golden silver bright dark light colorful shiny
background wall floor table chair street city beach forest mountain water sea river snow rain sky sun moon night day
one two three four five six seven eight nine ten many some few no not without wooden metal plastic glass paper
style of <s> sks class instance concept best quality detailed high low resolution minimal simple clean vintage
morning evening summer winter spring autumn garden kitchen bed window door road bridge field grass flower tree leaf
"""


def corpus(world, count=20_000):
    """Lines to learn from: captions, all emoji names, plain English."""
    mix = scenes.Mix()
    yield from (scenes.draw_scene(world, 11, i, mix).caption for i in range(count))
    for _ in range(30):
        yield from (name.lower() for name in art.emoji_table(world.art_folder))
    for _ in range(400):
        yield ENGLISH
        yield " ".join(COLOURS)
        yield " ".join(" ".join(forms) for forms in captions.PLACES.values())


def train(world, folder):
    """Write vocab.json, merges.txt and the config of a CLIPTokenizer to `folder`."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [letter + "</w>" for letter in letters]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE + 200, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(corpus(world), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = list(dict.fromkeys([*alphabet, *(a + b for a, b in merges)]))[: SIZE - 2]
    token_set = set(tokens)
    merges = [(a, b) for a, b in merges if a + b in token_set and a in token_set and b in token_set]
    vocab = {token: i for i, token in enumerate([*tokens, START, END])}
    tokenizer = CLIPTokenizer(
        vocab=vocab, merges=merges, bos_token=START, eos_token=END, unk_token=END, pad_token=END, model_max_length=77
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    # the two files that other tools look for; this version of the library writes tokenizer.json only
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(folder):
    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer, texts, length=None):
    """Texts -> (B, 77) token ids, or (B, longest) with length="longest"."""
    return tokenizer(
        texts, padding=length or "max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
