"""The photo doctor: every fault is found in sets that have it, and good sets pass in silence."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from sdpersonal.cli.main import main
from sdpersonal.photos.checks import Report, check, contact_sheet
from sdpersonal.photos.checks.across_photos import edge_histogram
from sdpersonal.photos.checks.clip_checks import NOUNS, silhouette
from sdpersonal.photos.checks.each_photo import BLUR_THRESHOLD, exposure, sharpness
from sdpersonal.photos.checks.findings import make_finding
from sdpersonal.photos.checks.run_checks import _describe_groups
from sdpersonal.photos.loading import load_photos
from support import bad_photos as bad

SAMPLES = ROOT / "examples" / "photos"
# What is true of the real sets, by eye: an undergrowth, an orange wall behind four of five, white paper.
TRUE = {"cat": ["one-background"], "dog6": ["one-background"], "red_cartoon": ["one-background"]}


@pytest.fixture(scope="session")
def clip():
    from sdpersonal.evaluation import Scorer

    return Scorer()


@pytest.fixture(scope="session")
def teddy() -> list[Image.Image]:
    return bad.load_squares(SAMPLES / "teddy-bear")


def names(images, kind="object", **options) -> list[str]:
    return [item.name for item in check(bad.as_set(images), kind, **options).findings]


def photos_with(name, images, **options) -> tuple[str, ...]:
    result = check(bad.as_set(images), "object", **options).findings
    return next((item.photos for item in result if item.name == name), ())


@pytest.mark.parametrize("side", [128, 512])
def test_the_sample_photos_have_no_findings(side, clip):
    assert check(load_photos(SAMPLES / "teddy-bear", side), "object", "bear", clip).findings == ()
    assert check(load_photos(SAMPLES / "cyanotype", side), "style").findings == ()


@pytest.mark.parametrize("seed", range(4))
def test_synthetic_photos_with_varied_backgrounds_have_no_findings(seed):
    assert names(bad.in_many_places(seed=seed)) == []


def test_real_photo_sets_have_no_false_findings(shared_photos, clip):
    lines = (shared_photos / "prompts_and_classes.txt").read_text().split("Prompts")[0].splitlines()
    classes = dict(line.split(",") for line in lines if "," in line)
    result = {}
    for folder in sorted(path for path in shared_photos.iterdir() if path.is_dir()):
        verdict = check(load_photos(folder, 512), "object", classes[folder.name], clip)
        result[folder.name] = [item.name for item in verdict.findings]
    assert len(result) == 15
    assert {name: all_ for name, all_ in result.items() if all_} == TRUE


@pytest.mark.parametrize("subject", ["can", "backpack_dog", "fancy_boot"])
def test_faults_of_real_photos_are_detected(shared_photos, subject):
    images = bad.load_squares(shared_photos / subject)
    everyone = {f"{i:02}.jpg" for i in range(1, len(images) + 1)}
    assert set(photos_with("near-duplicates", bad.copies(images[0]))) == {f"{i:02}.jpg" for i in range(1, 6)}
    for fault in ("out of focus, 4 px", "shaken, 21 px", "4 stops too dark", "a quarter of the contrast"):
        name, spoil = bad.ONE_BY_ONE[fault]
        assert set(photos_with(name, [spoil(image) for image in images])) == everyone, fault


@pytest.mark.parametrize("fault", [fault for fault in bad.ONE_BY_ONE if "too light" not in fault])
@pytest.mark.parametrize("seed", range(3))
def test_a_single_spoiled_photo_is_detected(fault, seed):
    name, spoil = bad.ONE_BY_ONE[fault]
    images = bad.in_many_places(seed=seed)
    images[3] = spoil(images[3])
    result = check(bad.as_set(images), "object").findings
    assert [(item.name, item.photos) for item in result] == [(name, ("04.jpg",))]


def test_overexposed_photos_are_detected_as_burnt_out():
    """On a dark wall two stops more do no harm: then nothing is said."""
    result = [
        names([*bad.in_many_places(4, seed), bad.brightened(bad.made_photo(seed, 9, seed), 3)]) for seed in range(6)
    ]
    assert result.count(["burnt-out"]) >= 3
    assert all(name == "burnt-out" for item in result for name in item)


def test_five_copies_of_a_photo_are_near_duplicates(teddy):
    for images in (bad.copies(teddy[1]), bad.copies(bad.made_photo(5, 0, 0))):
        assert names(images) == ["near-duplicates"]
        assert len(photos_with("near-duplicates", images)) == 5


@pytest.mark.parametrize("share", [0.95, 0.8, 0.7])
def test_a_cropped_copy_is_reported_with_its_original(teddy, share):
    images = [*teddy, bad.recompressed(bad.cut(teddy[3], share, 0.2, 0.7))]
    assert photos_with("near-duplicates", images) == ("04.jpg", "06.jpg")


def test_two_pairs_of_copies_are_two_findings(teddy):
    assert names([*teddy, bad.recompressed(teddy[0]), bad.recompressed(teddy[1])]) == ["near-duplicates"] * 2


def test_plain_colour_images_are_not_near_duplicates():
    plain = [Image.new("RGB", (256, 256), colour) for colour in ("white", "red", "blue", "green")]
    assert "near-duplicates" not in names(plain)


@pytest.mark.parametrize("clockwise", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_sideways_photo_is_detected_among_similar_photos(seed, clockwise):
    images = bad.with_one_turned(bad.in_one_place(seed=seed), 2, clockwise)
    assert photos_with("sideways", images) == ("03.jpg",)
    assert photos_with("sideways", bad.in_one_place(seed=seed)) == ()


@pytest.mark.parametrize("seed", range(4))
def test_photos_with_the_same_background_are_detected(seed):
    assert names(bad.in_one_place(seed=seed)) == ["one-background"]


def test_too_few_and_too_small_photos_are_reported(tmp_path, teddy):
    folder = bad.save_all([teddy[0].resize((300, 300)), teddy[1].resize((300, 300))], tmp_path / "few")
    result = check(load_photos(folder, 512), "object").findings
    assert [item.name for item in result] == ["few", "small"]
    assert "512 pixels, from 300" in result[1].message
    assert [item.name for item in check(load_photos(folder, 256), "object").findings] == ["few"]
    assert names(teddy[:1]) == ["few"]


@pytest.mark.parametrize("side", [128, 512])
def test_photos_of_a_second_subject_are_detected(side, teddy, clip):
    teddies, others = ([image.resize((side, side)) for image in item] for item in (teddy, bad.in_many_places(3, 7)))
    assert photos_with("two-subjects", teddies + others, clip=clip) == ("06.jpg", "07.jpg", "08.jpg")
    assert photos_with("two-subjects", teddies + others) == ()  # nobody looks


def test_real_photos_of_two_subjects_are_detected(shared_photos, clip):
    pairs = [("dog", "teapot"), ("cat", "duck_toy"), ("monster_toy", "vase"), ("red_cartoon", "can")]
    result = [
        bool(
            photos_with(
                "two-subjects", bad.load_squares(shared_photos / a) + bad.load_squares(shared_photos / b), clip=clip
            )
        )
        for a, b in pairs
    ]
    assert sum(result) >= 3  # 84 % of all 105 pairs


TRIALS = ROOT / "tests" / "data" / "trials"
DRAWN = ("owl", "robot", "fox", "helicopter", "teapot", "alarm-clock", "octopus", "lobster")


def drawn(subject, count=5, name="photos"):
    """Photos of a drawn thing, the first before snow, from the bench of trials; or images of its class noun."""
    strip = Image.open(TRIALS / subject / f"{name}.jpg")
    return [strip.crop((128 * i, 0, 128 * (i + 1), 128)) for i in range(count)]


@pytest.mark.parametrize(
    ("counts", "others"), [((1,) * 7, 4), ((4, 1), 1), ((3, 3, 3), 3), ((2, 2, 2), 2), ((1, 1, 1), 1)]
)
def test_any_number_of_different_subjects_is_detected(counts, others, clip):
    images = [image for subject, count in zip(DRAWN, counts, strict=False) for image in drawn(subject, count)]
    assert len(photos_with("two-subjects", images, clip=clip)) >= others


def test_groups_of_different_subjects_are_described_in_a_message():
    assert _describe_groups([(0,), (1,), (2,)]) == "No two of these photos seem to show the same thing."
    assert _describe_groups([(0, 1), (2,)]) == "{} seems to show something else than the rest."
    assert _describe_groups([(0, 1), (2, 3)]) == "{} seem to show something else than the rest."
    assert _describe_groups([(0, 1), (2, 3), (4,)]).startswith("These photos seem to show 3 different things: {}")


@pytest.mark.parametrize("subject", DRAWN)
def test_illustrations_of_the_same_subject_have_no_subject_findings(subject, clip):
    assert photos_with("two-subjects", drawn(subject), clip=clip) == ()
    assert photos_with("photographs", drawn(subject), base_kind="tiny") == ()


def test_photographs_are_distinguished_from_illustrations(shared_photos):
    sets = {path.name: bad.load_squares(path) for path in sorted(shared_photos.iterdir()) if path.is_dir()}
    told = {name for name, images in sets.items() if photos_with("photographs", images, base_kind="tiny")}
    assert told == sets.keys() - {"red_cartoon", "dog6", "vase"}  # the first is drawn, the others are on white
    assert not photos_with("photographs", sets["dog"], base_kind="sd1")


def classes(images, *nouns, clip, kind="object"):
    """The nouns that are called wrong for these images."""
    return [noun for noun in nouns if "wrong-class" in names(images, kind=kind, class_noun=noun, clip=clip)]


def test_a_wrong_class_is_reported_for_objects_that_clip_recognizes(clip):
    """The built-in model's dogs and cherries, the latter for a strawberry."""
    dogs = drawn("fox", 8, "noun")
    assert classes(dogs, "cat", "big Airplane", "crocodile", clip=clip) == ["cat", "big Airplane", "crocodile"]
    assert classes(dogs, "dog", "small dog", "thing nobody knows", "", clip=clip) == []
    assert classes(dogs, "airplane", kind="person", clip=clip) == []


