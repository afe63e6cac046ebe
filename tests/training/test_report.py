"""The page and the curves of a run: whole, alone, harmless, and without any photo."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdpersonal import storage
from sdpersonal.config import TextualInversionSettings, generation
from sdpersonal.display.image_grid import encode_png
from sdpersonal.evaluation import ConceptScores
from sdpersonal.prompts import Token
from sdpersonal.training import run, sampling, train, validation
from sdpersonal.training.curves import save_curves
from sdpersonal.training.early_stopping import dvar
from sdpersonal.training.report import SELECTION_RULE, RunSummary, write_report
from sdpersonal.training.run_dir import CLASS_NOUN_IMAGE, SAMPLES_FILE, VALIDATIONS_FOLDER, validation_image
from sdpersonal.training.validation import Validation
from support.samples import card, concept

UNKNOWN = [Validation(step, ConceptScores(1.0, 0.9, 0.0, 0.2, 0.4, out_of_domain=True)) for step in (1, 2)]
SUMMARY = RunSummary(("5 photos",), "It ended after step 3.", "the built-in CLIP", 61.4)
VALIDATIONS = [Validation(step, ConceptScores(0.3 * step, 0.9, 0.1, 0.2, 0.4)) for step in (1, 2, 3)]


class Page(HTMLParser):
    """What a browser would find: every element with its attributes, the text outside of styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data

    def pictures(self):
        images = []
        for tag, attributes in self.tags:
            if tag == "img":
                kind, data = attributes["src"].split(",", 1)
                assert kind == "data:image/png;base64" and attributes["alt"]
                images.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB"))
        return images


def assert_stands_alone(text):
    """Nothing is fetched, nothing runs, nothing leads away."""
    page = Page(text)
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//|url\(|@import|javascript:", rest, re.IGNORECASE)
    allowed = {"html", "meta", "title", "style", "h1", "h2", "p", "img", "div", "figure", "figcaption"}
    allowed |= {"table", "tr", "th", "td", "dl", "dt", "dd"}
    for tag, attributes in page.tags:
        assert tag in allowed, tag
        assert not any(name.startswith("on") or name in ("href", "action", "srcdoc") for name in attributes)
        assert tag == "img" or "src" not in attributes
    assert any(
        tag == "meta" and actual.get("content", "").startswith("default-src 'none'") for tag, actual in page.tags
    )
    return page


def random_image(seed, size=(64, 48)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    """A run's folder with all that a report shows."""
    storage.make_folder(tmp_path / VALIDATIONS_FOLDER)
    storage.write_bytes(tmp_path / SAMPLES_FILE, encode_png(random_image(0)))
    storage.write_bytes(tmp_path / VALIDATIONS_FOLDER / CLASS_NOUN_IMAGE, encode_png(random_image(1)))
    for step in (entry.step for entry in VALIDATIONS):
        storage.write_bytes(validation_image(tmp_path, step), encode_png(random_image(10 + step)))
    save_curves(tmp_path / "loss.png", [0.5, 0.4, 0.3], [(1, 0.5), (2, 0.4), (3, 0.35)], VALIDATIONS)
    return tmp_path


def make_concept(steps=3, **fields):
    return concept(card=card(steps=steps, method="dreambooth-lora", recipe={"lr": 0.001, "seed": 0}, **fields))


def test_the_report_shows_the_images_and_results_of_the_run(folder):
    path = write_report(folder, make_concept(), VALIDATIONS, SUMMARY)
    page = assert_stands_alone(path.read_text(encoding="utf-8"))
    assert path == folder / "report.html"
    shown = page.pictures()
    expected = [random_image(0), random_image(13), random_image(1)]
    for actual, expected_image in zip(shown, expected, strict=False):
        assert actual.tobytes() == expected_image.tobytes()
    assert len(shown) == 4 and shown[3].size == Image.open(folder / "loss.png").size
    text = " ".join(page.text.split())
    for lines in (
        "<me/duck>",
        "It is like the photos",
        "It ended after step 3.",
        "5 photos",
        "3, used",
        SELECTION_RULE,
    ):
        assert lines in text, lines
    assert "score 0.81" in text  # the root of 0.9 x 0.9, less a tenth that was copied
    assert "seconds in all 61" in re.sub(r"(seconds in all)", r"\1 ", text).replace("  ", " ")


def test_the_report_marks_the_checkpoint_of_the_concept_as_used(folder):
    text = write_report(folder, make_concept(steps=1), VALIDATIONS, SUMMARY).read_text(encoding="utf-8")
    page = Page(text)
    assert page.pictures()[1].tobytes() == random_image(11).tobytes()
    assert "1, used" in page.text and "3, used" not in page.text and page.text.count(", used") == 1
    assert text.count('class="best"') == 1


def test_out_of_domain_scores_are_not_shown(folder):
    text = write_report(folder, make_concept(steps=2), UNKNOWN, SUMMARY).read_text(encoding="utf-8")
    page = Page(text)
    assert (
        "cannot be scored: they are photographs" in page.text
        and page.pictures()[1].tobytes() == random_image(12).tobytes()
    )
    assert "Checkpoints" not in page.text and "<table" not in text and "0.9" not in page.text
    sizes = []
    for validations in (UNKNOWN, VALIDATIONS):
        save_curves(folder / "loss.png", [0.5, 0.4], [], validations)
        sizes.append(Image.open(folder / "loss.png").height)
    assert sizes[0] < sizes[1]  # a panel less


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</title></style><h1>mine",
    "&lt;b&gt; &amp; ]]> <!--",
    "кот ‮txt.exe‬ \x1b[31m red",
    "https://example.com/track.png",
)


