"""Captions beside photos: whatever program wrote them, they are used or the true reason is said."""

import codecs
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from sdpersonal.errors import printable
from sdpersonal.photos.captions import Refused, shortened
from sdpersonal.photos.loading import load_photos


def smooth(seed):
    few = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(few).resize((256, 256), Image.Resampling.BICUBIC)


def encoded(image, kind):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def test_a_text_file_beside_a_photo_is_its_caption(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(smooth(seed=1), "PNG"))
    (tmp_path / "b.png").write_bytes(encoded(smooth(seed=2), "PNG"))
    plain = load_photos(tmp_path, 64)
    (tmp_path / "a.txt").write_text("\ufeff{} in the snow\r\n\n a drawing of {} \n", encoding="utf-8")
    captioned = load_photos(tmp_path, 64)
    assert [photo.captions for photo in captioned.photos] == [("{} in the snow", "a drawing of {}"), ()]
    assert captioned.identity != plain.identity  # a resumed run must not go on with other words
    assert "1 with captions" in captioned.report()


def one_photo(folder, files, kind="object"):
    (folder / "a.png").write_bytes(encoded(smooth(seed=1), "PNG"))
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_photos(folder, 64, kind=kind)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{} and {}", "has {} 2 times in line 1"),
        (b"{}" + b"x" * 20_000, "has 20,002 characters in line 1; up to 20,000 are read"),
        (b"{}\n\xff{}", "is not UTF-8 in line 2; save it as UTF-8"),
        (b"{}\x1b[2J", "holds the control character U+001B"),
        (b"{}\n" * 21, "has 21 lines; up to 20 are read"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf \r\n\t\xe2\x80\x8b", "is empty"),
        ("{} here".encode("utf-16-le"), "holds NUL characters, as UTF-16 without its mark does"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8", "is not UTF-16"),
        (b"{}" * 200_000, "is larger than 200 kB"),
        (b"...", "has no word in line 1"),
    ],
)
def test_unusable_captions_are_ignored_with_a_reason(tmp_path, text, reason):
    result = one_photo(tmp_path, {"a.txt": text})
    assert result.photos[0].captions == () and result.ignored == 0
    assert f"its caption is not used: a.txt {reason}" in result.photos[0].notes[-1]


@pytest.mark.parametrize(
    "data",
    [
        "{} in\u00a0the\u3000snow",
        "{}\tin the \u2003 snow\u200e",
        "\ufeff{} in the s\u00adnow\r\n\r\n",
        "{\u200b} in\u202fthe\u2060 snow",
        "{ } in\u2028the\x0bsnow\x85",
        codecs.BOM_UTF16_LE + "{} in the snow".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "{} in the snow\r\n".encode("utf-16-be"),
        "{} in the snow".encode("utf-32"),
    ],
    ids=ascii,
)
def test_unusual_spaces_and_invisible_characters_are_normalized(tmp_path, data):
    assert one_photo(tmp_path, {"a.txt": data}).photos[0].captions == ("{} in the snow",)


def test_emoji_quotes_and_other_scripts_are_preserved(tmp_path):
    text = "{} with 👨\u200d👩\u200d👧 and “smart quotes”\n{} 在雪地里\n{} خانه\u200cها"
    assert one_photo(tmp_path, {"a.txt": text}).photos[0].captions == tuple(text.split("\n"))


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "A.txt", "a.caption", "a.Caption", "a.png.txt", "a.PNG.caption"])
def test_caption_files_are_recognized_by_name(tmp_path, name):
    result = one_photo(tmp_path, {name: "{} in the snow"})
    assert result.photos[0].captions == ("{} in the snow",) and "ignored" not in result.report()


def test_caption_names_match_in_either_unicode_normalization(tmp_path):
    """An é of one character and of two: what a Mac and everybody else writes."""
    (tmp_path / "e\u0301.png").write_bytes(encoded(smooth(seed=1), "PNG"))
    (tmp_path / "\u00e9.txt").write_text("{} in the snow")
    assert load_photos(tmp_path, 64).photos[0].captions == ("{} in the snow",)


def test_the_more_specific_caption_file_name_is_used(tmp_path):
    result = one_photo(tmp_path, {"a.txt": "{} of both", "a.png.txt": "{} of one", "a.caption": "{} later"})
    assert result.photos[0].captions == ("{} of one",) and result.ignored == 2


