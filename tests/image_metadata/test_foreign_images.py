"""Pictures of other programs, made here as each lays its metadata out: what is read, and what is said of the rest.

By hand, with real pictures and other readers: see docs/recipes.md.
"""

import gzip
import io
import json
import time

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from sdpersonal.errors import UserError
from sdpersonal.image_metadata import Foreign, read_recipe
from sdpersonal.image_metadata.prompt_syntax import translated
from sdpersonal.image_metadata.read_infotext import parse_infotext

SIZE = (64, 72)
LARGEST = 2**64 - 1


def png(mode="RGB", size=SIZE, latin=False, **texts) -> bytes:
    """A PNG with these texts; latin: as tEXt whatever is in them, in UTF-8 as many programs write."""
    info = PngInfo()
    for name, value in texts.items():
        name, text = name.replace("_dash_", "-"), value if isinstance(value, str) else json.dumps(value)
        if latin:
            info.add(b"tEXt", name.encode() + b"\0" + text.encode())
        else:
            info.add_text(name, text)
    out = io.BytesIO()
    Image.new(mode, size).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def with_exif(format: str, comment: bytes | None = None, **tags) -> bytes:
    """A picture with Exif, by Pillow. tags: of its first folder, by number as `t271`."""
    made = Image.Exif()
    if comment is not None:
        made.get_ifd(0x8769)[0x9286] = comment
    for tag, text in tags.items():
        made[int(tag[1:])] = text
    out = io.BytesIO()
    Image.new("RGB", SIZE).save(out, format, exif=made.tobytes())
    return out.getvalue()


def read(data: bytes) -> Foreign:
    foreign = read_recipe(data, "x.png")
    assert isinstance(foreign, Foreign)
    return foreign


def fields(data: bytes, **more) -> dict:
    facts = dict(read(data).fields)
    assert read(data).request(**more)
    return {name: value for name, value in facts.items() if value != ""}


def networks(data: bytes) -> list[tuple]:
    return [(network.kind, network.name, network.strength) for network in read(data).networks]


# --- ComfyUI ----------------------------------------------------------------------------------------------------------


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(**changes):
    """Two LoRAs, a second pass, a last layer: as its own templates have them."""
    return {
        "3": node("KSampler", seed=LARGEST, steps=20, cfg=8.0, sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0,
                  model=["11", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0]),
        "4": node("CheckpointLoaderSimple", ckpt_name="folder\\v1-5.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a cat [in] a hat, embedding:easy.pt", clip=["12", 0]),
        "7": node("CLIPTextEncode", text="blurry", clip=["12", 0]),
        "8": node("VAEDecode", samples=["14", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="x", images=["8", 0]),
        "10": node("LoraLoader", lora_name="ink.safetensors", strength_model=0.8, strength_clip=1.0, model=["4", 0],
                   clip=["4", 1]),
        "11": node("LoraLoaderModelOnly", lora_name="duck.safetensors", strength_model=-0.5, model=["10", 0]),
        "12": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["10", 1]),
        "13": node("LatentUpscale", upscale_method="nearest-exact", width=1024, height=1536, crop="disabled",
                   samples=["3", 0]),
        "14": node("KSampler", seed=1, steps=14, cfg=8.0, sampler_name="dpmpp_2m", scheduler="karras", denoise=0.5,
                   model=["11", 0], positive=["6", 0], negative=["7", 0], latent_image=["13", 0]),
    } | changes  # fmt: skip


WHOLE = {
    "prompt": r"a cat \[in\] a hat, easy",
    "negative": "blurry",
    "seed": LARGEST,
    "steps": 20,
    "guidance": 8.0,
    "clip_skip": 2,
    "size": "512x768",
    "hires_scale": 2.0,
    "strength": 0.5,
    "scheduler": "DPM++ 2M Karras",
}


def test_a_comfyui_prompt_graph_is_read():
    data = png(prompt=graph())
    assert fields(data) == WHOLE
    assert networks(data) == [("embedding", "easy", None), ("LoRA", "ink", 0.8), ("LoRA", "duck", -0.5)]
    assert "It was generated with the model v1-5." in read(data).notes and read(data).program == "ComfyUI"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"block_vector": "1,0,0,0,0,0,0,0,1,1,1,1,0.5,1,1,1,1"}, "0.8:lbw=1,0,0,0,0,0,0,0,1,1,1,1,0.5,1,1,1,1"),
        ({"block_vector": "SD-X: 1, 0,0,0,0,0,0,0,0,0,0,0"}, "0.8:in=0:mid=0:out=0"),
        ({"block_vector": "1,0,0,0,0,0,0,0,0,0,0,0", "inverse": True}, "0.8"),
        ({"block_vector": "1,R,0,A,0,0,0,0,0,0,0,0"}, "0.8"),
        ({"block_vector": ",".join("1" * 12)}, "0.8:in"),
        ({"block_vector": "1," * 100_000}, "0.8"),
        ({"block_vector": 5}, "0.8"),
        ({"block_vector": ["4", 0]}, "0.8"),
    ],
)
def test_inspire_pack_block_weights_are_read(inputs, said):
    loader = node("LoraLoaderBlockWeight //Inspire", lora_name="ink.safetensors", strength_model=0.8, model=["4", 0])
    loader["inputs"] |= inputs
    [ink] = [network for network in read(png(prompt=graph(**{"10": loader}))).networks if network.name == "ink"]
    if said == "0.8:in":  # twelve ones say nothing of the blocks that SDXL has not
        assert ink.blocks.shortest_list == (1.0,) * 12
    else:
        assert str(ink) == f"the LoRA ink ({said})"


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_comfyui_metadata_in_exif_is_read(format):
    text = json.dumps(graph())
    assert fields(with_exif(format, t271=f"Prompt: {text}", t270="Workflow: {}")) == WHOLE  # nodes that save, of packs
    assert fields(with_exif(format, t272=f"prompt:{text}", t271="workflow:{}")) == WHOLE  # ComfyUI's own WebP
    assert fields(with_exif(format, t37510=json.dumps({"prompt": graph(), "workflow": {}}))) == WHOLE