@pytest.mark.parametrize("noun", HOSTILE)
def test_nouns_and_names_are_escaped_in_the_report(folder, noun):
    """Also those of files: as the report on the photos has them, and as they come."""
    hostile = make_concept(class_noun=noun, base_name=noun, title=noun)
    summary = replace(SUMMARY, photos=(f"{noun}.jpg", noun))
    text = write_report(folder, hostile, VALIDATIONS, summary).read_text(encoding="utf-8")
    page = Page(text)
    harmless = {tag for tag, _ in Page(write_report(folder, make_concept(), VALIDATIONS, SUMMARY).read_text()).tags}
    assert {tag for tag, _ in page.tags} == harmless and len(page.pictures()) == 4
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert hostile.card.class_noun in page.text
    assert "\x1b" not in text and "49" not in re.findall(r"class noun\s*(\S+)", page.text)


@pytest.mark.parametrize("fault", ["\x1b[31m", "\u202e", "\u2066", "\x00", "\u200f"])
def test_control_characters_are_shown_as_escapes(folder, fault):
    summary = replace(SUMMARY, photos=(f"a{fault}b.jpg",))
    text = write_report(
        folder, make_concept(class_noun=f"a{fault}b", base_name=f"a{fault}b"), VALIDATIONS, summary
    ).read_text(encoding="utf-8")
    assert fault not in text
    assert fault.encode("unicode_escape").decode().replace("[31m", "") in text


def test_a_report_with_missing_parts_is_still_valid(folder):
    wholes = {"trials": VALIDATIONS, "story": SUMMARY}
    missing = {
        "trials": [],
        "unjudged": [Validation(3, None)],
        "samples": folder / SAMPLES_FILE,
        "plain": folder / VALIDATIONS_FOLDER / CLASS_NOUN_IMAGE,
        "best": validation_image(folder, 3),
        "curves": folder / "loss.png",
        "everything": folder / VALIDATIONS_FOLDER,
    }
    counts = {}
    for name, part in missing.items():
        if isinstance(part, Path):
            storage.remove(part) if part.exists() else None
            validations = VALIDATIONS if name != "everything" else []
        else:
            validations = part
        text = write_report(folder, make_concept(), validations, replace(wholes["story"], photos=())).read_text(
            encoding="utf-8"
        )
        page = assert_stands_alone(text)
        counts[name] = len(page.pictures())
        assert page.text.count("<me/duck>") >= 1 and "Settings" in page.text
        assert ("Its samples were not scored." in page.text) == (name in ("trials", "unjudged", "everything"))
    assert counts == {"trials": 2, "unjudged": 2, "samples": 3, "plain": 2, "best": 1, "curves": 0, "everything": 0}


def test_images_too_large_for_the_report_are_omitted(folder, monkeypatch):
    from sdpersonal.training import report

    monkeypatch.setattr(report, "_MAX_IMAGE_BYTES", 100)
    assert Page(write_report(folder, make_concept(), VALIDATIONS, SUMMARY).read_text()).pictures() == []


