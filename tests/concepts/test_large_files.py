"""LoRAs of SDXL as large as people have them. The files are sparse: their zeros take no room on the disk."""

import json
import os
import subprocess
import sys

import pytest

from sdpersonal.concepts.importers.read_folders import read_path
from sdpersonal.concepts.library import Library
from sdpersonal.errors import UserError
from support import foreign

IMPORT = """
import sys
from sdpersonal.cli.main import main
before = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
assert main(["concepts", "import", sys.argv[1], "--library", "shelf"]) == 0
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) - before)
"""


def sparse(path, rank: int, more: dict[str, list[int]] | None = None, **header: str) -> int:
    """kohya's LoRA of every linear layer in SDXL's transformers and text encoders, float16; returns its size."""
    paths = foreign.originals("sdxl")
    shapes = {
        f"lora_unet_{foreign.flat_name(paths.get(path, path))}": tuple(module.weight.shape)
        for path, module in foreign.unet("sdxl").named_modules()
        if ".attentions." in path and hasattr(module, "in_features")
    }
    for name, width, count in (("lora_te1", 768, 12), ("lora_te2", 1280, 32)):
        inside = dict.fromkeys([f"self_attn_{item}_proj" for item in ("q", "k", "v", "out")], (width, width))
        inside |= {"mlp_fc1": (4 * width, width), "mlp_fc2": (width, 4 * width)}
        for layer in range(count):
            shapes |= {f"{name}_text_model_encoder_layers_{layer}_{part}": shape for part, shape in inside.items()}
    tensors = dict(more or {})
    for name, (out, width) in shapes.items():
        tensors |= {f"{name}.lora_down.weight": [rank, width], f"{name}.lora_up.weight": [out, rank]}
    at, entries = 0, {"__metadata__": header}
    for name, shape in tensors.items():
        end = at + 2 * shape[0] * shape[1]
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    raw = json.dumps(entries).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    os.truncate(path, 8 + len(raw) + at)
    return 8 + len(raw) + at


def imported(path) -> float:
    """Memory that importing takes, in bytes: a process of its own tells."""
    done = subprocess.run([sys.executable, "-c", IMPORT, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.slow
def test_importing_a_large_sdxl_lora_holds_it_in_memory_once(tmp_path):
    path = tmp_path / "big-duck.safetensors"
    size = sparse(path, 48, ss_tag_frequency="a tag of a photo" * 100_000)  # a header of 1.6 MB
    assert size > 300_000_000
    assert imported(path) < 1.2 * size + 30e6
    [entry] = Library("shelf").entries()
    assert entry.lora_rank == 48 and entry.card.base == "sdxl" and entry.size > 300_000_000


@pytest.mark.thorough
@pytest.mark.slow
def test_importing_a_rank_128_sdxl_lora_holds_it_in_memory_once(tmp_path):
    path = tmp_path / "big-duck.safetensors"
    size = sparse(path, 128)
    assert size > 800_000_000
    assert imported(path) < 1.2 * size + 30e6


def test_large_invalid_files_are_refused_by_their_header(tmp_path):
    path = tmp_path / "big.safetensors"
    sparse(path, 48, {"model.diffusion_model.x": [1000, 1000]})
    with pytest.raises(UserError, match="is a whole model"):
        read_path(path)
    sparse(path, 700)
    with pytest.raises(UserError, match=r"is larger than 4\.0 GB"):
        read_path(path)
    size = sparse(path, 48)
    os.truncate(path, size - 2)
    with pytest.raises(UserError, match="ends early"):
        read_path(path)
    path.write_bytes(b"PK\x03\x04")
    os.truncate(path, 3_000_000_000)
    with pytest.raises(UserError, match="larger than 300 MB, the limit for a pickle"):
        read_path(path)