def workflow():
    """The same on the canvas, with a bypassed LoRA, a primitive seed, and links as the frontend writes them."""

    def at(number, kind, widgets, inputs=(), mode=0):
        places = [{"name": name, "type": type_, "link": link} for name, type_, link in inputs]
        return {"id": number, "type": kind, "mode": mode, "inputs": places, "widgets_values": widgets,
                "outputs": [{"type": "MODEL"}, {"type": "CLIP"}]}  # fmt: skip

    nodes = [
        at(3, "KSampler", [0, "randomize", 20, 7.5, "euler_ancestral", "normal", 1.0],
           [("model", "MODEL", 1), ("positive", "CONDITIONING", 2), ("negative", "CONDITIONING", 3),
            ("latent_image", "LATENT", 4), ("seed", "INT", 9)]),
        at(4, "CheckpointLoaderSimple", ["v1-5.ckpt"]),
        at(5, "EmptyLatentImage", [640, 512, 1]),
        at(6, "CLIPTextEncode", ["a dog"], [("clip", "CLIP", 5)]),
        at(7, "CLIPTextEncode", ["cat"], [("clip", "CLIP", 6)]),
        at(8, "VAEDecode", [], [("samples", "LATENT", 7)]),
        at(9, "SaveImage", ["x"], [("images", "IMAGE", 8)]),
        at(10, "LoraLoader", ["off.safetensors", 1, 1], [("model", "MODEL", 10), ("clip", "CLIP", 11)], mode=4),
        at(11, "PrimitiveNode", [77, "fixed"]),
    ]  # fmt: skip
    links = [[1, 10, 0, 3, 0, "MODEL"], [2, 6, 0, 3, 1, "C"], [3, 7, 0, 3, 2, "C"], [4, 5, 0, 3, 3, "LATENT"]]
    links += [[5, 10, 1, 6, 0, "CLIP"], [6, 10, 1, 7, 0, "CLIP"], [7, 3, 0, 8, 0, "LATENT"], [8, 8, 0, 9, 0, "IMAGE"]]
    links += [[9, 11, 0, 3, 4, "INT"], [10, 4, 0, 10, 0, "MODEL"], [11, 4, 1, 10, 1, "CLIP"]]
    return {"nodes": nodes, "links": links, "version": 0.4}


def test_a_comfyui_workflow_is_read():
    wanted = {"prompt": "a dog", "negative": "cat", "seed": 77, "steps": 20, "guidance": 7.5, "size": "640x512"}
    old = workflow()
    assert fields(png(workflow=old)) == wanted | {"scheduler": "Euler a"}
    assert networks(png(workflow=old)) == []
    new = json.loads(json.dumps(old))
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    new["links"] = [dict(zip(names, link, strict=True)) for link in old["links"]]
    assert fields(png(workflow=new)) == wanted | {"scheduler": "Euler a"}


def nested():
    """The workflow as a subgraph in a subgraph, whose prompt is typed on the outermost node."""
    whole = workflow()
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    inner_links = [dict(zip(names, link, strict=True)) for link in whole["links"] if link[0] != 8]
    inner_links += [dict(zip(names, (20, 8, 0, -20, 0, "IMAGE"), strict=True))]
    inner_links += [dict(zip(names, (21, -10, 0, 6, 1, "STRING"), strict=True))]
    nodes = [entry for entry in whole["nodes"] if entry["id"] != 9]
    asks = next(entry for entry in nodes if entry["id"] == 6)
    asks["inputs"].append({"name": "text", "link": 21, "widget": {"name": "text"}})
    inner = {
        "id": "inner",
        "nodes": nodes,
        "links": inner_links,
        "inputs": [{"name": "words", "linkIds": [21]}],
        "outputs": [{"name": "IMAGE", "linkIds": [20]}],
    }
    words = {"name": "words", "link": 1, "widget": {"name": "words"}}
    outer = {
        "id": "outer",
        "nodes": [{"id": 4, "type": "inner", "inputs": [words], "widgets_values": ["not this"]}],
        "links": [
            dict(zip(names, (1, -10, 0, 4, 0, "STRING"), strict=True)),
            dict(zip(names, (2, 4, 0, -20, 0, "IMAGE"), strict=True)),
        ],
        "inputs": [{"name": "words", "linkIds": [1]}],
        "outputs": [{"name": "IMAGE", "linkIds": [2]}],
    }
    save = {"id": 9, "type": "SaveImage", "inputs": [{"name": "images", "link": 5}], "widgets_values": ["x"]}
    instance = {"id": 3, "type": "outer", "inputs": [words | {"link": None}], "widgets_values": ["a heron"]}
    links = [[5, 3, 0, 9, 0, "IMAGE"]]
    return {"nodes": [save, instance], "links": links, "definitions": {"subgraphs": [inner, outer]}}


def test_nested_comfyui_subgraphs_are_read():
    wanted = {"prompt": "a heron", "negative": "cat", "seed": 77, "steps": 20, "guidance": 7.5, "size": "640x512"}
    assert fields(png(workflow=nested())) == wanted | {"scheduler": "Euler a"}


def test_recursive_comfyui_subgraphs_are_refused_quickly():
    twice = [{"id": number, "type": "a", "inputs": []} for number in (1, 2)]
    endless = {"id": "a", "nodes": twice, "links": [], "outputs": [{"linkIds": [1]}]}
    began = time.process_time()
    for content in (
        [endless],
        [endless | {"nodes": twice * 500}],
        [{"id": "a"}, None, 3],
        "a",
        [{"id": "a", "nodes": 3}],
    ):
        with pytest.raises(UserError, match=r"no sampler|no prompt"):
            read_recipe(png(workflow={"nodes": twice, "links": [], "definitions": {"subgraphs": content}}))
    assert time.process_time() - began < 5


def custom(**changes):
    """The sampler in parts, as for newer models."""
    return {
        "1": node("SamplerCustomAdvanced", noise=["2", 0], guider=["3", 0], sampler=["4", 0], sigmas=["5", 0],
                  latent_image=["6", 0]),
        "2": node("RandomNoise", noise_seed=["20", 0]),
        "3": node("CFGGuider", model=["7", 0], positive=["8", 0], negative=["9", 0], cfg=4.5),
        "4": node("KSamplerSelect", sampler_name="euler"),
        "5": node("BasicScheduler", scheduler="simple", steps=28, denoise=1.0, model=["7", 0]),
        "6": node("EmptySD3LatentImage", width=["21", 0], height=["21", 1], batch_size=1),
        "7": node("UNETLoader", unet_name="big.safetensors"),
        "8": node("ConditioningCombine", conditioning_1=["10", 0], conditioning_2=["11", 0]),
        "9": node("CLIPTextEncode", text="", clip=["7", 0]),
        "10": node("CLIPTextEncode", text=["12", 0], clip=["7", 0]),
        "11": node("CLIPTextEncodeSDXL", text_g="on a hill", text_l="on a hill", width=1024, clip=["7", 0]),
        "12": node("StringConcatenate", string_a=["13", 0], string_b="at dawn", delimiter=", "),
        "13": node("PrimitiveString", value="a house"),
        "14": node("VAEDecode", samples=["1", 0], vae=["7", 2]),
        "15": node("PreviewImage", images=["14", 0]),
        "20": node("Seed (rgthree)", seed=123456789012345),
        "21": node("SomeSizes", width=832, height=1216),
    } | changes  # fmt: skip