SUITABLE = {
    "owl": "eagle", "robot": "television", "fox": "dog", "helicopter": "airplane", "teapot": "cup of coffee",
    "alarm-clock": "bell", "octopus": "jellyfish", "lobster": "crab", "pineapple": "strawberry", "teddy-bear": "bear",
}  # fmt: skip


def test_suitable_class_nouns_are_not_reported_as_wrong(clip):
    result = {subject: classes(drawn(subject), noun, clip=clip) for subject, noun in SUITABLE.items()}
    assert {subject: nouns for subject, nouns in result.items() if nouns} == {}


def test_known_class_nouns_have_single_spaces():
    assert all(noun == " ".join(noun.split()) for noun in NOUNS) and "face with sunglasses" in NOUNS


def test_real_photos_get_no_wrong_class_finding(shared_photos, clip):
    for subject in ("teapot", "dog", "backpack"):
        images = bad.load_squares(shared_photos / subject)
        assert "wrong-class" not in names(images, class_noun="cat", clip=clip)


def test_style_photos_may_be_dark_and_blurred_but_need_captions(teddy):
    images = [bad.defocused(bad.brightened(image, -4), 6) for image in bad.in_one_place()]
    assert names(images, kind="style") == ["no-captions"]
    assert set(names([*teddy, bad.recompressed(teddy[0])], kind="style")) == {"near-duplicates", "no-captions"}


