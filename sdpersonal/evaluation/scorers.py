"""Score images with CLIP (Radford et al. 2021) for their content and, if available, DINO (Caron et al. 2021) for the
identity of the subject, as in the DreamBooth paper (Ruiz et al. 2022, section 4.1).

The built-in base is scored by the small CLIP that ships with it. That CLIP was trained only on this base's world of
subjects, so its scores are meaningful only there, and only relative to a floor and a ceiling: other subjects, and real
photos of the same subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import UserError, printable
from ..models.loading import built_in_folder, silence_libraries
from ..models.loading.hub_cache import cached_snapshot
from ..models.oom import drop_traceback, is_out_of_memory
from .part_matching import pairwise_similarity

OPENAI, CONVERTED_REVISION = "openai/clip-vit-base-patch32", "refs/pr/15"  # its main branch has only a pickle
CLIPS = ((OPENAI, None), (OPENAI, CONVERTED_REVISION), ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None))  # and revision
DINOS = (("facebook/dino-vits16", None),)
FETCH_COMMAND = (  # downloads a CLIP
    f"hf download {OPENAI} --revision {CONVERTED_REVISION} --include '*.json' --include model.safetensors"
)
_REQUIRED_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_BATCH_SIZE = 32  # images
SUBJECT_DEPTH = 1 / 2  # of the vision transformer, for parts of subjects; on the bench of trials the best of all layers
PART_SCALE = 2  # times the resolution that a vision transformer was trained on, for parts half as large
_PART_BATCH_SIZE = 8  # images: they have four times the patches
_THREADS = 8

Box = tuple[float, float, float, float]  # left, top, right and bottom


class Scorer:
    """A CLIP with both encoders, and optionally a DINO. Raises UserError if their files are missing.

    logit_scale: the factor by which CLIP multiplies its cosines before the softmax. knows_photographs: whether it was
    trained on photographs; the built-in CLIP has seen drawings only.
    """

    def __init__(self, clip: Path | None = None, dino: Path | None = None):
        # These processors do not need torchvision, so their results do not depend on whether that is installed.
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, ViTImageProcessorPil, ViTModel

        clip = clip or built_in_folder() / "judge"
        if not clip.is_dir():
            raise UserError(f"The scoring model is missing: {clip} does not exist.", "Install sdpersonal again.")
        self._clip: CLIPModel = _load(CLIPModel, clip)
        self._vision: nn.Module = self._clip.vision_model
        self._processor = _load(CLIPImageProcessorPil, clip)
        self._tokenizer = _load(CLIPTokenizer, clip)
        self._dino: ViTModel | None = _load(ViTModel, dino, add_pooling_layer=False) if dino else None
        self._dino_processor = _load(ViTImageProcessorPil, dino) if dino else None
        self.knows_photographs = clip != built_in_folder() / "judge"
        self.name = "CLIP ViT-B/32" if self.knows_photographs else "the built-in CLIP"
        self.name += " and DINO ViT-S/16" if dino else ""
        self._device = torch.device("cpu")
        self.logit_scale = float(self._clip.logit_scale.detach().exp())

    def use_device(self, device: torch.device) -> None:
        """Compute on this device from now on, as far as its memory suffices."""
        self._device = device
        if device.type == "cuda":
            for tensor in (tensor for model in (self._clip, self._dino) if model for tensor in _tensors(model)):
                tensor.data = tensor.data.pin_memory()

    def likeness(self, images: Sequence[Image.Image], photos: Sequence[Image.Image]) -> float:
        """Return CLIP-I: the mean cosine over all pairs of image and photo, -1 to 1."""
        return float((self.image_features(images) @ self.image_features(photos).T).mean())

    def fidelity(self, images: Sequence[Image.Image], text: str) -> float:
        """Return CLIP-T: the mean cosine between the images and a text that describes them, -1 to 1."""
        return float((self.image_features(images) @ self.text_features([text]).T).mean())

    def best_text(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[int]:
        """Return for each image the index of the text that describes it best."""
        return (self.image_features(images) @ self.text_features(texts).T).argmax(axis=1).tolist()

    def image_features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return CLIP's features of images, (N, d) fp32, normalised."""
        return self._features(images, self._clip, self._processor, lambda pixels: self._clip.get_image_features(pixels))

    def subject_features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return features that distinguish subjects of the same class, (N, d): DINO's, which was not trained to map all
        dogs to one word, or else CLIP's."""
        dino = self._dino
        if dino is None:
            return self.image_features(images)
        return self._features(images, dino, self._dino_processor, lambda pixels: dino(pixels).last_hidden_state[:, 0])

    def part_features(self, images: Sequence[Image.Image], depth: float) -> np.ndarray:
        """Return features of the parts of images: the hidden states of DINO's patches, or else of CLIP's, at PART_SCALE
        times their usual resolution.

        Args:
            depth: of the hidden state, 0 to 1 as a share of the layers.

        Returns:
            (N, rows * columns, d) fp32, not normalised.
        """
        model, processor = (self._dino, self._dino_processor) if self._dino else (self._vision, self._processor)
        config: Any = model.config
        side = PART_SCALE * config.image_size
        size = {"size": {"height": side, "width": side}}
        if model is self._vision:
            size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}

        def encode(pixels: Tensor) -> Tensor:
            return _hidden_state(model, pixels, depth)[:, 1:]  # the first is the class token

        return self._features(images, model, processor, encode, size)

    def subject_parts(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return the features by which `subject_similarity` compares images, (N, parts, d)."""
        return self.part_features(images, SUBJECT_DEPTH)

    def subject_similarity(self, parts: np.ndarray) -> np.ndarray:
        """Return how alike the subjects of each two images are, part by part, -1 to 1, (N, N)."""
        return pairwise_similarity(parts)

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Return CLIP's features of texts, (N, d) fp32, normalised."""
        length = self._clip.text_model.config.max_position_embeddings
        ids = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
            split_special_tokens=True,  # special tokens in a caption are ordinary text
        )
        return self._compute(self._clip, lambda device: _normalize(self._clip.get_text_features(**ids.to(device))))

    def _features(
        self,
        images: Sequence[Image.Image],
        model: nn.Module,
        processor: Any,
        encode: Callable[[Tensor], Any],
        size: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Return the normalised features; those of parts, for which a size is given, as they are."""

        def compute(device: torch.device) -> np.ndarray:
            features, batch = [], _PART_BATCH_SIZE if size else _BATCH_SIZE
            for first in range(0, len(images), batch):
                pixels = _preprocess(processor, images[first : first + batch], device.type == "cuda", size or {})
                encoded = encode(pixels.to(device))
                features.append(encoded.float().cpu().numpy() if size else _normalize(encoded))
            return np.concatenate(features)

        return self._compute(model, compute)

    @torch.no_grad()
    def _compute(self, model: nn.Module, compute: Callable[[torch.device], np.ndarray]) -> np.ndarray:
        """Return what `compute` returns for the device that the model is on: the CPU if a card's memory is too small,
        for it is a training's first."""
        if self._device.type == "cuda":
            try:
                with _on_device(model, self._device):
                    return compute(self._device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                drop_traceback(error, self._device)
        return compute(torch.device("cpu"))


def _preprocess(processor: Any, images: Sequence[Image.Image], parallel: bool, size: dict[str, Any]) -> Tensor:
    """Return images as a model takes them, (N, 3, H, W). parallel: use threads, since this takes longer than the model
    on a card."""

    def process(rgb: list[Image.Image]) -> Tensor:
        return processor(rgb, return_tensors="pt", **size).pixel_values

    rgb = [image.convert("RGB") for image in images]
    if not parallel:
        return process(rgb)
    with ThreadPoolExecutor(_THREADS) as pool:
        return torch.cat(list(pool.map(lambda image: process([image]), rgb)))


def _hidden_state(model: nn.Module, pixels: Tensor, depth: float) -> Tensor:
    """Return the hidden state of a vision transformer at this share of its depth, without computing what follows."""
    config: Any = model.config
    count = config.num_hidden_layers
    layers = next(part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count)

    def stop(module: nn.Module, args: object, output: Any) -> None:
        raise _Stopped(output if isinstance(output, Tensor) else output[0])

    hook = layers[round(depth * count) - 1].register_forward_hook(stop)
    try:
        model(pixels, interpolate_pos_encoding=True)
    except _Stopped as stopped:
        return stopped.hidden_state
    finally:
        hook.remove()
    raise AssertionError("the model did not run its layers")


class _Stopped(Exception):
    def __init__(self, hidden_state: Tensor):
        self.hidden_state = hidden_state


def likeness_by_region(
    scorer: Scorer, image: Image.Image, boxes: Mapping[str, Box], references: Mapping[str, Image.Image]
) -> dict[str, dict[str, float]]:
    """Compare parts of an image with images of concepts.

    Args:
        boxes: parts by the tokens of the concepts that are there, as fractions of the image.
        references: an image of each concept by its token.

    Returns:
        The cosines of subject features, -1 to 1, by the token of the part, then by that of the concept.
    """
    if not boxes or not references:
        return {token: {} for token in boxes}
    parts = scorer.subject_features([_crop_square(image, box) for box in boxes.values()])
    cosines = parts @ scorer.subject_features(list(references.values())).T
    return {
        token: {name: round(float(cosine), 4) for name, cosine in zip(references, row, strict=True)}
        for token, row in zip(boxes, cosines, strict=True)
    }


def _crop_square(image: Image.Image, box: Box) -> Image.Image:
    """Crop the smallest square around a box that the image has room for: a processor would cut off a box's ends."""
    left, top, right, bottom = (side * size for side, size in zip(box, image.size * 2, strict=True))
    side = max(1, min(round(max(right - left, bottom - top)), *image.size))
    x = round(min(max((left + right - side) / 2, 0), image.width - side))
    y = round(min(max((top + bottom - side) / 2, 0), image.height - side))
    return image.crop((x, y, x + side, y + side))


def scorer_for_base(base_kind: str) -> Scorer | None:
    """Return the scorer for a base's images: the built-in CLIP for the built-in base, otherwise a CLIP ViT-B/32, and a
    DINO ViT-S/16 if available, from the Hub's cache on this machine. None if no CLIP is cached: nothing is downloaded.
    """
    if base_kind == "tiny":
        return Scorer()
    clip, dino = _find_cached(CLIPS, "tokenizer.json"), _find_cached(DINOS)
    return Scorer(clip, dino) if clip else None


def _find_cached(repositories: Sequence[tuple[str, str | None]], *files: str) -> Path | None:
    """Return the first cached model with all its files: other programs may have downloaded only a part of them."""
    folders = (cached_snapshot(hub_id, revision) for hub_id, revision in repositories)
    return next(
        (
            folder
            for folder in folders
            if folder and all((folder / name).exists() for name in (*_REQUIRED_FILES, *files))
        ),
        None,
    )


def _load(cls: Any, folder: Path, **options: object) -> Any:
    """Load a model, its processor or its tokenizer, of a class of transformers, which have no common typed loader.

    Raises UserError if it is damaged or a weight is missing.
    """
    if issubclass(cls, torch.nn.Module):
        options |= {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    try:
        with silence_libraries():
            loaded = cls.from_pretrained(folder, local_files_only=True, **options)
        if not isinstance(loaded, tuple):
            return loaded
        model, info = loaded
        if info["missing_keys"] or info["mismatched_keys"]:  # filled with random numbers
            raise ValueError("a weight is missing")
    except (OSError, ValueError, RuntimeError, SafetensorError):
        raise UserError(
            f"The scoring model in {printable(str(folder))} is damaged.", "Download it again, or skip it: --no-samples."
        ) from None
    return model.eval()


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@contextmanager
def _on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a model on a device in the block. It only reads its weights, so their copies on the CPU simply stay."""
    on_cpu = [(tensor, tensor.data) for tensor in _tensors(model)]
    try:
        for tensor, data in on_cpu:
            tensor.data = data.to(device, non_blocking=True)
        yield
    finally:
        for tensor, data in on_cpu:
            tensor.data = data


def _normalize(features: Any) -> np.ndarray:
    features = features if isinstance(features, Tensor) else features.pooler_output  # transformers 5 wraps it
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