def test_comfyui_custom_samplers_are_read():
    data = png(prompt=custom())
    facts = fields(data)
    assert facts == {
        "prompt": "a house, at dawn, on a hill",
        "seed": 123456789012345,
        "steps": 28,
        "guidance": 4.5,
        "size": "832x1216",
        "scheduler": "Euler Simple",
    }
    assert any("Several positive prompts" in note for note in read(data).notes)


def efficient():
    return {
        "1": node("Efficient Loader", ckpt_name="a.safetensors", vae_name="Baked VAE", clip_skip=-2, lora_name="None",
                  positive="a fox", negative="dull", empty_latent_width=512, empty_latent_height=640, batch_size=2,
                  lora_stack=["2", 0]),
        "2": node("LoRA Stacker", lora_count=1, lora_name_1="one.safetensors", lora_wt_1=0.7, lora_name_2="two.pt",
                  lora_wt_2=1.0),
        "3": node("KSampler (Efficient)", seed=5, steps=12, cfg=6, sampler_name="ddim", scheduler="ddim_uniform",
                  denoise=1.0, model=["5", 0], positive=["1", 1], negative=["1", 2], latent_image=["1", 3]),
        "4": node("Image Saver", images=["3", 5]),
        "5": {"class_type": "Power Lora Loader (rgthree)", "inputs": {
            "lora_1": {"on": True, "lora": "three.safetensors", "strength": 1.5},
            "lora_2": {"on": False, "lora": "four.safetensors", "strength": 1}, "model": ["1", 0]}},
    }  # fmt: skip


def test_a_comfyui_graph_without_a_save_node_is_read():
    """Whoever asks for pictures by ComfyUI's API may save them: the graph ends where they are decoded."""
    graph = {name: entry for name, entry in custom().items() if name != "15"}
    assert fields(png(prompt=graph)) == fields(png(prompt=custom()))


def test_comfyui_custom_nodes_are_read():
    data = png(prompt=efficient())
    wanted = {"prompt": "a fox", "negative": "dull", "seed": 5, "steps": 12, "guidance": 6, "size": "512x640"}
    assert fields(data) == wanted | {"clip_skip": 2, "scheduler": "DDIM"}
    assert networks(data) == [("LoRA", "one", 0.7), ("LoRA", "three", 1.5)]
    assert any("one of 2 images" in note for note in read(data).notes)


def test_comfyui_img2img_is_read():
    begun = graph(**{
        "5": node("VAEEncode", pixels=["20", 0], vae=["4", 2]),
        "20": node("LoadImage", image="x.png"),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
    })  # fmt: skip
    begun["3"]["inputs"]["denoise"] = 0.35
    foreign = read(png(prompt=begun))
    assert foreign.fields["strength"] == 0.35 and "size" not in foreign.fields
    assert "It was generated from another image: give that with --init-image." in foreign.notes


def test_the_comfyui_sampler_that_made_the_image_is_read():
    two = graph(**{
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "30": node("KSampler", seed=9, steps=9, cfg=9, sampler_name="euler", scheduler="normal", denoise=1,
                   model=["4", 0], positive=["31", 0], negative=["7", 0], latent_image=["32", 0]),
        "31": node("CLIPTextEncode", text="a wolf", clip=["4", 1]),
        "32": node("EmptyLatentImage", width=64, height=72, batch_size=1),
        "33": node("VAEDecode", samples=["30", 0], vae=["4", 2]),
        "34": node("SaveImage", images=["33", 0]),
    })  # fmt: skip
    assert fields(png(prompt=two))["prompt"] == "a wolf"  # of 64x72, as the picture
    assert fields(png(size=(512, 768), prompt=two))["seed"] == LARGEST
    preview = two | {"34": node("PreviewImage", images=["33", 0])}
    assert fields(png(size=(10, 10), prompt=preview))["seed"] == LARGEST  # what is saved before what is shown


def test_comfyui_loops_are_refused_and_long_chains_are_read():
    loop = graph(**{"5": node("LatentBlend", samples=["3", 0]), "6": node("Reroute", conditioning=["6", 0])})
    with pytest.raises(UserError, match=r"x\.png comes from ComfyUI, but"):
        read_recipe(png(prompt=loop), "x.png")
    with pytest.raises(UserError, match="no sampler"):
        read_recipe(
            png(prompt={"1": node("LoadImage", image="a.png"), "2": node("SaveImage", images=["1", 0])}), "x.png"
        )
    chain = {str(i): node("LoraLoader", lora_name="None", model=[str(i + 1), 0]) for i in range(4000, 7000)}
    many = graph(**chain)
    many["11"]["inputs"]["model"] = ["4000", 0]
    assert read(png(prompt=many)).fields["steps"] == 20
    nan = json.dumps(graph()).replace('"denoise": 1.0', '"denoise": 1.0, "is_changed": [NaN]', 1)
    assert fields(png(prompt=nan)) == WHOLE


def test_infotext_overrides_a_comfyui_graph_with_random_text():
    wild = graph(**{"6": node("CLIPTextEncode", text=["40", 0], clip=["4", 1]),
                    "40": node("ImpactWildcardProcessor", wildcard_text="a __x__", populated_text="")})  # fmt: skip
    text = "a red cat\nNegative prompt: blurry\nSteps: 20, Sampler: euler, CFG scale: 8, Seed: 4, Size: 512x768"
    assert fields(png(prompt=wild, parameters=text))["prompt"] == "a red cat"
    assert fields(png(prompt=graph(), parameters=text))["seed"] == LARGEST


# --- programs with one object -----------------------------------------------------------------------------------------

