"""How each format is damaged, and how the package reads it: each reader ends, or raises UserError."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sdpersonal.errors import UserError

from . import mutations, samples
from .mutations import spoil_bytes, spoil_document, spoil_pickle, spoil_png, spoil_safetensors

Make = Callable[[random.Random], tuple[str, bytes]]
Read = Callable[[str, bytes, Path], object]


@dataclass(frozen=True)
class Format:
    """A format. make: returns a damaged file and its name in its folder; read: reads (name, data) with a folder of its
    own to write to; files: what its folder holds at the start, by path; share: its part of all mutations."""

    name: str
    make: Make
    read: Read
    share: int
    files: samples.Folder


def all_formats() -> list[Format]:
    """Return every format; the samples are made anew, which takes seconds."""
    return [
        _concepts(),
        _pickles(),
        _refused_files(),
        _library(),
        _concept_folders(),
        _images(),
        _recipes(),
        _photos(),
        _captions(),
        _wildcards(),
        _checkpoints(),
        _runs(),
        _image_facts(),
        _prompts(),
        _password_files(),
        _training_lists(),
    ]


# --- concepts ---------------------------------------------------------------------------------------------------------


def _read_concept(name: str, data: bytes, folder: Path) -> None:
    from sdpersonal.concepts.concept import Concept
    from sdpersonal.concepts.concept_file import concept_to_bytes
    from sdpersonal.concepts.importers import read_any

    concept = read_any(data, "x\x1b[31m.safetensors")
    assert isinstance(concept, Concept)
    if len(data) < 100_000:
        concept_to_bytes(
            concept if concept.token.version else replace(concept, token=replace(concept.token, version=1))
        )


def _spoil_concept(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    structured = rng.random() < 0.7
    if structured and data.startswith(mutations.PNG_SIGNATURE):
        return spoil_png(rng, data, others)
    if structured and data[8:9] == b"{":
        return spoil_safetensors(rng, data)
    return spoil_bytes(rng, data, others)


def _concepts() -> Format:
    files = [*samples.concept_files(), *samples.other_files(), *samples.harmful_files()]
    return Format("concept", lambda rng: ("", _spoil_concept(rng, rng.choice(files), files)), _read_concept, 30, {})


def _pickles() -> Format:
    files = [*samples.concept_files(), *samples.other_files(), *samples.harmful_files()]
    files = [data for data in files if mutations._programs(data)]
    return Format("pickle", lambda rng: ("", spoil_pickle(rng, rng.choice(files), files)), _read_concept, 20, {})


def _refused_files() -> Format:
    """Files that nothing can be read from; they are made by hand only."""

    def make(rng: random.Random) -> tuple[str, bytes]:
        raise NotImplementedError("its share of the mutations is 0")

    return Format("refused", make, _refuse, 0, {})


def _refuse(name: str, data: bytes, folder: Path) -> None:
    _read_concept(name, data, folder)
    raise AssertionError("it was read, not refused")


def _library() -> Format:
    from sdpersonal.concepts.concept_file import concept_to_bytes

    first, other = (concept_to_bytes(samples.concept(token)) for token in ("<me/duck-v1>", "<me/cat-v1>"))
    small = concept_to_bytes(samples.embedding("<me/duck-v1>"))
    names = ["me/duck-v1.safetensors"] * 9 + ["me/duck-v\udcff.safetensors", "me/\udcff-v1.safetensors"]

    def make(rng: random.Random) -> tuple[str, bytes]:
        data = rng.choice((first, small))
        spoiled = spoil_safetensors(rng, data) if rng.random() < 0.85 else spoil_bytes(rng, data, [other])
        return rng.choice(names[:9] if rng.random() < 0.9 else names), spoiled

    return Format("library", make, _read_library, 7, {"me/cat-v1.safetensors": other})


def _read_library(name: str, data: bytes, folder: Path) -> None:
    """A listing never ends at a damaged file, and what it says can be printed, written as JSON and verified."""
    from sdpersonal.concepts.library import Library

    library = Library(folder)
    entries = library.entries()
    whole = [str(entry.token) for entry in entries if not entry.damaged]
    assert "<me/cat-v1>" in whole, "a damaged file hides another concept"
    for entry in entries:
        json.dumps(entry.as_json()).encode()
        assert entry.damaged is None or sentence(entry.damaged)
    assert len(library.verify()) <= len(entries) - 1
    library.misplaced_files()
    assert "<me/duck>" not in library or library.history("<me/duck>")


def _concept_folders() -> Format:
    folders = samples.concept_folders()
    files = {f"{number}/{name}": data for number, folder in enumerate(folders) for name, data in folder.items()}
    names = list(files)
    pool = list(files.values())

    def make(rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice(names)
        data = files[name]
        if name.endswith((".json", ".md", ".txt")):
            return name, spoil_document(rng, data)
        return name, _spoil_concept(rng, data, pool)

    return Format("folder", make, _read_folder, 6, files)


def _read_folder(name: str, data: bytes, folder: Path) -> None:
    from sdpersonal.concepts.importers.read_folders import read_folder

    read_folder(folder / name.partition("/")[0])


# --- images -----------------------------------------------------------------------------------------------------------


def _images() -> Format:
    from image_metadata.test_foreign_images import SEEDS

    def make(rng: random.Random) -> tuple[str, bytes]:
        data = rng.choice(SEEDS)
        return "", (spoil_png(rng, data, SEEDS) if rng.random() < 0.7 else spoil_bytes(rng, data, SEEDS))

    return Format("image", make, _read_image, 15, {})


def _read_image(name: str, data: bytes, folder: Path) -> None:
    from sdpersonal.image_metadata import Foreign, Recipe, read_recipe

    result = read_recipe(data, "x.png")
    assert isinstance(result, Foreign | Recipe)
    assert isinstance(result, Recipe) or result.refusal or result.fields["prompt"]


def _recipes() -> Format:
    from PIL import Image

    from sdpersonal.image_metadata.write_png import RECIPE_KEY

    data = samples.pictures_with.png(Image.new("RGB", (16, 16)))
    sha = "0" * 64
    part = {"token": "<me/duck-v1>", "sha256": sha, "strength": 1.0, "vectors": True, "lora": True, "words": ""}
    part["presence"] = {"share": 0.5, "box": [0.1, 0.1, 0.5, 0.5], "overlap": 0.1, "heat": "0f" * 32}
    recipe = {"sdpersonal": "0.1", "prompt": "a <me/duck-v1>", "template": "", "negative": "", "seed": 1, "steps": 20}
    recipe |= {"guidance": 7.0, "size": "128x128", "base": {"name": "tiny", "kind": "tiny", "sha256": sha}}
    recipe |= {"concepts": [part], "sampler": "DDIM", "scheduler": "", "batch": 1, "place": 0, "hires_scale": 1.0}
    recipe |= {"strength": 0.6, "init_image": "", "mask": "", "variation_strength": None, "clip_skip": 1}
    text = json.dumps(recipe)
    chunks = mutations.png_chunks(data)

    def make(rng: random.Random) -> tuple[str, bytes]:
        spoiled = mutations.encoded(mutations.spoil_json(rng, text), rng)
        return "", mutations.png_of([chunks[0], (b"iTXt", RECIPE_KEY.encode() + b"\0\0\0\0\0" + spoiled), *chunks[1:]])

    return Format("recipe", make, _read_image, 6, {})


def _image_facts() -> Format:
    facts = {"v": 2, "name": "00001-abcdef12.png", "prompt": "a", "negative": "", "facts": [["Seed", "1"]]}
    lines = "".join(json.dumps(facts | {"width": 8, "height": 8, "name": name}) + "\n" for name in ("a.png", "b.png"))

    def make(rng: random.Random) -> tuple[str, bytes]:
        return ".facts.jsonl", spoil_document(rng, lines.encode())

    return Format("facts", make, _read_facts, 2, {})


def _read_facts(name: str, data: bytes, folder: Path) -> None:
    from sdpersonal.outputs.facts import load_facts

    assert load_facts(folder, ["a.png", "b.png"]).keys() == {"a.png", "b.png"}


def _photos() -> Format:
    files = samples.photos()

    def make(rng: random.Random) -> tuple[str, bytes]:
        data = rng.choice(files)
        return "", (spoil_png(rng, data, files) if rng.random() < 0.4 else spoil_bytes(rng, data, files))

    return Format("photo", make, _read_photo, 4, {})


def _read_photo(name: str, data: bytes, folder: Path) -> None:
    from sdpersonal.photos.decode import UnusablePhoto, decode

    try:
        pixels, notes = decode(data, 32, min_side=16)
    except UnusablePhoto as reason:
        raise UserError(f"x.jpg {reason}.") from None
    assert min(pixels.shape[:2]) == 32 and all(sentence(note) for note in notes)


# --- texts ------------------------------------------------------------------------------------------------------------


def _captions() -> Format:
    files = samples.caption_folder()
    names = list(files)

    def make(rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice(names)
        return name, spoil_document(rng, files[name])

    return Format("caption", make, lambda name, data, folder: _read_captions(files | {name: data}), 4, {})


def _read_captions(files: samples.Folder) -> None:
    from sdpersonal.photos.captions import Captions

    photos = [f"{letter}.jpg" for letter in "abcdef"]
    for left_out in ("metadata.csv", "metadata.jsonl"):
        names = [name for name in files if name != left_out]
        captions = Captions([*photos, *names], files.__getitem__)
        for photo in photos:
            caption = captions.of(photo)
            assert all(line.count("{}") == 1 for line in caption.lines)
            assert all(note.isprintable() for note in caption.notes)
        assert captions.table_problem(photos).isprintable()


def _wildcards() -> Format:
    files = samples.wildcard_folder()
    names = list(files)

    def make(rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice(names)
        return name, spoil_document(rng, files[name])

    return Format("wildcard", make, _read_wildcards, 3, files)


def _read_wildcards(name: str, data: bytes, folder: Path) -> None:
    from sdpersonal.prompts.alternatives import count_prompts
    from sdpersonal.prompts.wildcards import Wildcards

    wildcards = Wildcards(folder)
    for known in wildcards.names()[:20]:
        try:
            wildcards.lines(known)
        except UserError as error:
            assert sentence(str(error))
    count_prompts("a __colour__ {__cats__|__shape__}", wildcards)


def _prompts() -> Format:
    texts = (
        "a photo of <me/duck-v1:0.8> in the style of (<me/ink>:1.2), [not] {red|2::blue|__colour__} hat",
        "<me/duck:0.5:in=0:mid=0.2:out=1@0-0.5> BREAK a <a+b:0.3> \\(x\\) ((y)) {2$$a|b|c} ${v=a}",
        "{1-2$$, $$a|b} <me/cat:0.1-0.9>, x:1.1, <s0><s1>",
    )

    def make(rng: random.Random) -> tuple[str, bytes]:
        text = rng.choice(texts)
        for _ in range(rng.choice((1, 2, 4))):
            text = mutations.spoil_text(rng, text)
        return "", text.encode("utf-8", "surrogatepass")

    return Format("prompt", make, _read_prompt, 6, {})


def _read_prompt(name: str, data: bytes, folder: Path) -> None:
    from sdpersonal.config import GenerateRequest
    from sdpersonal.prompts.alternatives import count_prompts
    from sdpersonal.prompts.parser import parse
    from sdpersonal.prompts.wildcards import Wildcards

    text = data.decode("utf-8", "surrogatepass")
    request = GenerateRequest(prompt=text)
    count_prompts(request.prompt, Wildcards(None))
    parse(request.prompt)


def _password_files() -> Format:
    text = b"# users\nann:correct horse\nbob:battery staple\n\neve:12345678\n"

    def make(rng: random.Random) -> tuple[str, bytes]:
        return "passwords", spoil_document(rng, text)

    return Format("passwords", make, _read_passwords, 2, {})


def _read_passwords(name: str, data: bytes, folder: Path) -> None:
    from sdpersonal.app.server.auth import _read_passwords

    os.chmod(folder / name, 0o600)
    passwords = _read_passwords(folder / name)
    assert passwords and all(passwords.values())


def _training_lists() -> Format:
    rows = [{"instance_prompt": "a photo of sks dog", "class_prompt": "a dog", "instance_data_dir": "dog"}] * 2
    text = json.dumps(rows).encode()
    return Format("list", lambda rng: ("list.json", spoil_document(rng, text)), _read_list, 2, {})


def _read_list(name: str, data: bytes, folder: Path) -> None:
    from sdpersonal.cli.batch_training import _to_argv_items, read_entries

    for entry in read_entries(folder / name):
        _to_argv_items(entry)


# --- trainings --------------------------------------------------------------------------------------------------------


def _runs() -> Format:
    files = samples.run_folder()
    names = list(files)
    run = {f"runs/a/{name}": data for name, data in files.items() if name != "result.json"}
    run |= {f"runs/b/{name}": data for name, data in files.items()}
    run |= {f"runs/c/{name}": data for name, data in files.items() if name != "result.json"}
    run["runs/pace.json"] = b'{"tiny dreambooth own": {"step": 0.1, "held": 100000000.0}}'

    def make(rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice((*names, "pace.json"))
        data = spoil_document(rng, files.get(name, run["runs/pace.json"]))
        return ("runs/pace.json" if name == "pace.json" else f"runs/{rng.choice('ab')}/{name}"), data

    return Format("run", make, _read_runs, 2, run)


def _read_runs(name: str, data: bytes, folder: Path) -> None:
    """The app starts, and shows what it can of every run."""
    from sdpersonal.app.backend.train.run_folders import list_runs
    from sdpersonal.app.backend.train.run_status import RunStatusReader
    from sdpersonal.app.backend.train.run_view import run_details, run_summaries
    from sdpersonal.app.backend.train.trainer_process import settings_to_argv
    from sdpersonal.app.backend.train.training_service import TrainingService
    from sdpersonal.app.backend.workspace import Workspace
    from sdpersonal.concepts.library import Library
    from sdpersonal.config import settings_from_json
    from sdpersonal.training.run_dir import latest_step, read_json

    space = Workspace(Library(folder / "concepts"), folder / "outputs", folder / "runs", folder / "served")
    service = TrainingService(space)
    json.dumps(run_summaries(service.runs(None), service)).encode()
    reader = RunStatusReader()
    for run in list_runs(folder / "runs"):
        if status := reader.read(run):
            json.dumps([run_details(status, service), *run_summaries([status], service)]).encode()
            latest_step(run)
            service.measured_costs.add(status.settings, status.cost)
    service.measured_costs.read()
    if name.endswith("settings.json") and (settings := read_json(folder / name)):
        settings_to_argv(settings_from_json(settings))


def _train_state():
    """Return parameters and an optimizer as small as they can be, with the state of one step."""
    import torch

    from sdpersonal.training.checkpoint import CheckpointState

    parameters = {name: torch.nn.Parameter(torch.ones(2, 3)) for name in ("rows.clip_l", "layer.down")}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    return CheckpointState(parameters, optimizer, {name: torch.ones(2, 3) for name in parameters})


def _checkpoints() -> Format:
    import tempfile

    from sdpersonal.training.checkpoint import save_checkpoint

    state = _train_state()
    state.optimizer.step()
    with tempfile.TemporaryDirectory() as place:
        save_checkpoint(Path(place), 2, state, {"token": "<me/duck>", "lr": 0.1, "prior": "none"})
        step = Path(place) / "step-000002"
        tensors, manifest = (step / "state.safetensors").read_bytes(), (step / "manifest.json").read_bytes()
    folder = "run/step-000002/"
    files = {folder + "state.safetensors": tensors, folder + "manifest.json": manifest}

    def make(rng: random.Random) -> tuple[str, bytes]:
        if rng.random() < 0.6:
            return folder + "manifest.json", spoil_document(rng, manifest)
        # Its sum is made anew by the reader below, as somebody would who changes a checkpoint on purpose.
        return folder + "state.safetensors", spoil_safetensors(rng, tensors)

    return Format("checkpoint", make, _read_checkpoint, 4, files)


def _read_checkpoint(name: str, data: bytes, folder: Path) -> None:
    """A checkpoint is refused, or loaded so that the next step can be made."""
    from sdpersonal.storage import sha256
    from sdpersonal.training.checkpoint import latest_identity, load_checkpoint

    manifest = folder / "run/step-000002/manifest.json"
    good = manifest.read_bytes()
    if name.endswith(".safetensors"):
        changed = json.loads(good) | {"sha256": {"state.safetensors": sha256(data)}}
        manifest.write_text(json.dumps(changed))
    try:
        latest_identity(folder / "run")
        state = _train_state()
        point = load_checkpoint(folder / "run", state, {"token": "<me/duck>", "lr": 0.1, "prior": "none"})
        assert point.step == 2, f"it goes on from step {point.step} of a checkpoint of step 2"
        assert sentence(point.note)
        state.optimizer.step()
    except UserError as error:
        if not error.message.startswith("The run in this folder was started with other settings:\n  "):
            raise  # that one has a line for each setting
    finally:
        if name.endswith(".safetensors"):
            manifest.write_bytes(good)


def sentence(text: str) -> bool:
    """Return whether a message may be shown: one or two lines, not too long, without control characters."""
    return text.count("\n") <= 1 and len(text) < 600 and text.replace("\n", "").isprintable()