def test_a_caption_file_is_shared_by_photos_with_the_same_stem(tmp_path):
    (tmp_path / "01.jpg").write_bytes(encoded(smooth(seed=1), "JPEG"))
    one_photo(tmp_path, {"01.txt": "{} here", "a.txt": "", "notes.md": ""})
    (tmp_path / "01.png").write_bytes(encoded(smooth(seed=3), "PNG"))
    result = load_photos(tmp_path, 64)
    assert [photo.captions for photo in result.photos] == [("{} here",), ("{} here",), ()]
    assert result.ignored == 1 and "3 photos, 2 with captions, 1 other file ignored" in result.report()


@pytest.mark.parametrize(
    ("text", "kind", "caption"),
    [
        ("a photo of sks dog in the snow", "object", "a photo of {} dog in the snow"),
        ("[trigger], outdoors", "object", "{}, outdoors"),
        ("TOK on a table, TOK from above", "object", "{} on a table, from above"),
        ("<s0><s1> at dawn", "style", "{} at dawn"),
        ("<me/duck> at dawn", "object", "{} at dawn"),
        ("a photo of <me/duck:0.8>", "object", "a photo of {}"),
        ("SKS dog", "object", "{} dog"),
        ("[name] at dawn", "object", "{} at dawn"),
        ("1girl, solo, long hair, outdoors", "person", "{}, 1girl, solo, long hair, outdoors"),
        (
            "A dog is lying on the grass, in the sun.",
            "object",
            "a photo of {}, A dog is lying on the grass, in the sun.",
        ),
        ("a house by the lake.", "style", "a house by the lake in the style of {}"),
        ("a basket of socks", "object", "a photo of {}, a basket of socks"),  # no "sks" in it
    ],
)
def test_captions_of_other_trainers_get_a_subject_placeholder(tmp_path, text, kind, caption):
    (photo,) = one_photo(tmp_path, {"a.txt": text}, kind).photos
    assert photo.captions == (caption,)
    assert photo.notes == (f"a.txt has no {{}} for the subject; it is read as: {printable(caption)}",)


def test_captions_are_read_from_metadata_jsonl(tmp_path):
    rows = [{"file_name": "a.png", "text": "{} in the snow"}, {"file_name": "B.PNG", "text": "sks at home"}]
    (tmp_path / "b.png").write_bytes(encoded(smooth(seed=2), "PNG"))
    (tmp_path / "c.png").write_bytes(encoded(smooth(seed=3), "PNG"))
    text = "\n".join(map(json.dumps, rows))
    result = one_photo(tmp_path, {"metadata.jsonl": text, "c.txt": "{} of its own"})
    assert [photo.captions for photo in result.photos] == [("{} in the snow",), ("{} at home",), ("{} of its own",)]
    assert result.ignored == 0 and not result.skipped
    for broken, message in (
        ("\n{", "has no whole JSON object in line 3"),
        ('\n{"file_name": "c.png"}', "has no text in line 3"),
    ):
        result = one_photo(tmp_path, {"metadata.jsonl": text + broken})
        assert message in result.report() and result.photos[0].captions
    result = one_photo(tmp_path, {"metadata.jsonl": json.dumps({"file_name": "a.png", "text": "\ud83d {}"})})
    assert "its text in metadata.jsonl is not valid Unicode" in result.photos[0].notes[-1]