INVOKE = {
    "app_version": "4.2.0",
    "generation_mode": "img2img",
    "positive_prompt": "a (red hat)1.3 cat++, (plain)",
    "negative_prompt": "dull-",
    "width": 512,
    "height": 640,
    "seed": 3293022630,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "cfg_rescale_multiplier": 0.5,
    "steps": 30,
    "scheduler": "dpmpp_2m_k",
    "clip_skip": 1,
    "strength": 0.6,
    "model": {"name": "dreamer", "base": "sd-1"},
    "loras": [{"model": {"name": "ink"}, "weight": 0.75}],
    "controlnets": [{"control_model": {}}],
}


def test_invokeai_3_metadata_is_read():
    data = png(invokeai_metadata=INVOKE)
    assert fields(data) == {
        "prompt": "a (red hat:1.3) (cat:1.21), plain",
        "negative": "(dull:0.9)",
        "seed": 3293022630,
        "steps": 30,
        "guidance": 7.5,
        "rescale": 0.5,
        "clip_skip": 2,
        "size": "512x640",
        "strength": 0.6,
        "scheduler": "DPM++ 2M Karras",
    }
    old = {key: value for key, value in INVOKE.items() if key != "loras"}
    old |= {"model": {"model_name": "dreamer"}, "loras": [{"lora": {"model_name": "ink"}, "weight": 0.75}]}
    for image in (data, png(invokeai_metadata=old)):
        assert networks(image) == [("LoRA", "ink", 0.75)]
        assert {
            "It was generated with the model dreamer.",
            "It was generated from another image: give that with --init-image.",
        } <= set(read(image).notes)
        assert any("ControlNet" in note for note in read(image).notes)


def test_invokeai_2_metadata_is_read():
    picture = {"prompt": [{"prompt": "a cat [dull, grey]", "weight": 1.0}], "steps": 50, "cfg_scale": 5, "height": 768}
    picture |= {"width": 512, "seed": 2980747362, "type": "txt2img", "sampler": "k_lms", "variations": []}
    meta = {"model_weights": "v1.5", "app_version": "2.3.0", "image": picture}
    dream = '"a cat [dull, grey]" -s 50 -S 2980747362 -W 512 -H 768 -C 5 -A k_lms -G 0.9'
    wanted = {"prompt": "a cat", "negative": "dull, grey", "steps": 50, "seed": 2980747362, "guidance": 5}
    wanted |= {"size": "512x768", "scheduler": "LMS"}
    assert fields(png(sd_dash_metadata=meta, Dream="x")) == wanted
    assert fields(png(Dream=dream)) == wanted
    assert read(png(Dream=dream + " -I a.png -f 0.4")).fields["strength"] == 0.4
    picture["variations"] = [{"seed": 9, "weight": 0.2}]
    assert {"variation_strength": 0.2, "variation_seed": 9}.items() <= fields(png(sd_dash_metadata=meta)).items()
    with pytest.raises(UserError, match="comes from InvokeAI, but it has invokeai_workflow without metadata"):
        read_recipe(png(invokeai_workflow={"nodes": []}), "x.png")


NAI = {
    "prompt": "1girl, {{smile}}, [hat], (text)",
    "uc": "lowres",
    "steps": 28,
    "height": 1216,
    "width": 832,
    "scale": 5.0,
    "cfg_rescale": 0.2,
    "seed": 880673757,
    "n_samples": 1,
    "sampler": "k_euler_ancestral",
    "noise_schedule": "native",
    "request_type": "PromptGenerateRequest",
}
NAI_WANTED = {
    "prompt": r"1girl, ((smile:1.05):1.05), (hat:0.9524), \(text\)",
    "negative": "lowres",
    "seed": 880673757,
    "steps": 28,
    "guidance": 5.0,
    "rescale": 0.2,
    "size": "832x1216",
    "scheduler": "Euler a",
}


def test_novelai_metadata_is_read():
    texts = {"Software": "NovelAI", "Source": "NovelAI Diffusion V4.5 4BDE2A90", "Description": "1girl"}
    assert fields(png(**texts, Comment=NAI)) == NAI_WANTED
    caption = {
        "base_caption": "two girls",
        "char_captions": [{"char_caption": "1.5::red::, "}, {"char_caption": "blue"}],
    }
    new = NAI | {"v4_prompt": {"caption": caption}, "v4_negative_prompt": {"caption": {"base_caption": "bad"}}}
    foreign = read(png(**texts, Comment=new))
    assert foreign.fields["prompt"] == "two girls, (red:1.5), blue" and foreign.fields["negative"] == "bad"
    assert any("2 characters" in note for note in foreign.notes)
    first = {"steps": 50, "sampler": "k_lms", "seed": 5, "strength": 0.4, "scale": 10.0, "uc": "dull"}
    foreign = read(png(Software="NovelAI", Source="Stable Diffusion 1D44365E", Description="a cat", Comment=first))
    assert foreign.fields["prompt"] == "a cat" and foreign.fields["size"] == "64x72"
    assert any("image-to-image" in note for note in foreign.notes)  # pictures of 2022 do not say
    content = json.dumps(texts | {"Comment": json.dumps(NAI)})
    assert fields(with_exif("WEBP", b"ASCII\0\0\0" + content.encode())) == NAI_WANTED


def hidden(text: str, form: str, packed: bool = True, mode: str = "RGBA") -> bytes:
    """Bit by bit, as the extension writes it."""
    body = gzip.compress(text.encode()) if packed else text.encode()
    bits = "".join(f"{byte:08b}" for byte in f"stealth_{form}{'comp' if packed else 'info'}".encode())
    bits += f"{8 * len(body):032b}" + "".join(f"{byte:08b}" for byte in body)
    picture = Image.new(mode, (96, 80), (200, 100, 50, 255)[: len(mode)])
    pixels = picture.load()
    at = iter(bits)
    for x in range(picture.width):
        for y in range(picture.height):
            values = list(pixels[x, y])
            for channel in (3,) if form == "png" else (0, 1, 2):
                values[channel] = values[channel] & ~1 | int(next(at, "0"))
            pixels[x, y] = tuple(values)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


A1111 = "a cat\nNegative prompt: dull\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512"


@pytest.mark.parametrize(("form", "mode"), [("png", "RGBA"), ("rgb", "RGB"), ("rgb", "RGBA")])
@pytest.mark.parametrize("packed", [True, False])
def test_stealth_metadata_in_pixels_is_read(form, mode, packed):
    assert fields(hidden(A1111, form, packed, mode))["prompt"] == "a cat"
    outer = json.dumps({"Description": "x", "Software": "NovelAI", "Comment": json.dumps(NAI)})
    assert fields(hidden(outer, form, packed, mode)) == NAI_WANTED


