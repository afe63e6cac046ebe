"""Small good files of every format that the package reads, from which the damaged ones are made."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import safetensors.torch
import torch
from PIL import Image

from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.exporters import export
from support import foreign, hostile, pictures_with
from support.foreign import a1111, rinongal, rows, safetensors_bytes, torch_saved
from support.samples import concept, embedding

Folder = dict[str, bytes]  # the files of a folder by name


def concept_files() -> list[bytes]:
    """Return one small good file of each format of concepts, with every other program's layout."""
    photo = Image.new("RGB", (16, 64), "white")
    old = {"_use_new_zipfile_serialization": False}
    vectors = rows(1)
    bundle = safetensors.torch.load(foreign.kohya("sd1", every=40)) | {"bundle_emb.a.string_to_param.*": vectors}
    peft_config = json.dumps({"unet.r": 2, "unet.lora_alpha": 4})
    return [
        concept_to_bytes(concept()),
        concept_to_bytes(embedding()),
        torch_saved({"<a>": vectors[0]}),
        torch_saved({"<a>": vectors}, **old),
        safetensors_bytes({"<a>": vectors}),
        torch_saved(a1111(vectors)),
        torch_saved(a1111(vectors), **old),
        torch_saved(rinongal(vectors)),
        torch_saved(rinongal(vectors), **old),
        safetensors_bytes({"emb_params": vectors.bfloat16()}, {"modelspec.title": "a"}),
        safetensors_bytes({"emp_params": vectors}),
        safetensors_bytes({"clip_l": vectors, "clip_g": rows(1, 1280)}),
        pictures_with.with_chunk(a1111(vectors), photo),
        pictures_with.png(pictures_with.with_pixels(a1111(vectors), photo)),
        safetensors_bytes(bundle, {"ss_output_name": "a"}),
        foreign.kohya("sdxl", every=200),
        safetensors_bytes(safetensors.torch.load(peft_lora()), {"lora_adapter_metadata": peft_config}),
        foreign.diffusers_lora("sdxl", "processor", every=50),
        foreign.cloneofsimo_safetensors(),
        *exported(),
        *layer_changes(),
    ]


def peft_lora() -> bytes:
    return foreign.diffusers_lora(every=40)


def exported() -> list[bytes]:
    """Return the files of weights that exports write, with what their headers say of the concept."""
    made = [export(concept(), format).files for format in ("a1111", "diffusers", "onetrainer", "kohya")]
    return [data for files in made for name, data in files.items() if name.endswith(".safetensors")]


def layer_changes() -> list[bytes]:
    """Return LoRAs of LyCORIS' and PEFT's other kinds, each by the names that its programs give them."""
    kinds = {
        "lora_unet_{}.": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        "lycoris_{}.": ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
        "unet.{}.": ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
        "diffusion_model.{}.": ("diff", "diff_b"),
        "oft_unet_{}.": ("oft_blocks",),
        "base_model.model.{}.": ("oft_R.weight",),
    }
    sizes = {"hada_w1_a": (320, 2), "hada_w1_b": (2, 320), "hada_w2_a": (320, 2), "hada_w2_b": (2, 320)}
    sizes |= {"lokr_w1": (8, 8), "lokr_w2_a": (40, 2), "lokr_w2_b": (2, 40), "diff": (320, 320), "diff_b": (320,)}
    sizes |= {"lora_A.weight": (2, 320), "lora_B.weight": (320, 2), "lora_magnitude_vector": (320,)}
    sizes |= {"oft_blocks": (40, 8, 8), "oft_R.weight": (40, 28)}
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    metadata = {"ss_base_model_version": "sd_v1", "modelspec.title": "a"}
    files = []
    for prefix, names in kinds.items():
        layer = prefix.format(path if "." in prefix[:-1] else path.replace(".", "_"))
        tensors = {layer + name: torch.full(sizes[name], 0.01) for name in names}
        alpha = {f"{layer}alpha": torch.tensor(2.0)} if prefix.startswith(("lora", "lycoris")) else {}
        files.append(safetensors_bytes(tensors | alpha, metadata))
    return [*files, torch_saved(safetensors.torch.load(files[0]) | {"ss_base_model_version": "sd_v1"})]


def other_files() -> list[bytes]:
    """Return good files of kinds that hold no concept: each is refused by its name, spoiled too."""
    plain = [pickle.dumps({"a": [1, 2.5, "b", None]}, protocol) for protocol in range(6)]
    archive, photo = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(zipfile.ZipInfo("a/embeddings/x.safetensors"), concept_to_bytes(embedding()))
    Image.new("RGB", (8, 8)).save(photo, "BMP")
    texts = [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
        b"<!doctype html><p>no",
        b'{"error":1}',
    ]
    boxes = [b"\0\0\0\x20ftypheic\0\0\0\0mif1heic", b"RIFF\x24\0\0\0WAVEfmt ", b"GGUF\x03\0\0\0", bytes(3000)]
    return [*plain, archive.getvalue(), photo.getvalue(), *texts, *boxes]


