"""List the models on offer with their requirements, and switch between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .... import storage
from ....concepts.card import BASE_TITLES
from ....concepts.importers.hub_client import disable_telemetry
from ....concepts.importers.hub_repositories import HUB_TIMEOUT
from ....concepts.strict_safetensors import MAX_FOREIGN_HEADER, parse_head_layout
from ....display.units import GB
from ....errors import UserError, printable
from ....models.loading import BUILT_IN
from ....models.loading.diffusers_folder import missing_file
from ....models.loading.hub_cache import HUB_ID, SHORT_NAMES, cached_folder, download_folder, files_to_fetch
from ....models.model_info import ModelInfo
from .. import App
from .hardware import MODEL_SIZES, Hardware, check_fit, training_memory_text

TITLES = {
    BUILT_IN: "Built in: small and fast, toy-like images",
    "sd15": "Stable Diffusion 1.5",
    "sd21": "Stable Diffusion 2.1",
    "sdxl": "Stable Diffusion XL",
}
_DOWNLOADS = {"sd15": 2.8, "sd21": 2.6, "sdxl": 7.0}  # GB: what `files_to_fetch` selects of each
_MAX_MODELS = 200  # files and folders of --bases that are listed
_MIN_MODEL_BYTES = 100_000_000  # bytes: no Stable Diffusion checkpoint is smaller
FIXED_BASE = "Whoever started this app chose the model; all users share it."


@dataclass(frozen=True)
class ModelChoice:
    """A model on offer. name: what it is chosen by; download_gb: GB to download first; fits: whether this machine can
    generate with it, None if unknown; requirements: sentences on disk and memory; path: what is loaded for it."""

    name: str
    title: str
    download_gb: float
    fits: bool | None
    requirements: tuple[str, ...]
    path: str = ""


@dataclass(frozen=True)
class ModelDownload:
    """What has to be downloaded of a model. folder: where the bytes arrive."""

    name: str
    gigabytes: float
    folder: Path

    @property
    def question(self) -> str:
        """What to ask before it is downloaded."""
        return (
            f"{printable(self.name)} is not on this machine. "
            f"Download {self.gigabytes:.1f} GB from the Hugging Face Hub?"
        )


def models_page(app: App) -> dict[str, Any]:
    """Return what the Models tab shows: {facts, reproducing: of the loaded model, machine, models: those on offer,
    fixed: why nobody can switch, or ""}."""
    return {
        "facts": model_facts(app.generation.base),
        "reproducing": [("Fingerprint (SHA-256)", app.generation.base.version)],
        "machine": Hardware.detect().describe(),
        "fixed": FIXED_BASE if app.fixed_base else "",
        "models": [
            {
                "name": model.name,
                "title": model.title,
                "download": model.download_gb,
                "fits": model.fits,
                "requirements": list(model.requirements),
                "is_loaded": app.generation.base.name in (model.name, model.path),
            }
            for model in list_models(app)
        ],
    }


def model_facts(facts: ModelInfo) -> list[tuple[str, str]]:
    """Return the facts of the loaded model as (name, text)."""
    place = "GPU" if facts.device == "cuda" else "CPU"
    return [
        ("Model", facts.title),
        ("Architecture", BASE_TITLES[facts.kind]),
        ("Image size", f"{facts.resolution} x {facts.resolution} pixels"),
        ("Parameters", f"{facts.parameters / 1e6:,.0f} million in {facts.precision}"),
        ("Device", place),
        ("Scheduler", facts.sampler),
        ("Guidance scale", f"{facts.guidance:g}"),
        ("Safety checker", facts.safety),
    ]


def list_models(app: App) -> list[ModelChoice]:
    """List the built-in model, those with short names, and those in the folder given with --bases."""
    machine = Hardware.detect()
    built_in = ModelChoice(
        BUILT_IN,
        TITLES[BUILT_IN],
        0.0,
        True,
        ("On this machine.", "Generates in seconds and trains in minutes, even on a CPU."),
    )
    return [built_in, *(_known_model(name, machine) for name in MODEL_SIZES), *_models_in_folder(app.bases)]


def find_download(app: App, name: object) -> ModelDownload | None:
    """Return what has to be downloaded before a model can be loaded; None if it is on this machine already.

    Raises UserError if the name cannot be a model, may not be chosen here, or needs more disk than is free.
    """
    name = check_name(app, name)
    if name not in MODEL_SIZES and not HUB_ID.fullmatch(name):
        return None
    hub_id = SHORT_NAMES.get(name, name)
    if cached_folder(hub_id, None, missing_file):
        return None
    size, free = _DOWNLOADS.get(name) or _download_size(hub_id), Hardware.detect().disk / GB
    if size > free:
        raise UserError(
            f"{printable(name)} takes {size:.1f} GB, and {free:.1f} GB of disk are free.", "Free some disk space first."
        )
    return ModelDownload(name, size, download_folder(hub_id))


def switch_model(app: App, name: object, agreed: object = False) -> str:
    """Load another model once no job is half done; return its description. agreed: to a download, if one is needed.

    Raises UserError if it cannot be loaded; the next job then uses the former one.
    """
    if agreed is not True and (download := find_download(app, name)):
        raise UserError(download.question, "Nothing was downloaded.")
    return app.generation.switch_base(_model_path(app, check_name(app, name)))


def check_name(app: App, name: object) -> str:
    """Return the name if it is on offer or a Hub id, never a path that a page sent. Raises UserError."""
    if app.fixed_base:
        raise UserError(FIXED_BASE)
    if not isinstance(name, str) or not name.strip():
        raise UserError("No model is selected.", "Choose one, or enter a Hub id.")
    name = name.strip()
    if name in TITLES or name in dict(_model_paths(app.bases)):
        return name
    if not HUB_ID.fullmatch(name) or len(name) > 100 or ".." in name or _is_local(name):
        raise UserError(f"No model named {printable(name)}.", "Write a Hub id as owner/name.")
    return name


def _is_local(name: str) -> bool:
    """Return whether loading this name would read a file or folder of this machine."""
    with suppress(OSError, ValueError):
        return Path(name).exists() or name.lower().endswith((".safetensors", ".gguf", ".onnx", ".ckpt", ".pt", ".bin"))
    return True


def _model_path(app: App, name: str) -> str:
    return str(dict(_model_paths(app.bases)).get(name, name))


def _known_model(name: str, machine: Hardware) -> ModelChoice:
    size, cached = MODEL_SIZES[name], bool(cached_folder(SHORT_NAMES[name], None, missing_file))
    fits, fit_text = check_fit(size, machine)
    fetch = 0.0 if cached else _DOWNLOADS[name]
    disk = "On this machine." if cached else f"{fetch:.1f} GB to download."
    if not cached and fetch > machine.disk / GB:
        fits, disk = False, f"{disk[:-1]}, {machine.disk / GB:.1f} GB of disk free: too little."
    return ModelChoice(
        name,
        f"{TITLES[name]}, {size.side} x {size.side}",
        fetch,
        fits,
        (disk, fit_text, training_memory_text(size, machine)),
        SHORT_NAMES[name],
    )


def _models_in_folder(folder: Path | None) -> list[ModelChoice]:
    return [
        ModelChoice(name, name, 0.0, None, ("On this machine, in the folder of models.",), str(path))
        for name, path in _model_paths(folder)
    ]


def _model_paths(folder: Path | None) -> list[tuple[str, Path]]:
    """Find models, by their content, in the folder and its subfolders: (name, path)."""
    if folder is None:
        return []
    models = ((str(path.relative_to(folder)), path) for path in _candidates(folder))
    return sorted((printable(name, 200), path) for name, path in models)[:_MAX_MODELS]


def _candidates(folder: Path) -> Iterator[Path]:
    for path in _scan(folder):
        if path.is_dir() and not (path / "model_index.json").exists():
            yield from (subpath for subpath in _scan(path) if _is_model(subpath))
        elif _is_model(path):
            yield path


def _scan(folder: Path) -> list[Path]:
    try:
        return [
            path for _, path in zip(range(_MAX_MODELS), sorted(folder.iterdir()), strict=False) if path.name[0] != "."
        ]
    except OSError:
        return []


def _is_model(place: Path) -> bool:
    if place.is_dir():
        return (place / "model_index.json").is_file() and not missing_file(place)
    if place.suffix.lower() != ".safetensors":
        return False
    try:
        head, size = storage.read_head(place, 8)
        head, size = storage.read_head(place, 8 + min(int.from_bytes(head, "little"), MAX_FOREIGN_HEADER))
        names = parse_head_layout(head, size, place.name, MAX_FOREIGN_HEADER).tensors
    except UserError:
        return False
    return size > _MIN_MODEL_BYTES and any(name.startswith("model.diffusion_model.") for name in names)


def _download_size(hub_id: str) -> float:
    """Return the GB to download. Raises UserError if the Hub does not answer or has no such model."""
    from huggingface_hub import HfApi

    disable_telemetry()
    try:
        model = HfApi().model_info(hub_id, files_metadata=True, timeout=HUB_TIMEOUT)
        sizes = {file.rfilename: file.size or 0 for file in model.siblings or ()}
    except Exception as error:  # the Hub client raises its own errors, httpx's and OSError
        unavailable = "NotFound" in type(error).__name__ or "Gated" in type(error).__name__
        why = "The Hub has no such model, or it is gated" if unavailable else "The Hub cannot be reached"
        raise UserError(f"{why}: {printable(hub_id)}.", "Check its name on huggingface.co.") from None
    if "model_index.json" not in sizes:
        raise UserError(f"{printable(hub_id)} is not a model in diffusers' layout.", "It has no model_index.json.")
    return sum(sizes[name] for name in files_to_fetch(sizes)) / GB