def test_too_long_and_damaged_stealth_metadata_is_refused():
    with pytest.raises(UserError, match="longer than 250 kB"):
        read_recipe(hidden("a" * 3_000_000, "png"), "x.png")
    data = hidden(A1111, "png")
    broken = np.asarray(Image.open(io.BytesIO(data))).copy()
    broken[:, 3:6, 3] ^= 1  # in the packed text
    out = io.BytesIO()
    Image.fromarray(broken).save(out, "PNG")
    with pytest.raises(UserError, match="holds no recipe"):
        read_recipe(out.getvalue(), "x.png")


FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernaut",
    "clip_skip": 2,
    "full_prompt": ["cinematic still a goldfish", "goldfish, highly detailed"],
    "full_negative_prompt": ["dull"],
    "prompt": "a goldfish",
    "negative_prompt": "",
    "guidance_scale": 4.0,
    "resolution": "(1152, 896)",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "6952411511246973023",
    "steps": 30,
    "loras": [["offset", 0.1, "abc"]],
    "lora_combined_1": "offset : 0.1",
}


def test_fooocus_metadata_is_read():
    wanted = {
        "prompt": "cinematic still a goldfish, goldfish, highly detailed",
        "negative": "dull",
        "seed": 6952411511246973023,
        "steps": 30,
        "guidance": 4.0,
        "size": "1152x896",
        "scheduler": "DPM++ 2M SDE Karras",
    }
    data = png(parameters=FOOOCUS, fooocus_scheme="fooocus")
    assert fields(data) == wanted and networks(data) == [("LoRA", "offset", 0.1)]
    assert fields(with_exif("JPEG", t37510=json.dumps(FOOOCUS), t37500="fooocus")) == wanted
    text = (
        "a goldfish, detailed\nNegative prompt: dull\nSteps: 30, Sampler: DPM++ 2M SDE Karras, Seed: 5, "
        'Size: 1152x896, CFG scale: 4, Sharpness: 2, ADM Guidance: "(1.5, 0.8, 0.3)", Model: juggernaut, '
        "Scheduler: karras, Lora hashes: offset: abc, Lora weights: offset: 0.1, Version: Fooocus v2.5.0"
    )
    foreign = read(png(parameters=text, fooocus_scheme="a1111"))
    assert foreign.program == "Fooocus" and foreign.fields["scheduler"] == "DPM++ 2M SDE Karras"
    assert [(network.name, network.strength) for network in foreign.networks] == [("offset", 0.1)]
    old = {"Prompt": "a goldfish", "Negative Prompt": "dull", "Styles": "['x']", "Resolution": "(1152, 896)",
           "Guidance Scale": 7, "ADM Guidance": "(1.5, 0.8, 0.3)", "Sampler": "dpmpp_2m_sde_gpu", "Scheduler": "karras",
           "Seed": 5, "LoRA 1": "offset.safetensors : 0.5"}  # fmt: skip
    foreign = read(png(Comment=old))
    assert foreign.fields["size"] == "1152x896" and foreign.networks[0].strength == 0.5
    assert any("styles" in note for note in foreign.notes)


SWARM = {
    "prompt": "a cat <lora:ink:0.5>",
    "negativeprompt": "dull",
    "model": "OfficialStableDiffusion/sd_xl_base_1.0",
    "seed": LARGEST,
    "steps": "20",
    "cfgscale": "7.0",
    "width": 768,
    "height": 512,
    "sampler": "euler_ancestral",
    "scheduler": "normal",
    "clipstopatlayer": "-2",
    "loras": ["styles/ink", "duck"],
    "loraweights": ["0.5", "0.9"],
    "refinerupscale": 1.5,
    "refinercontrolpercentage": 0.3,
}


def test_swarmui_metadata_is_read():
    wanted = {"prompt": "a cat", "negative": "dull", "seed": LARGEST, "steps": 20, "guidance": 7.0, "clip_skip": 2}
    wanted |= {"size": "768x512", "hires_scale": 1.5, "strength": 0.3, "scheduler": "Euler a"}
    new = {"sui_image_params": SWARM, "sui_extra_data": {}}
    data = png(parameters=json.dumps(new, indent=2), prompt=graph())
    assert fields(data) == wanted
    assert networks(data) == [("LoRA", "ink", 0.5), ("LoRA", "duck", 0.9)]
    old = SWARM | {"loras": "styles/ink,duck", "loraweights": "0.5,0.9", "comfyuisampler": "euler_ancestral"}
    old.pop("sampler")
    text = json.dumps({"sui_image_params": old})
    for image in (with_exif("JPEG", b"UNICODE\0" + text.encode("utf-16-le")), with_exif("JPEG", t272=text)):
        assert fields(image) == wanted and networks(image) == networks(data)
    begun = read(png(parameters={"sui_image_params": SWARM | {"initimagecreativity": 0.4}}))
    assert begun.fields["strength"] == 0.4 and any("--init-image" in note for note in begun.notes)


def test_easy_diffusion_metadata_is_read():
    settings = {
        "prompt": "a cat++",
        "negative_prompt": "dull",
        "seed": 5,
        "use_stable_diffusion_model": "C:\\m\\sd.ckpt",
    }
    settings |= {"clip_skip": True, "sampler_name": "euler_a", "width": 512, "height": 640, "num_inference_steps": 25}
    settings |= {"guidance_scale": 7.5, "use_lora_model": ["ink", "duck"], "lora_alpha": [0.5, 0.25]}
    wanted = {"prompt": "a (cat:1.21)", "negative": "dull", "seed": 5, "steps": 25, "guidance": 7.5, "clip_skip": 2}
    wanted |= {"size": "512x640", "scheduler": "Euler a"}
    loras = [("LoRA", "ink", 0.5), ("LoRA", "duck", 0.25)]
    in_chunks = png(**{key: value if isinstance(value, str) else str(value) for key, value in settings.items()})
    in_exif = with_exif("WEBP", b"UNICODE\0" + json.dumps(settings).encode("utf-16-be"))
    for image in (in_chunks, in_exif):
        assert fields(image) == wanted and networks(image) == loras and read(image).program == "Easy Diffusion"
    old = {"Prompt": "a cat", "Negative Prompt": "dull", "Seed": "5", "Stable Diffusion model": "sd", "Sampler": "ddim"}
    old |= {"Width": "512", "Height": "512", "Steps": "25", "Guidance Scale": "7.5", "Prompt Strength": "0.6"}
    foreign = read(png(**old))
    assert foreign.fields["strength"] == 0.6 and foreign.fields["scheduler"] == "DDIM"