def test_sharpness_is_measured_in_the_sharpest_part():
    """A step of one pixel has all its height in one difference; a Gaussian of sigma pixels 1 / (sigma sqrt(2 pi))."""
    board = np.kron(np.indices((16, 16)).sum(0) % 2, np.ones((16, 16))) * 200 + 20
    square = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    assert sharpness(square) == pytest.approx(1.0, abs=0.01)
    sigma = 1.5
    softened = np.asarray(bad.defocused(Image.fromarray(square), sigma * 2))
    assert sharpness(softened) == pytest.approx(1 / (sigma * np.sqrt(2 * np.pi)), rel=0.45)
    half = softened.copy()
    half[:, :128] = square[:, :128]
    assert sharpness(softened) < BLUR_THRESHOLD < sharpness(half)
    assert sharpness(np.full((256, 256, 3), 90, np.uint8)) is None


def test_exposure_is_classified_by_the_histogram():
    ramp = np.repeat(np.tile(np.linspace(0, 255, 256), (256, 1))[..., None], 3, axis=2)
    assert exposure(ramp.astype(np.uint8)) is None
    assert exposure((ramp / 4).astype(np.uint8)) == "dark"
    assert exposure((ramp / 5 + 120).astype(np.uint8)) == "washed-out"
    studio = np.full((256, 256, 3), 255, np.uint8)
    studio[64:192, 64:192] = (200, 40, 30)
    assert exposure(studio) is None  # a white wall is no fault
    studio[64:192, 64:192] = (255, 230, 120)
    assert exposure(studio) == "burnt-out"