@pytest.mark.parametrize(
    ("rows", "caption", "said"),
    [
        ([{"file_name": "./a.png", "text": "{} in the snow"}], ("{} in the snow",), ""),
        ([{"file_name": "a.png", "text": "", "caption": "{} at home"}], ("{} at home",), ""),
        ([{"file_name": "a.png", "text": "{} in the\u2028snow"}], ("{} in the snow",), ""),
        (
            [3, {"file_name": "a.png", "text": "{}"}, []],
            ("{}",),
            "has no file_name in line 1; its other lines are used",
        ),
        ([{"file_name": "a.png", "text": None}], (), ""),
        ([{"file_name": "train/a.png", "text": "{}"}], (), "is about none of these photos; the first that it names is"),
    ],
)
def test_metadata_rows_are_read_or_reported(tmp_path, rows, caption, said):
    result = one_photo(tmp_path, {"metadata.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)})
    assert result.photos[0].captions == caption
    assert len(result.skipped) == bool(said) and said in result.report()


def test_captions_are_read_from_metadata_csv(tmp_path):
    result = one_photo(tmp_path, {"metadata.csv": '\ufefffile_name,text\r\na.png,"{} in the snow, at night"\r\n'})
    assert result.photos[0].captions == ("{} in the snow, at night",) and not result.skipped
    result = one_photo(tmp_path, {"metadata.csv": "a;b\nc;d"})
    assert "metadata.csv has no file_name in line 2" in result.report()
    result = one_photo(tmp_path, {"metadata.csv": "file_name,text\na.png,{}" + "x" * 200_000})
    assert "metadata.csv is not CSV in line 2: field larger than field limit" in result.report()


def test_long_captions_are_shortened_at_a_comma_or_word_around_the_subject():
    def words(most):
        return lambda caption: len(re.findall(r"\{\}|\w+", caption)) <= most

    text = "a photo of {} on a table, with a cup, a plate and a spoon"
    assert shortened(text, words(20)) == text
    assert shortened(text, words(10)) == "a photo of {} on a table, with a cup"
    assert shortened("one two, three four five {}", words(3)) == "four five {}"
    assert shortened("日本語" * 50 + " {}", lambda caption: len(caption) < 20).endswith("{}")
    with pytest.raises(Refused):
        shortened("a {} b", lambda caption: False)


def test_long_captions_are_shortened_to_fit_the_base(tiny, tmp_path):
    """What is left is as long as it can be, keeps the subject, and is encoded; the photo is named."""
    from sdpersonal.training.dataset import fit_captions
    from sdpersonal.training.methods.token_embedding import embedding_for_class, insert_embeddings

    texts = {
        "a": "{} " + "日本語の説明文です、" * 25,
        "b": "x" * 500 + " {}",
        "c": "{} in the snow",
        "d": "wörd " * 99 + "{}",
    }
    for seed, (name, text) in enumerate(texts.items()):
        (tmp_path / f"{name}.png").write_bytes(encoded(smooth(seed), "PNG"))
        (tmp_path / f"{name}.txt").write_text(text)
    photos = load_photos(tmp_path, 64).photos
    rows = embedding_for_class(tiny, "toy duck")()
    readings = [lambda caption: insert_embeddings(caption, rows), lambda caption: [caption.replace("{}", "toy duck")]]
    fitted, notes = fit_captions(tiny, readings, photos)
    assert [note.split(":")[0].strip() for note in notes] == ["a.png", "b.png", "d.png"]
    assert fitted[2].captions == photos[2].captions
    for photo, before in zip(fitted, photos, strict=True):
        (caption,) = photo.captions
        assert caption.count("{}") == 1 and (caption[:20] in before.captions[0] or caption[-20:] in before.captions[0])
        for resolved in readings:
            tiny.encode_captions([resolved(caption)])  # raises where it does not fit
    assert max(len(tiny.encoders["clip_l"].ids(photo.captions[0])) for photo in fitted) > 55


def test_the_photos_check_reports_long_captions(tmp_path, capsys):
    from sdpersonal.cli.main import main

    (tmp_path / "set").mkdir()
    for seed, text in enumerate(("{} in the snow", "{} " + "a very long caption, " * 40)):
        (tmp_path / "set" / f"{seed}.png").write_bytes(encoded(smooth(seed), "PNG"))
        (tmp_path / "set" / f"{seed}.txt").write_text(text)
    argv = ["photos", "check", str(tmp_path / "set"), "--kind", "style", "--sheet", str(tmp_path / "sheet.png")]
    assert main(argv) == 0
    message = capsys.readouterr().out
    assert (
        "1.png: its caption has about 204 tokens; only 75 are read" in message and "0.png: its caption" not in message
    )
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["long_captions"] == {"1.png": 204}  # 40 x (4 words + a comma) + 4


def test_other_braces_in_a_caption_are_plain_text(tiny, tmp_path):
    from sdpersonal.config import DreamboothSettings
    from sdpersonal.training.methods.factory import insert_class_noun

    reading = insert_class_noun(DreamboothSettings(photos="x", token="<me/a>", class_noun="dog"))
    assert reading("{} beside {red} and {") == ["dog beside {red} and {"]