def xmp(comment: str) -> str:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description><xmp:CreatorTool>Draw Things</xmp:CreatorTool>'
        f'<exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">{comment}</rdf:li></rdf:Alt></exif:UserComment>'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def test_draw_things_metadata_is_read():
    settings = {"c": "a <cat> & dog", "uc": "dull", "model": "sd_v1.5.ckpt", "sampler": "DPM++ 2M Karras", "scale": 7.5}
    settings |= {
        "seed": 4279116933,
        "steps": 20,
        "strength": 1,
        "size": "512x768",
        "lora": [{"model": "ink", "weight": 0.6}],
    }
    text = xmp(json.dumps(settings).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    data = png(**{"XML:com.adobe.xmp": text})
    wanted = {"prompt": r"a <cat> & dog", "negative": "dull", "seed": 4279116933, "steps": 20, "guidance": 7.5}
    assert fields(data) == wanted | {"size": "512x768", "scheduler": "DPM++ 2M Karras"}
    assert networks(data) == [("LoRA", "ink", 0.6)]
    new = {key: value for key, value in settings.items() if key != "lora"} | {"strength": 0.5}
    new["v2"] = {"loras": [{"file": "ink.ckpt", "weight": 0.6}], "clipSkip": 2}
    out = io.BytesIO()
    Image.new("RGB", SIZE).save(
        out, "JPEG", xmp=xmp(json.dumps(new).replace("<", "&lt;").replace("&", "&amp;")).encode()
    )
    foreign = read(out.getvalue())
    assert foreign.fields["strength"] == 0.5 and foreign.fields["clip_skip"] == 2 and foreign.networks[0].name == "ink"
    with pytest.raises(UserError, match="comes from Draw Things, but its XMP holds no settings"):
        read_recipe(png(**{"XML:com.adobe.xmp": xmp("")}), "x.png")


def test_stability_matrix_metadata_is_read():
    flat = {"PositivePrompt": "a cat", "NegativePrompt": "dull", "Steps": 20, "Sampler": "Euler Ancestral Karras"}
    flat |= {"CfgScale": 5.0, "Seed": LARGEST, "Height": 768, "Width": 512, "ModelName": "v1.safetensors"}
    foreign = read(png(parameters_dash_json=flat, smproj={"State": {}}))
    assert (
        foreign.fields["seed"] == LARGEST
        and foreign.fields["size"] == "512x768"
        and foreign.program == "Stability Matrix"
    )
    foreign = read(png(parameters_dash_json=flat, smproj={"State": {}}, prompt=graph(), parameters="x"))
    assert foreign.fields["hires_scale"] == 2.0 and foreign.program == "Stability Matrix"
    state = {"Prompt": {"Prompt": "a cat", "NegativePrompt": "dull"}, "Seed": {"Seed": 5}}
    state["Sampler"] = {"Steps": 20, "CfgScale": 5, "Width": 512, "Height": 768, "SelectedSampler": {"Name": "ddim"}}
    state["Model"] = {"SelectedModelName": "v1.safetensors", "ClipSkip": 2, "IsClipSkipEnabled": True}
    wanted = {"prompt": "a cat", "negative": "dull", "seed": 5, "steps": 20, "guidance": 5, "clip_skip": 2}
    assert fields(png(smproj={"Version": 2, "State": state})) == wanted | {"size": "512x768", "scheduler": "DDIM"}


def test_civitai_metadata_is_read():
    request = {
        "prompt": "a cat",
        "negativePrompt": "dull",
        "cfgScale": 5,
        "sampler": "Euler a",
        "clipSkip": 2,
        "steps": 25,
    }
    request |= {"seed": 1311178179, "width": 1024, "height": 1024, "baseModel": "SDXL", "workflow": "txt2img"}
    request |= {
        "transformations": [{"type": "upscale"}],
        "resources": [{"type": "lora", "name": "ink", "strength": 0.4}],
    }
    upscaled = {"1": node("LoadImage", image="https://x"), "2": node("SaveImage", images=["1", 0])}
    wanted = {"prompt": "a cat", "negative": "dull", "seed": 1311178179, "steps": 25, "guidance": 5, "clip_skip": 2}
    wanted |= {"size": "1024x1024", "scheduler": "Euler a"}
    whole = json.dumps(upscaled | {"extra": {"airs": []}, "extraMetadata": json.dumps(request)})
    for data in (with_exif("JPEG", b"UNICODE\0" + whole.encode("utf-16-le")),
                 png(prompt=upscaled, extraMetadata=json.dumps(request))):  # fmt: skip
        assert fields(data) == wanted and networks(data) == [("LoRA", "ink", 0.4)] and read(data).program == "Civitai"
        assert any("Afterwards" in note for note in read(data).notes)
    text = (
        "a cat\nSteps: 25, Sampler: Euler a, CFG scale: 5, Seed: 5, Size: 1024x1024, Created Date: 2026-01-04T01:27, "
        'Civitai resources: [{"type":"checkpoint","modelVersionId":1,"modelName":"A, B"},{"type":"lora","weight":0.8,'
        '"modelVersionId":2,"modelName":"Ink"}], Civitai metadata: {}, Clip skip: 2'
    )
    foreign = read(png(parameters=text))
    assert [(lora.name, lora.strength) for lora in foreign.networks] == [("Ink", 0.8)] and foreign.fields[
        "clip_skip"
    ] == 2
    assert "It was generated with the model A, B." in foreign.notes


def test_sd_next_and_similar_metadata_is_read():
    text = (
        "a cat\nNegative prompt: dull\nSteps: 20, Size: 1024x1024, Sampler: Euler a, Seed: 5, CFG scale: 6, "
        "App: SD.Next, Version: 56a8aea, Operations: txt2img; upscale, Model: m, Hires scale: 1.5, "
        "Hires size: 1536x1536"
    )
    foreign = read(png(parameters=text))
    assert (
        foreign.program == "SD.Next"
        and foreign.fields["hires_scale"] == 1.5
        and foreign.fields["scheduler"] == "Euler a"
    )
    begun = read(png(parameters=text.replace("txt2img; upscale", "img2img").replace("Hires scale: 1.5, ", "")))
    assert "It was generated from another image: give that with --init-image." in begun.notes
    space = {"prompt": "a cat", "negative_prompt": "dull", "resolution": "832 x 1216", "guidance_scale": 5.5}
    space |= {"num_inference_steps": 24, "seed": 7, "sampler": "DPM++ 2M Karras"}
    assert fields(png(parameters=space))["size"] == "832x1216"
    ruined = {"Prompt": "a cat", "Negative": "dull", "steps": 30, "cfg": 8, "width": 64, "height": 64, "seed": 2}
    ruined |= {"sampler_name": "euler", "scheduler": "normal", "software": "RuinedFooocus", "loras": []}
    assert read(png(parameters=ruined)).program == "RuinedFooocus"


# --- A1111's text -----------------------------------------------------------------------------------------------------

TAIL = "Sampler: Euler a, CFG scale: 7, Seed: 4091609273, Size: 512x512, Model: m"


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ("Denoising strength: 0.7", {"size": "512x512", "strength": 0.7}),  # of A1111's API, for all pictures
        (
            "Denoising strength: 0.5, Hires resize: 1024x1024, Hires upscaler: Latent",
            {"hires_scale": 2.0, "strength": 0.5},
        ),
        ("Denoising strength: 0.5, Hires resize: 1024x0, Hires upscaler: Latent", {"hires_scale": 2.0}),
        ("Denoising strength: 0.5, Hires resize-1: 768, Hires resize-2: 768", {"hires_scale": 1.5}),
        ("Denoising strength: 0.7, First pass size: 256x256", {"size": "256x256", "hires_scale": 2.0, "strength": 0.7}),
        ("Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent", {"hires_scale": 2}),
        ("Hires scale: 1.5", {"hires_scale": 1.5}),
        (
            "Variation seed: 18446744073709551615, Variation seed strength: 0.1",
            {"variation_strength": 0.1, "variation_seed": LARGEST},
        ),
    ],
)
def test_infotext_of_hires_passes_and_variations_is_read(more, wanted):
    for text in (
        f"a cat\nSteps: 5, {TAIL}, {more}",
        f"a cat\r\nSTEPS: 5, {TAIL}, {more}".replace("CFG scale", "CFG Scale"),
    ):
        foreign = parse_infotext(text)
        assert foreign.fields.items() >= ({"prompt": "a cat", "steps": 5, "guidance": 7} | wanted).items()
        assert foreign.request() and not any("another picture" in note for note in foreign.notes)


