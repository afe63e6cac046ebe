"""What the scripts beside this one share. Each loads the files of an export by one program's own code:

    python NAME.py CHECKOUT BASE OUT EMBEDDING LORA

and writes to OUT, a safetensors file, `rows/clip_l`, `rows/clip_g`: the vectors that the program then holds, and
`probe/<layer>`: what it adds to a layer's weight, as a matrix (out, in * k * k), times a fixed vector. Narrow models
where theirs are ours to build, otherwise the published sizes as shapes alone. BASE: sd1, sd2 or sdxl.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import stand_in
import torch

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
sys.path.insert(2, str(Path(__file__).resolve().parent.parent.parent))


@dataclass
class Job:
    checkout: str
    base: str
    out: str
    embedding: str
    lora: str
    found: dict[str, torch.Tensor] = field(default_factory=dict)

    def rows(self, key: str, rows: torch.Tensor) -> None:
        self.found[f"rows/{key}"] = rows.detach().clone()

    def change(self, layer: str, delta: torch.Tensor) -> None:
        matrix = delta.detach().reshape(delta.shape[0], -1).double()
        self.found[f"probe/{layer}"] = matrix @ torch.from_numpy(probe(matrix.shape[1]))

    def done(self) -> None:
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in self.found.items()}, self.out)
        print("stood in for:", *sorted(stand_in.STOOD_IN))


def job(*instead: str) -> Job:
    """The job of the command line; the checkout is on the path. instead: see `stand_in.use`."""
    checkout, base, out, embedding, lora = sys.argv[1:]
    import accelerate  # noqa: F401 - before the stand-ins: they must see nothing missing that is here
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    stand_in.use(checkout, *instead)
    sys.argv[1:] = []
    return Job(checkout, base, out, embedding, lora)


def probe(length: int) -> np.ndarray:
    """The fixed vector, float64."""
    return np.cos(np.arange(length) * 0.7) + 0.1


class AsItWas(torch.nn.Module):
    """A text encoder whose layers lie under `text_model`, as before transformers 5."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.text_model = model


def as_it_was(model: torch.nn.Module) -> torch.nn.Module:
    """A text encoder as these programs expect it; any other model as it is."""
    return AsItWas(model) if hasattr(model, "encoder") else model


def narrow(base: str, table=None) -> dict[str, torch.nn.Module]:
    """Narrow models of that kind, real weights."""
    from support import original

    torch.manual_seed(0)
    return original.models(base, table or original.NARROW)


def published(base: str) -> dict[str, torch.nn.Module]:
    """The published sizes, shapes only."""
    from support import original, teaching

    return teaching.models(base, original.FULL)


def components(base: str) -> dict[str, str]:
    """A LoRA's prefixes, and the models they mean."""
    if base != "sdxl":
        return {"lora_unet": "unet", "lora_te": "text_encoder"}
    return {"lora_unet": "unet", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}


def our_names(base: str, parts: dict[str, torch.nn.Module]) -> dict[tuple[str, str], str]:
    """(model, path of a module, with text_model) -> our name of the layer."""
    from support import teaching

    names = {}
    places = teaching.adapters(base, parts)
    modules = {module: name for name, module in places.layers().items()}
    for component in components(base).values():
        for path, module in as_it_was(parts[component]).named_modules():
            if module in modules:
                names[component, path] = modules[module]
    return names


def told(**facts: object) -> None:
    print(json.dumps(facts, default=str))


def tokenizer():
    """CLIP's."""
    from transformers import CLIPTokenizer

    from sdpersonal.models.loading import built_in_folder

    return CLIPTokenizer.from_pretrained(built_in_folder() / "tokenizer")