def test_edge_histograms_rotate_with_the_image():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[::8] = stripes[1::8] = 255
    lying, standing = edge_histogram(stripes), edge_histogram(np.rot90(stripes))
    assert lying @ lying == pytest.approx(1)
    assert lying @ standing < 0.1


def test_the_silhouette_score_matches_rousseeuw():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 1, (5, 2)), rng.normal(4, 1, (4, 2))])
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    second = np.arange(9) > 4
    a = [apart[i, (second == second[i]) & (np.arange(9) != i)].mean() for i in range(9)]
    b = [apart[i, second != second[i]].mean() for i in range(9)]
    assert silhouette(apart, second) == pytest.approx(np.mean([(y - x) / max(x, y) for x, y in zip(a, b, strict=True)]))


def test_file_names_with_braces_are_shown_unchanged():
    message = make_finding("blurred", ["{0}.jpg", "a{}b.jpg"], "{} are blurred.")
    assert message.message == "{0}.jpg and a{}b.jpg are blurred."
    many = make_finding("dark", [f"{i}.jpg" for i in range(9)], "{} are too dark.")
    assert "5.jpg and 3 more" in many.message
    assert len(many.photos) == 9


def test_a_report_is_available_as_text_and_json(teddy):
    verdict = check(bad.as_set([*teddy, bad.defocused(teddy[0], 8)]), "object")
    message = verdict.lines()
    assert message[0].startswith("6 photos, ")
    assert len(message) == 1 + 2 * len(verdict.findings)
    assert json.loads(json.dumps(verdict.as_json()))["findings"][0]["photos"]
    assert Report(5).lines() == ["5 photos: nothing to change."]


def test_the_contact_sheet_shows_every_photo_whole_with_its_square(tmp_path):
    wide = Image.new("RGB", (900, 300), "white")
    wide.paste((200, 0, 0), (0, 0, 300, 300))
    photos = load_photos(bad.save_all([wide, *bad.in_many_places(3)], tmp_path / "set"), 256)
    sheet = np.asarray(contact_sheet(photos, check(photos, "object"))).astype(int)
    outside = (sheet[..., 0] > 60) & (sheet[..., 0] < 120) & (sheet[..., 1] < 20)  # the red end, darkened
    outline = (sheet == (255, 208, 0)).all(-1)
    assert outside.sum() > 2000
    assert outline.sum() > 4 * 300
    assert contact_sheet(photos, Report(4)).size[1] <= sheet.shape[0]


def test_thirty_photos_are_checked_within_seconds():
    photos = bad.as_set([image for seed in range(6) for image in bad.in_many_places(5, seed)])
    began = time.perf_counter()
    check(photos, "object")
    assert time.perf_counter() - began < 30  # 3 on an idle core


def test_the_photos_check_command_writes_a_contact_sheet_outside_the_photos(tmp_path, capsys, monkeypatch):
    folder = bad.save_all([*bad.in_many_places(4), bad.defocused(bad.made_photo(0, 9, 9), 8)], tmp_path / "photos")
    before = sorted(folder.iterdir())
    assert main(["photos", "check", str(folder), "--resolution", "256"]) == 0
    message = capsys.readouterr().out
    assert "blurred: 05.jpg is blurred." in message
    assert Path("photos-check.png").is_file()
    assert main(["photos", "check", str(folder), "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["findings"][0]["name"] == "blurred"
    assert Image.open(output["sheet"]).format == "PNG"
    monkeypatch.chdir(folder)
    assert main(["photos", "check", "."]) == 0  # beside the folder, not in it
    assert (tmp_path / "photos-check.png").is_file()
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("sheet", ["photos/in.png", "sheet.jpg"])
def test_invalid_contact_sheet_paths_are_refused(tmp_path, capsys, sheet):
    folder = bad.save_all(bad.in_many_places(3), tmp_path / "photos")
    assert main(["photos", "check", str(folder), "--sheet", str(tmp_path / sheet)]) == 2
    assert "--sheet" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_without_photos_is_refused(tmp_path, capsys):
    assert main(["photos", "check", str(tmp_path / "nowhere")]) == 2
    assert main(["photos", "check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("error:") == 2
    assert not Path("photos-check.png").exists()