def test_img2img_infotext_gives_a_note():
    foreign = parse_infotext(f"a cat\nSteps: 5, {TAIL}, Denoising strength: 0.5, Mask blur: 4")
    assert "It was generated from another image: give that with --init-image." in foreign.notes
    plain = parse_infotext(f"a cat\nSteps: 5, {TAIL}, Denoising strength: 0.5")
    assert any(note.startswith("It says a denoising strength of 0.5: if it is an") for note in plain.notes)
    odd = parse_infotext(f"a cat\nSteps: 5, {TAIL}, Denoising strength: 0.5, Hires resize: 1024x640")
    assert any("changed its shape" in note for note in odd.notes) and "enlarge" not in odd.fields


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [
        (
            f"Steps: 3 to happiness\nof a cat\nNegative prompt: a\nb\nSteps: 5, {TAIL}",
            "Steps: 3 to happiness of a cat",
            "a b",
        ),
        (f"a, Steps: 1, b: 2, c: 3\nSteps: 5, {TAIL}", "a, Steps: 1, b: 2, c: 3", ""),
        (
            f"a sign that says Negative prompt: x\nNegative prompt: y\nSteps: 5, {TAIL}",
            "a sign that says Negative prompt: x",
            "y",
        ),
        (f"a cat\nNEGATIVE PROMPT: y\nSteps: 5, {TAIL}", "a cat", "y"),
        (f'a cat\nSteps: 5, {TAIL}, Template: "one, two: \\"x\\"\nthree", Version: v1.9', "a cat", ""),
        (f'a cat\nSteps: 5, {TAIL}, Hires prompt: "two\nSteps: lines", Version: v1.9', "a cat", ""),
        (f"a\r\ncat\r\nNegative prompt: y\r\nSteps: 5, {TAIL}", "a cat", "y"),
        (f"テスト\nSteps: 5, {TAIL}", "テスト", ""),
    ],
)
def test_infotext_is_split_into_prompt_negative_and_settings(text, prompt, negative):
    foreign = parse_infotext(text)
    assert (foreign.fields["prompt"], foreign.fields["negative"], foreign.fields["steps"]) == (prompt, negative, 5)
    assert foreign.fields["seed"] == 4091609273


def test_a_random_seed_is_omitted_and_unsupported_settings_are_noted():
    foreign = parse_infotext(
        "a\nSteps: 5, Sampler: Euler a, Seed: -1, Size: 64x64, ENSD: 31337, RNG: CPU, ADetailer model: face"
    )
    assert "seed" not in foreign.fields
    assert any("-1 stands for any" in note for note in foreign.notes) and any("31337" in note for note in foreign.notes)
    assert any("ADetailer" in note for note in foreign.notes) and not any("graphics" in note for note in foreign.notes)
    foreign = parse_infotext(
        'a <lora:x:0.5:1>\nSteps: 5, Seed: 1, Size: 64x64, Lora hashes: "x: 1, y: 2", TI hashes: "z: 3"'
    )
    assert [str(network) for network in foreign.networks] == ["the LoRA x (0.5)", "the LoRA y", "the embedding z"]


# --- texts of every kind ----------------------------------------------------------------------------------------------

JAPANESE = f"#テスト, é\nSteps: 5, {TAIL}"