def harmful_files() -> list[bytes]:
    """Return files with code in them, which must not run whatever becomes of the bytes around it."""
    return [
        torch_saved([torch.ones(4, 1), torch.ones(1, 768)] * 4),
        torch_saved({"<a>": hostile.Evil(), "<b>": rows(1)}),
        torch_saved({"string_to_param": {"*": hostile.Evil()}}, _use_new_zipfile_serialization=False),
    ]


def concept_folders() -> list[Folder]:
    """Return folders of one concept each, with the texts that stand beside the weights."""
    peft = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["to_q"], "rank_pattern": {"to_q": 2}}
    peft |= {"alpha_pattern": {"down_blocks.*to_q": 2}, "base_model_name_or_path": "runwayml/stable-diffusion-v1-5"}
    readme = b"---\nlicense: mit\ntags:\n- a\n---\n### Duck on Stable Diffusion\nText <a>\n"
    texts = {"token_identifier.txt": b"<duck>", "type_of_concept.txt": b"object", "README.md": readme}
    return [
        {
            "adapter_config.json": json.dumps(peft).encode(),
            "adapter_model.safetensors": peft_lora(),
            "README.md": readme,
        },
        {"learned_embeds.bin": torch_saved({"<duck>": rows(1)[0]}), **texts},
        {"learned_embeds.safetensors": safetensors_bytes({"<duck>": rows(1)}), **texts},
        {
            "pytorch_lora_weights.safetensors": peft_lora(),
            "special_params.json": b'{"TOK":"<s0><s1>"}',
            "README.md": readme,
        },
        {
            "learned_embeds.safetensors": safetensors_bytes({"<duck>": rows(1)}),
            "learned_embeds_2.safetensors": safetensors_bytes({"<duck>": rows(1, 1280)}),
        },
    ]


def photos() -> list[bytes]:
    """Return a small photo in each format, with Exif and a profile."""
    import numpy as np
    import pillow_heif
    from PIL import ImageCms

    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photo"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    image = Image.fromarray(pixels).resize((70, 64))
    files = []
    for kind, mode in (("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("WEBP", "RGB")):
        out = io.BytesIO()
        image.convert(mode).save(out, kind, exif=exif.tobytes(), **({"icc_profile": profile} if mode == "RGB" else {}))
        files.append(out.getvalue())
    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, exif=exif.tobytes())
    return [*files, out.getvalue()]


def wildcard_folder() -> Folder:
    """Return lists and packs of wildcards."""
    pack = "animals:\n  cats: [tabby cat, '2::{big|small} cat']\n  dogs: &d\n    - husky\n  more: *d\n"
    pack += "umi:\n  Prompts: [a]\n  Tags: [b]\n  weighted:\n    - {text: red, weight: 2}\n"
    return {
        "colour.txt": b"red\nblue\n# no\n2::green\n__shape__\n",
        "shape.txt": b"circle\r\n{big|small} square\r\n",
        "animals.yaml": pack.encode(),
        "more.json": b'{"a": {"b": ["x", "2::y"]}, "c": [{"text": "z", "weight": 3}], "d": 1}',
    }


def caption_folder() -> Folder:
    """Return captions beside photos, and tables of them."""
    rows_ = b'{"file_name": "c.jpg", "text": "a photo of {} in rain"}\n{"file_name": "d.jpg", "text": "sks dog"}\n'
    table = b'file_name,text\ne.jpg,"a photo, of {}"\nf.jpg,TOK in snow\n'
    texts = b"a photo of {} on grass\n{}, red, blue\n"
    return {"a.txt": texts, "b.caption": b"[trigger] in a hat", "metadata.jsonl": rows_, "metadata.csv": table}


def run_folder() -> Folder:
    """Return the files of a run that the app started and that stopped."""
    settings = {"token": "<me/duck>", "base": "tiny", "steps": 100, "class_noun": "duck", "program": "dreambooth"}
    settings |= {"photos": "photos", "library": "concepts", "run": "run", "prompts": ["{} a"]}
    progress = "".join(
        json.dumps({"step": i, "steps": 100, "loss": 0.1 * i, "seconds": 0.1, "left": 5.0, "fixed": 0.2}) + "\n"
        for i in range(1, 6)
    )
    scores = {"likeness": 0.5, "fidelity": 0.6, "copied": 0.0, "diversity": 0.4}
    return {
        "process.json": b'{"pid": 1, "born": 1.0, "began": 1700000000.0}',
        "settings.json": json.dumps(settings).encode(),
        "cost.json": b'{"steps": 100, "seconds": 50.0, "held": 100000000, "step": 0.5}',
        "result.json": b'{"steps": 100, "token": "<me/duck-v1>", "seconds": 12.5, "best": 90}',
        "progress.jsonl": progress.encode(),
        "trials.jsonl": (json.dumps({"step": 10, "score": 0.5} | scores) + "\n").encode() * 2,
        "ask": b"sample\n",
        "said.txt": b"\fModel: tiny\nEnded after step 5\n",
        "errors.txt": b"\ferror: The disk is full.\nFree some space.\n",
        "step-000005/manifest.json": b'{"step": 5, "sha256": {}, "numbers": {"state": {}, "groups": []}, "run": {}}',
    }