def test_the_report_of_a_real_run_contains_no_photos(root, tmp_path, monkeypatch, tiny):
    """Not one embedded picture is a photo, whole or scaled, nor holds a photo's bytes; no path, no name of a folder."""
    monkeypatch.setattr(validation, "DENOISING_STEPS", 2)
    monkeypatch.setattr(generation, "DEFAULT_STEPS", 4)
    monkeypatch.setattr(sampling, "_SEEDS", 1)
    monkeypatch.setattr(run, "load_base", lambda *_, **__: tiny)
    monkeypatch.setattr(run, "save_curves", save_curves)  # tests plot none otherwise
    photos = root / "examples" / "photos" / "teddy-bear"
    settings = TextualInversionSettings(
        photos=photos, token="<me/teddy>", base="tiny", init="<b>bear", steps=2, batch=1, resolution=64,
        library=tmp_path / "concepts", run=tmp_path / "run",
    )  # fmt: skip
    lines = []
    train(settings, lines.append)
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    page = assert_stands_alone(text)
    embedded = page.pictures()
    assert len(embedded) == 4 and any(str(tmp_path / "run" / "report.html") in line for line in lines)
    assert "<b>bear" in page.text and str(tmp_path) not in text and "home" not in page.text
    for path in sorted(photos.glob("*.jpg")):
        data = path.read_bytes()
        assert base64.b64encode(data[:3000]).decode() not in text
        photo = Image.open(path).convert("RGB")
        for sheet in embedded:
            assert sheet.tobytes() != photo.tobytes()
            tiles = [sheet.crop((x, y, x + 128, y + 128)) for x in range(0, sheet.width - 127, 67)
                     for y in range(0, sheet.height - 127, 67)]  # fmt: skip
            small = np.stack([np.asarray(tile.resize((16, 16)), np.float64).ravel() for tile in tiles])
            actual = np.asarray(photo.resize((16, 16)), np.float64).ravel()
            assert np.abs(small - actual).mean(axis=1).min() > 8


# --- curves ---

LOSSES = [1 / (1 + i) + 0.1 * (i % 3) for i in range(60)]
MEASURED = [(i, 1 / i) for i in range(1, 61)]


def heights(path):
    with Image.open(path) as plot:
        plot.load()
        assert plot.format == "PNG" and plot.width > 600 and "Software" not in plot.info
        assert len(set(plot.convert("L").tobytes())) > 30
        return plot.height


def test_only_panels_with_data_are_plotted(tmp_path):
    cases = {
        "loss": (LOSSES, [], []),
        "no evidence yet": (LOSSES[:3], MEASURED[:3], []),
        "evidence": (LOSSES, MEASURED, []),
        "scores": (LOSSES[:3], [], VALIDATIONS),
        "unjudged": (LOSSES, [], [Validation(5, None)]),
        "all": (LOSSES, MEASURED, VALIDATIONS),
    }
    plot_heights = {}
    for name, data in cases.items():
        save_curves(tmp_path / f"{name}.png", *data)
        plot_heights[name] = heights(tmp_path / f"{name}.png")
    assert plot_heights["loss"] == plot_heights["no evidence yet"] == plot_heights["unjudged"]
    assert plot_heights["evidence"] == plot_heights["scores"] > plot_heights["loss"]
    extra = plot_heights["evidence"] - plot_heights["loss"]
    assert plot_heights["all"] - plot_heights["evidence"] == extra > 100


def test_convergence_of_a_pivotal_run_is_plotted_after_its_pivot(tmp_path):
    save_curves(tmp_path / "a.png", LOSSES, MEASURED, [], pivot=55)
    save_curves(tmp_path / "b.png", LOSSES, MEASURED, [], pivot=0)
    assert dvar(MEASURED, 55) == [] and heights(tmp_path / "a.png") < heights(tmp_path / "b.png")


@pytest.mark.parametrize(
    "validations",
    [
        ([], [], []),
        ([0.5], [(1, 0.5)], []),
        ([0.5], [], [Validation(1, ConceptScores(-2.0, 0.0, 1.0, 0.0, -1.0))]),
        ([0.3] * 50, [(i, 0.3) for i in range(1, 51)], [Validation(1, ConceptScores(9.0, 1.0, 0.0, 0.0, 1.0))]),
        ([0.0] * 12, [(i, 0.0) for i in range(1, 13)], []),
    ],
)
def test_curves_of_short_and_constant_runs_are_plotted(tmp_path, validations):
    save_curves(tmp_path / "loss.png", *validations)
    with Image.open(tmp_path / "loss.png") as random_image:
        random_image.load()


def test_the_report_shows_the_token_with_its_version(folder):
    hostile = replace(make_concept(), token=Token("me", "duck", 12))
    assert "<me/duck-v12>" in Page(write_report(folder, hostile, VALIDATIONS, SUMMARY).read_text()).text