def test_midjourney_tensor_art_and_krita_metadata_is_read():
    job = " Job ID: 0c2a6e4e-1111-4222-8333-0123456789ab"
    data = png(Description=f"a cat, in rain --ar 16:9 --no dogs, hats --v 6.1 --seed 77{job}", Author="x")
    assert fields(data) == {"prompt": "a cat, in rain", "negative": "dogs, hats", "seed": 77}
    assert read(data).program == "Midjourney"
    request = {"prompt": "a cat", "negativePrompt": "b", "steps": 9, "seed": "4056273632", "width": 64, "height": 72}
    request |= {"models": [{"type": "LORA", "label": "ink", "weight": 0.8}, {"type": "BASE_MODEL", "label": "x"}]}
    data = png(generation_data=json.dumps(request) + "\0")
    assert fields(data) == {"prompt": "a cat", "negative": "b", "steps": 9, "seed": 4056273632, "size": "64x72"}
    assert networks(data) == [("LoRA", "ink", 0.8)] and read(data).program == "Tensor.Art"
    facts = "Steps: 9, CFG scale: 7.0, Seed: 5, Size: 64x72, RNG: cuda, Sampler: euler_a, Version: stable-diffusion.cpp"
    assert parse_infotext(f"a cat\n{facts}").program == "stable-diffusion.cpp"
    facts = "Steps: 9, Sampler: Creative - Euler a, CFG scale: 7.0, Seed: 5, Size: 64x72, Version: 5.2.2"
    assert parse_infotext(f"a cat\n{facts}").fields["scheduler"] == "Euler a"  # Krita AI Diffusion


@pytest.mark.parametrize(
    ("data", "program"),
    [
        (png(Software="Adobe Photoshop 25.0"), "comes from Adobe Photoshop 25.0, but it holds no prompt"),
        (png(prompt="a cat"), "its texts (prompt) hold no prompt that is known here"),
        (png().replace(b"IDAT", b"IDAT jumb c2pa OpenAI"), "comes from OpenAI, which signs its images (C2PA)"),
        (with_exif("JPEG", t305="PixelTool 3"), "comes from PixelTool 3"),
        (with_exif("JPEG", t271="Canon", t272="EOS 5D"), "holds no recipe"),
        (png(Title="x", Author="y"), "holds no recipe"),
    ],
)
def test_images_without_readable_metadata_are_refused(data, program):
    with pytest.raises(UserError) as refusal:
        read_recipe(data, "x.png")
    assert program in str(refusal.value)


def test_png_text_chunks_in_utf_8_and_latin_1_are_read():
    assert read(png(latin=True, parameters=JAPANESE)).text == JAPANESE
    latin = PngInfo()
    latin.add(b"tEXt", b"parameters\0" + f"café\nSteps: 5, {TAIL}".encode("latin-1"))
    out = io.BytesIO()
    Image.new("RGB", SIZE).save(out, "PNG", pnginfo=latin)
    assert read(out.getvalue()).fields["prompt"] == "café"
    assert read(png(latin=True, prompt=json.dumps(graph(**{"6": node("CLIPTextEncode", text="#テスト", clip=["4", 1])}),
                                                  ensure_ascii=False))).fields["prompt"] == "#テスト"  # fmt: skip


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + JAPANESE.encode("utf-16-be"),
        b"UNICODE\0" + JAPANESE.encode("utf-16-le"),
        b"UNICODE\0" + JAPANESE.encode("utf-16"),
        b"UNICODE\0" + JAPANESE.encode(),
        b"ASCII\0\0\0" + JAPANESE.encode(),
        b"JIS\0\0\0\0\0" + JAPANESE.replace("é", "e").encode("iso2022_jp"),
        b"JIS\0\0\0\0\0" + JAPANESE.replace("é", "e").encode("shift_jis"),
    ],
)
def test_user_comments_in_every_encoding_are_read(format, comment):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    wanted = JAPANESE if not comment.startswith(b"JIS") else JAPANESE.replace("é", "e")
    assert read(with_exif(format, comment)).text == wanted


# --- prompts that are not ours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a red cat AND a dog", "AND in capitals"),
        ("a [cat:dog:0.5] in rain", "changes words"),
        ("a [cat|dog]", "takes turns"),
        ("a cat, (bad hands:-1)", "must be a number"),
        ("a cat " * 400, "characters"),
        ("(" * 30 + "a", "brackets"),
        ("<lora:x:1>", "Nothing but LoRAs"),
        ("", "No words"),
    ],
)
def test_unsupported_prompts_are_refused_and_never_empty(prompt, reason):
    foreign = parse_infotext(f"{prompt}\nSteps: 5, {TAIL}")
    assert "prompt" not in foreign.fields and reason in str(foreign.refusal)
    assert any(note.startswith("Its prompt cannot be used as it is.") for note in foreign.notes)
    assert foreign.words == ("" if "<lora" in prompt else " ".join(prompt.split()))
    with pytest.raises(
        UserError, match=str(foreign.refusal).split("\n")[0][:20].replace("[", r"\[").replace("(", r"\(")
    ):
        foreign.request()
    assert foreign.request(prompt="a cat").prompt == "a cat"


@pytest.mark.parametrize(
    ("prompt", "syntax", "wanted"),
    [
        ("a {red|blue} __hat__", "a1111", r"a \{red|blue\} \_\_hat__"),
        ("[a] (b:1.2)", "comfyui", r"\[a\] (b:1.2)"),
        (r"\(a\) word+ (b c)0.8 (d)- e-f", "compel", r"\(a\) (word:1.1) (b c:0.8) (d:0.9) e-f"),
        ("{a}} [b] c{", "novelai", r"(a:1.05)\} (b:0.9524) c\{"),
        ("1.2::a, b:: c, 2::d", "novelai", "(a, b:1.2) c, (d:2)"),
    ],
)
def test_emphasis_of_other_programs_is_translated(prompt, syntax, wanted):
    assert translated(prompt, syntax)[0] == wanted


# --- for tools/attack -------------------------------------------------------------------------------------------------

SEEDS = [
    png(prompt=graph()),
    png(workflow=workflow()),
    png(prompt=custom()),
    png(prompt=efficient()),
    png(invokeai_metadata=INVOKE),
    png(Software="NovelAI", Comment=NAI),
    png(parameters=FOOOCUS, fooocus_scheme="fooocus"),
    png(parameters={"sui_image_params": SWARM}),
    png(parameters_dash_json={"PositivePrompt": "a", "Seed": 1, "Steps": 5}, smproj={"State": {}}),
    png(**{"XML:com.adobe.xmp": xmp('{"c": "a", "uc": "", "scale": 4, "seed": 5, "steps": 20}')}),
    with_exif("JPEG", b"UNICODE\0" + JAPANESE.encode("utf-16-be")),
    hidden(A1111, "rgb", False, "RGB"),
]


def test_every_fuzzing_seed_is_readable():
    assert all(read(data).request() for data in SEEDS)
