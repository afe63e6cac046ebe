"""What a run folder holds, as the app and the command line read it: whatever a kill, or somebody else, left there."""

import json

import pytest

from sdpersonal.training import run_dir


def make(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{}")


def test_only_folders_with_a_manifest_are_checkpoints_to_resume_from(tmp_path):
    assert run_dir.latest_step(tmp_path / "missing") is None and not run_dir.has_checkpoint(tmp_path)
    make(tmp_path, "step-000010", "step-000002", "step-1000000", "step-5", "step-00000x", ".step-000099", "step--00003")
    (tmp_path / "step-000040").mkdir()  # being written
    (tmp_path / "step-000050").write_text("a file")
    assert run_dir.checkpoint_steps(tmp_path) == [2, 10, 1_000_000]
    assert list(run_dir.checkpoint_folders(tmp_path)) == [2, 10, 40, 1_000_000]
    assert run_dir.latest_step(tmp_path) == 1_000_000 and run_dir.has_checkpoint(tmp_path)
    assert run_dir.checkpoint_folder(tmp_path, 10) == tmp_path / "step-000010"


def test_validation_images_are_listed_by_step(tmp_path):
    assert run_dir.validation_images(tmp_path) == {}
    for step in (300, 20):
        path = run_dir.validation_image(tmp_path, step)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "trials" / "step-last.png").write_bytes(b"")
    (tmp_path / "trials" / "class-noun.png").write_bytes(b"")
    images = run_dir.validation_images(tmp_path)
    assert list(images) == [20, 300] and images[20].name == "step-000020.png"


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"7", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1'])
def test_text_other_than_a_json_object_is_ignored(tmp_path, text):
    (tmp_path / "result.json").write_bytes(text)
    assert run_dir.read_json(tmp_path / "result.json") == {} and run_dir.parse_object(text) is None


def test_truncated_json_lines_are_ignored(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert run_dir.read_json(path) == {} and run_dir.read_json_lines(path, 100) == []
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n\xff\n{"step": 3')
    assert run_dir.read_json_lines(path, 100) == [{"step": 1}, {"step": 2}]
    assert run_dir.read_json_lines(path, 10) == []  # larger than any file of its kind


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3.0), ("2.5", 2.5), ("true", 0.0), ("null", 0.0), ("NaN", 0.0), ("1" + "0" * 400, 0.0), ("[1]", 0.0)],
)
def test_values_other_than_numbers_are_read_as_zero(text, value):
    assert run_dir.to_number(json.loads(text)) == value
