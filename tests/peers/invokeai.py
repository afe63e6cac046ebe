"""InvokeAI: what its model manager takes the files for, `TextualInversionModelRaw.from_checkpoint` and
`ModelPatcher.apply_ti`, `LoRALoader._load_model` and `LayerPatcher` on narrow models."""

from pathlib import Path
from types import SimpleNamespace

import frame
import torch

job = frame.job()
from invokeai.app.util.ti_utils import extract_ti_triggers_from_prompt  # noqa: E402
from invokeai.backend.model_manager.configs import lora as lora_configs  # noqa: E402
from invokeai.backend.model_manager.configs import textual_inversion as word_configs  # noqa: E402
from invokeai.backend.model_manager.load.model_loaders.lora import LoRALoader  # noqa: E402
from invokeai.backend.model_manager.model_on_disk import ModelOnDisk  # noqa: E402
from invokeai.backend.model_manager.taxonomy import ModelFormat  # noqa: E402
from invokeai.backend.model_patcher import ModelPatcher  # noqa: E402
from invokeai.backend.patches.layer_patcher import LayerPatcher  # noqa: E402
from invokeai.backend.textual_inversion import TextualInversionModelRaw  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

END = {"sd1": "SD1_Config", "sd2": "SD2_Config", "sdxl": "SDXL_Config"}[job.base]


def taken_for(configs, start: str, path: str) -> list[str]:
    """The bases for which this file is recognised."""
    hits = []
    for end in ("SD1_Config", "SD2_Config", "SDXL_Config"):
        config = getattr(configs, f"{start}_{end}")
        disk = SimpleNamespace(
            path=Path(path),
            load_state_dict=lambda _=None: load_file(path),
            metadata=lambda: {},
            weight_files=lambda: {Path(path)},
        )
        try:
            config._validate_base(disk)
            if start.startswith("TI"):
                assert config._file_looks_like_embedding(disk)
            else:
                config._validate_looks_like_lora(disk)
            hits.append(end)
        except Exception as error:
            last = error
    return hits or [str(last)]


name = Path(job.embedding).stem
frame.told(
    word=taken_for(word_configs, "TI_File", job.embedding),
    lora=taken_for(lora_configs, "LoRA_LyCORIS", job.lora),
    expected=[END],
    named=extract_ti_triggers_from_prompt(f"a photo of <{name}> here"),
    file=ModelOnDisk(Path(job.embedding)).name,
)
parts = frame.narrow(job.base)
word = TextualInversionModelRaw.from_checkpoint(job.embedding)
tokenizer = frame.tokenizer()
for key, component in zip(("clip_l", "clip_g"), ("text_encoder", "text_encoder_2"), strict=True):
    if component in parts:
        with ModelPatcher.apply_ti(tokenizer, parts[component], [(name, word)]) as (theirs, manager):
            first = theirs.convert_tokens_to_ids(f"<{name}>")
            ids = manager.expand_textual_inversion_token_ids_if_necessary([first])
            job.rows(key, parts[component].get_input_embeddings().weight[ids])

loader = LoRALoader.__new__(LoRALoader)
loader._torch_dtype = torch.float32
loader._logger = SimpleNamespace(warning=print, info=print)
loader._model_base = getattr(lora_configs, f"LoRA_LyCORIS_{END}").model_fields["base"].default
patch = loader._load_model(
    SimpleNamespace(path=job.lora, format=ModelFormat.LyCORIS, base=loader._model_base, name=name)
)
names = frame.our_names(job.base, parts)
for prefix, component in frame.components(job.base).items():
    model = frame.as_it_was(parts[component])
    before = {
        path: module.weight.detach().clone() for path, module in model.named_modules() if hasattr(module, "weight")
    }
    with LayerPatcher.apply_smart_model_patches(
        model, [(patch, 1.0)], f"{prefix}_", torch.float32, force_direct_patching=True
    ):
        for path, module in model.named_modules():
            if path in before and not torch.equal(module.weight, before[path]):
                job.change(names[component, path], module.weight - before[path])
job.done()
