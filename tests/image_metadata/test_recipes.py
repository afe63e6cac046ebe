"""Recipes: checked in a request's words, in and out of pictures, in A1111's form for others, and against hostile files.

SDPERSONAL_A1111=stable-diffusion-webui also has that program read what is written (see test_other_programs.py).
"""

import getpass
import hashlib
import io
import json
import math
import os
import re
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdpersonal import __version__
from sdpersonal.concepts.exporters import export
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import UserError
from sdpersonal.image_metadata import (
    Foreign,
    Recipe,
    RecipeBase,
    RecipeConcept,
    describe_presence,
    pixels_sha256,
    png_with_recipe,
    read_recipe,
)
from sdpersonal.image_metadata.comfyui_graph import graph_in
from sdpersonal.image_metadata.read_infotext import parse_infotext
from sdpersonal.image_metadata.write_infotext import format_infotext
from sdpersonal.prompts import parse
from support.samples import concept, embedding

PICTURE = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
A, B, C = "a" * 64, "b" * 64, "c" * 64
FIELDS = {
    "sdpersonal": __version__,
    "prompt": "a photo of <me/duck:0.8> in the rain",
    "seed": 7,
    "steps": 25,
    "guidance": 7.5,
    "size": "512x640",
    "sampler": "DPMSolverMultistep",
    "base": {"name": "sd15", "kind": "sd1", "sha256": A},
    "concepts": [{"token": "<me/duck-v1>", "sha256": B, "strength": 0.8, "vectors": True, "lora": True}],
}
EXAMPLES = 10_000 if os.environ.get("SDPERSONAL_THOROUGH") else 200
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def recipe(**changes) -> Recipe:
    return Recipe(**(FIELDS | changes))


def with_presence(**changes) -> Recipe:
    presence = {"share": 0.25, "box": [0, 0.25, 0.5, 1], "overlap": 0.125, "heat": "0f" * 32} | changes
    return recipe(concepts=[FIELDS["concepts"][0] | {"presence": presence}])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Read by this test alone."""
    pairs, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        pairs.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return pairs


def with_chunks(*parts: bytes) -> bytes:
    bare = png_with_recipe(PICTURE, None)
    return bare[:33] + b"".join(parts) + bare[33:]  # behind IHDR


def ours(text: str | bytes) -> bytes:
    return with_chunks(chunk(b"iTXt", b"sdpersonal\0\0\0\0\0" + (text if isinstance(text, bytes) else text.encode())))


def theirs(text: str) -> bytes:
    return with_chunks(chunk(b"iTXt", b"parameters\0\0\0\0\0" + text.encode("utf-8", "surrogatepass")))


# --- the class --------------------------------------------------------------------------------------------------------


def test_a_recipe_gives_the_request_of_its_image():
    saved_recipe = recipe(
        near=0.25, near_seed=9, enlarge=2.0, rescale=0.5, change=0.4, negative="rain", fast="<them/lcm>"
    )
    values = {name: getattr(saved_recipe, name) for name in GenerateRequest.model_fields if name in Recipe.model_fields}
    assert saved_recipe.request() == GenerateRequest(
        **(values | {"init_image": None, "mask": None, "scheduler": None}), num_images=1
    )
    assert saved_recipe.request().fast == "<them/lcm>" and recipe().request().fast is None
    began = recipe(start=C, mask=A)
    assert began.request(Path("a.png"), Path("b.png")).mask == Path("b.png")


def test_batch_request_restores_the_whole_batch():
    assert recipe(batch=4, place=2).batch_request().model_dump() == recipe().request().model_dump() | {
        "num_images": 4,
        "seed": 5,
    }
    assert recipe(batch=4, place=3, seed=1).batch_request().seed == 2**64 - 2
    near = recipe(batch=2, place=1, near=0.1, near_seed=9).batch_request()
    assert (near.seed, near.variation_seed, near.num_images) == (7, 8, 2)


WRONG = [math.nan, math.inf, -1, 0, 1e308, 2.5, "7", True, None, 2**64, [1], {}, b"x"]


@pytest.mark.parametrize(
    "name",
    ["seed", "steps", "guidance", "rescale", "variation_strength", "variation_seed", "strength", "hires_scale", "size"],
)
def test_recipe_and_request_give_the_same_error_message(name):
    refused = 0
    for value in WRONG:
        try:
            GenerateRequest(**{"prompt": "x", name: value})
        except UserError as error:
            refused += 1
            with pytest.raises(UserError) as refusal:
                recipe(**{name: value})
            assert str(refusal.value) == str(error)
    assert refused >= 9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": 5}, "A prompt must be text"),
        ({"template": 5}, "template must be text"),
        ({"template": "x" * 2001}, "template must be text of up to 2,000"),
        ({"prompt": "<no token>"}, "is not a concept's token"),
        ({"steps": None}, "steps is needed"),
        ({"size": None}, "size is needed"),
        ({"sdpersonal": 1}, "sdpersonal must be text"),
        ({"sampler": "rm -rf /"}, "sampler must be"),
        ({"base": "tiny"}, "base must be"),
        ({"base": {"name": "x", "kind": "flux", "sha256": A}}, "kind must be one of tiny, sd1, sd2, sdxl"),
        ({"base": {"name": "x", "kind": "sd1", "sha256": "A" * 64}}, "64 hexadecimal digits"),
        ({"concepts": [1]}, "concepts must be"),
        ({"concepts": [FIELDS["concepts"][0]] * 65}, "concepts must be"),
        ({"concepts": [FIELDS["concepts"][0] | {"token": "../../etc"}]}, "is not a concept's token"),
        ({"concepts": [FIELDS["concepts"][0] | {"vectors": 1}]}, "vectors must be yes or no"),
        ({"concepts": [FIELDS["concepts"][0] | {"strength": math.nan}]}, "strength must be a number from -100"),
        ({"init_image": "/etc/passwd"}, "64 hexadecimal digits"),
        ({"mask": A}, "a mask and no initial image"),
        ({"init_image": A, "hires_scale": 2.0}, "--hires-scale"),
        ({"fast": "<no token>"}, "is not a concept's token"),
        ({"batch": 0}, "batch must be a whole number from 1 to 64"),
        ({"batch": 2, "place": 2}, "place must be below batch"),
    ],
)
def test_invalid_recipe_fields_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        recipe(**changes)


def test_unknown_keys_are_ignored():
    strange = {"self": 1, "cls": 2, "__class__": 3, "num_images": 9, "all_combinations": True, "loader": "os.system"}
    inner = {"base": FIELDS["base"] | strange, "concepts": [FIELDS["concepts"][0] | strange]}
    assert Recipe(**(FIELDS | inner), **strange) == recipe()


def test_old_recipes_can_be_read():
    """As pictures had them before there were variations: some keys are missing."""
    old = {name: FIELDS[name] for name in ("prompt", "seed", "steps", "guidance", "size", "sampler", "base")}
    old |= {
        "sdpersonal": "0.0.9",
        "negative": "",
        "concepts": [{"token": "<me/duck-v1>", "sha256": B, "strength": 1.0}],
    }
    assert read_recipe(ours(json.dumps(old))) == Recipe(**old)


def test_pixels_sha256_depends_only_on_size_and_pixels(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    PICTURE.save(tmp_path / "a.webp", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    assert {pixels_sha256(Image.open(tmp_path / name)) for name in ("a.png", "a.webp")} == {pixels_sha256(PICTURE)}
    assert pixels_sha256(Image.new("RGB", (2, 8))) != pixels_sha256(Image.new("RGB", (4, 4)))
    changed = PICTURE.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    assert pixels_sha256(changed) != pixels_sha256(PICTURE)


def test_the_recipe_stores_presence_only_if_it_is_known():
    data = png_with_recipe(PICTURE, with_presence())
    assert read_recipe(data) == with_presence()
    assert describe_presence(with_presence()) == [
        "<me/duck-v1> 25%, 0% to 50% across, 25% to 100% down, 12% of it in another"
    ]
    assert describe_presence(with_presence(overlap=0)) == ["<me/duck-v1> 25%, 0% to 50% across, 25% to 100% down"]
    assert recipe().concepts[0].presence is None and "presence" not in recipe().to_json()
    assert describe_presence(recipe()) == [] and format_infotext(recipe()) == format_infotext(with_presence())


@pytest.mark.parametrize(
    "changes",
    [
        *({"share": value} for value in (-0.001, 1.001, math.nan, math.inf, "0.5", True, None, [0.5])),
        *({"overlap": value} for value in (-1, 2, math.nan, "", None)),
        *({"box": value} for value in ([0, 0, 1], [0, 0, 1, 1, 1], [0.5, 0, 0.5, 1], [0, 1, 1, 0], [0, 0, 1, 1.5])),
        *({"box": value} for value in ("0,0,1,1", None, 1, [0, 0, "1", 1], [True, 0, 1, 1], [math.nan, 0, 1, 1])),
        *({"heat": value} for value in ("f" * 63, "f" * 65, "F" * 64, "g" * 64, "f" * 64 + "\n", 1, None, "f" * 10**6)),
    ],
)
def test_invalid_presence_values_are_refused(changes):
    with pytest.raises(UserError) as caught:
        with_presence(**changes)
    assert len(str(caught.value)) < 300
    with pytest.raises(UserError):
        recipe(concepts=[FIELDS["concepts"][0] | {"presence": changes}])  # the others are missing


# --- in a picture -----------------------------------------------------------------------------------------------------


def test_a_png_contains_its_recipe():
    data = png_with_recipe(PICTURE, recipe())
    assert read_recipe(data) == recipe() and data == png_with_recipe(PICTURE, recipe())
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.tobytes() == PICTURE.tobytes()
        assert json.loads(picture.text["sdpersonal"])["concepts"][0]["sha256"] == B
        assert picture.text["parameters"] == format_infotext(recipe())
    assert [kind for kind, _ in chunks(data)] == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]


def test_a_private_png_contains_no_metadata():
    given = PICTURE.copy()
    given.info |= {"exif": b"Exif\0\0secret", "icc_profile": b"secret" * 50, "comment": "secret", "dpi": (72, 72)}
    text = PngInfo()
    text.add_text("secret", "secret")
    given.info["pnginfo"] = text
    data = png_with_recipe(given, None)
    assert {kind for kind, _ in chunks(data)} == {b"IHDR", b"IDAT", b"IEND"}
    assert data == png_with_recipe(PICTURE, None) and len(data) == 8 + sum(
        12 + len(content) for _, content in chunks(data)
    )
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.info == {} and not picture.getexif()
    with pytest.raises(UserError, match="holds no recipe"):
        read_recipe(data)
    assert b"secret" not in png_with_recipe(
        given, recipe()
    )  # nor does what the picture came from get in beside the recipe


def test_the_metadata_contains_nothing_about_the_machine():
    data = png_with_recipe(PICTURE, recipe())
    secrets = [str(Path.home()), os.getcwd(), os.environ["HOME"], time.strftime("%Y-%m-%d"), *time.tzname[:1]]
    secrets += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4]
    text = b" ".join(content for kind, content in chunks(data) if kind.endswith(b"Xt")).decode()
    assert not [secret for secret in secrets if secret in text and secret != "UTC"]


@st.composite
def recipes(draw):
    word = st.text(st.characters(codec="utf-8", exclude_characters="<>()[]{}\\:_"), max_size=60).filter(
        lambda text: "AND" not in text
    )
    bracket = st.sampled_from(
        ["", "<me/duck>", "<me/duck:0.5@0-0.5>", "<me/duck+them/ink>", "(x:1.2)", r"\<b\> \{", "[x]"]
    )
    prompt = draw(word) + draw(bracket) + draw(word)
    concepts = [
        {"token": token, "sha256": draw(st.sampled_from([A, B, C])), "vectors": draw(st.booleans())}
        | {"lora": draw(st.booleans()), "words": draw(word), "strength": draw(st.floats(-5, 5))}
        for token in draw(st.lists(st.sampled_from(["<me/duck-v1>", "<them/ink-v12>"]), unique=True))
    ]
    return recipe(
        prompt=prompt,
        negative=draw(word),
        template=draw(word),
        seed=draw(st.integers(0, 2**64 - 1)),
        near=draw(st.none() | st.floats(0.01, 1)),
        guidance=draw(st.floats(1, 30)),
        enlarge=draw(st.floats(1, 2)),
        base=FIELDS["base"] | {"name": draw(word)},
        concepts=concepts,
    )


@fuzz
@given(recipes())
def test_every_recipe_round_trips_through_png_and_infotext(found):
    data = png_with_recipe(PICTURE, found)
    assert read_recipe(data) == found
    with Image.open(io.BytesIO(data)) as picture:  # Pillow's own limits hold
        text = picture.text["parameters"]
    read = parse_infotext(text)
    assert read.fields["seed"] == found.seed and read.fields["steps"] == found.steps and "\0" not in text
    assert details(text)["Seed"] == str(found.seed)


# --- in A1111's form --------------------------------------------------------------------------------------------------


def details(text: str) -> dict[str, str]:
    """The last line, by a reader of this test's own: commas part, quotes hold together, backslashes escape in them."""
    parts, part, quoted, escaped = [], "", False, False
    for letter in text.split("\n")[-1] + ",":
        if letter == "," and not quoted:
            parts.append(part.strip())
            part = ""
            continue
        if letter == '"' and not escaped:
            quoted = not quoted
        escaped = letter == "\\" and not escaped
        part += letter
    pairs = (fact.partition(": ") for fact in parts if not fact.startswith('"embed:'))
    return {key: json.loads(value) if value.startswith('"') else value for key, _, value in pairs}


FOX = {"token": "<me/fox-v2>", "sha256": C, "strength": 0.7, "lora": True, "words": "sks fox"}


def test_the_infotext_of_a_recipe_is_complete():
    saved_recipe = recipe(
        prompt="a (photo:1.2) of <me/duck:0.8@0-0.6> and <FOX>,\n日本",
        negative="<me/duck> blurry",
        concepts=[*FIELDS["concepts"], FOX, {"token": "<them/lcm-v1>", "sha256": A, "lora": True}],
        base={"name": "a, b: c", "kind": "sd1", "sha256": A},
        near=0.1,
        near_seed=3,
        enlarge=1.5,
        change=0.45,
        fast="<them/lcm>",
    )
    assert format_infotext(saved_recipe) == (
        "a (photo:1.2) of (me-duck:0.8) <lora:me-duck:0.8> and sks fox <lora:me-fox:0.7>, 日本 <lora:them-lcm:1>\n"
        "Negative prompt: me-duck blurry\n"
        "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 512x640, "
        'Model hash: aaaaaaaaaa, Model: "a, b: c", Variation seed: 3, Variation seed strength: 0.1, '
        "Denoising strength: 0.45, Compose: False, RNG: CPU, Hires upscale: 1.5, Hires upscaler: Lanczos, "
        'Lora hashes: "me-duck: bbbbbbbbbbbb, me-fox: cccccccccccc, them-lcm: aaaaaaaaaaaa", '
        f'TI hashes: "me-duck: bbbbbbbbbbbb", Version: sdpersonal {__version__}, '
        'Hashes: {"embed:me-duck": "bbbbbbbbbbbb"}'
    )
    assert details(format_infotext(saved_recipe))["Model"] == "a, b: c"
    slider = [FIELDS["concepts"][0] | {"strength": -1.5}, FOX | {"strength": -3}]
    assert format_infotext(recipe(prompt="a <me/duck:-1.5>, <fox:-3>", concepts=slider)).startswith(
        "a (me-duck:0) <lora:me-duck:-1.5>, sks fox <lora:me-fox:-3>\n"
    )
    assert format_infotext(recipe(concepts=[], prompt="a duck", sampler="DDIM")).startswith(
        "a duck\nSteps: 25, Sampler: DDIM, CFG"
    )


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("<fox:0.7:at=left:guidance=2:ramp=0-1@0-0.6>", "<lora:me-fox:0.7>"),
        ("<me/fox:0.7:lbw=ind>", f"<lora:me-fox:0.7:lbw=1{',0' * 5}{',1' * 7}{',0' * 13}>"),
        ("<me/fox:0.7:in=0:mid=0.5>", f"<lora:me-fox:0.7:lbw=1{',0' * 12},0.5{',1' * 12}>"),
        ("<fox:0.1:lbw=MID>, <fox:0.7:lbw=OUT03>", "<lora:me-fox:0.7:lbw=0,0,0,0,0,0,0,0,0,1,0,0>"),
        ("<fox:0.1:lbw=MID>, <me/fox-v2:0.7>", "<lora:me-fox:0.7>"),
        (r"\<fox:0.7:lbw=MID\> <duck:0.5:lbw=IN04+fox:0.7>", "<lora:me-fox:0.7>"),
    ],
)
def test_block_weights_are_written_in_the_extensions_syntax(prompt, tag):
    """Strengths are the recipe's, which are those of the mention farthest from 0; so are the block weights."""
    text = format_infotext(recipe(prompt=prompt, concepts=[FOX])).split("\n")[0]
    assert re.findall(r"<lora:me-fox[^>]*>", text) == [tag]
    [fox] = [network for network in parse_infotext(f"{text}\nSteps: 5, Seed: 1, Size: 64x64").networks]
    written = re.search(r"<(?:me/)?fox(?:-v2)?:0.7[^>]*>", prompt)
    expected = parse(written[0]).mentions[0].blocks if written and "lbw" in tag else None
    assert (fox.name, fox.strength, fox.blocks) == ("me-fox", 0.7, expected)


@pytest.mark.parametrize(
    ("tag", "network"),
    [
        ("<lora:x:0.8:lbw=OUTALL>", "the LoRA x (0.8:in=0:mid=0)"),
        ("<lora:x:0.8:LBW=MIDD:stop=10>", "the LoRA x (0.8:lbw=MIDD)"),
        ("<lora:x:0.8:INS>", "the LoRA x (0.8:lbw=INS)"),
        ("<lyco:x:1:1:lbw=1,0,0,0,0,0,0,0,0.5,0,0,0>", "the LoRA x (1:lbw=1,0,0,0,0,0,0,0,0.5,0,0,0)"),
        ("<lora:x:0.8:lbw=MYSETS>", "the LoRA x (0.8)"),
        ("<lora:x:0.8:lbw=R,0,0,0,0,0,0,0,0,0,0,0>", "the LoRA x (0.8)"),
        ("<lora:x:0.8:0.5>", "the LoRA x (0.8)"),
        ("<lora:x:lbw=ALL>", "the LoRA x"),
    ],
)
def test_block_weights_in_infotext_are_read(tag, network):
    foreign = parse_infotext(f"a cat {tag}\nSteps: 5, Seed: 1, Size: 64x64")
    assert [str(part) for part in foreign.networks] == [network] and foreign.fields["prompt"] == "a cat"
    assert f"Not loaded: {network}." in foreign.notes
    if "(" in network:
        assert parse(f"<me/x:{network.partition('(')[2][:-1]}>")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<me/duck>", "me-duck <lora:me-duck:0.8>"),
        ("<duck> <me/duck-v1>", "me-duck <lora:me-duck:0.8> me-duck"),
        ("<me/fox>, <me/fox:0.1>", "sks fox <lora:me-fox:0.7>, sks fox"),
        ("<me/duck+me/fox>", "(me-duck:0.5) <lora:me-duck:0.8> sks fox <lora:me-fox:0.7>"),
        ("a < b", "a < b"),
        (r"\<b\> \{x\} \(y\)", r"\<b\> \{x\} \(y\)"),  # a backslash means there what it means here
        ("<you/unknown:0.5>", "you-unknown"),
        ("Negative prompt: x\nSteps: 5, b: 1, c: 2", "Negative prompt : x Steps : 5, b: 1, c: 2"),
        ("  a\t\nb\x00\x1b\u202ec ", "a bc"),
    ],
)
def test_concepts_become_lora_tags_in_the_infotext(prompt, said):
    loras = {"<me/duck-v1>": "<lora:me-duck:0.8>", "<me/fox-v2>": "<lora:me-fox:0.7>"}
    text = format_infotext(recipe(prompt=prompt, concepts=[*FIELDS["concepts"], FOX])).split("\n")
    for lora in loras.values():
        assert text[0].count(lora) == 1  # each once, wherever the prompt has it
    left = text[0]
    for lora in loras.values():
        left = left if lora in said else left.replace(f" {lora}", "").replace(lora, "")
    assert left == said and text[-1].startswith("Steps: 25")


@pytest.mark.parametrize("parts", ["both", "vectors", "lora"])
def test_infotext_hashes_match_the_exported_files(parts):
    """A1111's `addnet_hash_safetensors`, Civitai's AutoV3: over the bytes after the header of what we export."""
    source = embedding() if parts == "vectors" else concept() if parts == "both" else concept(vectors={})
    (data,) = (data for name, data in export(source, "native").files.items() if name.endswith(".safetensors"))
    (length,) = struct.unpack("<Q", data[:8])
    short = hashlib.sha256(data[8 + length :]).hexdigest()[:12]
    part = {
        "token": "<me/duck-v1>",
        "sha256": source.identity,
        "vectors": bool(source.vectors),
        "lora": bool(source.lora),
    }
    facts = details(format_infotext(recipe(concepts=[part])))
    assert (
        facts.get("TI hashes", f"me-duck: {short}")
        == facts.get("Lora hashes", f"me-duck: {short}")
        == f"me-duck: {short}"
    )
    assert ("TI hashes" in facts, "Lora hashes" in facts) == (bool(source.vectors), bool(source.lora))
    if source.lora:  # what A1111 reads from the header before it computes anything
        assert json.loads(data[8 : 8 + length])["__metadata__"]["sshs_model_hash"][:12] == short


@pytest.mark.slow
def test_a1111_reads_the_infotext(tmp_path):
    checkout = os.environ.get("SDPERSONAL_A1111")
    if not checkout or not Path(checkout).is_dir():
        pytest.skip("no checkout of a1111: set SDPERSONAL_A1111 to its folder")
    saved_recipes = [
        recipe(),
        recipe(
            prompt="Negative prompt: x\nSteps: 1, a: 2, b: 3",
            negative="Steps: 5,\nb",
            base=FIELDS["base"] | {"name": 'a, "b": c'},
        ),
        recipe(
            near=0.25, near_seed=3, enlarge=2.0, change=0.4, concepts=[*FIELDS["concepts"], FOX], prompt="(a:1.2) <fox>"
        ),
        recipe(prompt="", concepts=[], guidance=1.25),
        recipe(prompt="日本 \u202e \x00", concepts=[]),
    ]
    script = Path(__file__).parents[1] / "peers" / "a1111_text.py"
    texts = json.dumps([format_infotext(saved_recipe) for saved_recipe in saved_recipes])
    done = subprocess.run(
        [sys.executable, script, checkout], input=texts, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    read = json.loads(done.stdout.splitlines()[-1])
    for saved_recipe, there in zip(saved_recipes, read, strict=True):
        assert (there["Seed"], there["Steps"], there["CFG scale"]) == (
            str(saved_recipe.seed),
            "25",
            f"{saved_recipe.guidance:g}",
        )
        assert f"{there['Size-1']}x{there['Size-2']}" == saved_recipe.size and there["RNG"] == "CPU"
        assert (there["Sampler"], there["Schedule type"]) == ("DPM++ 2M", "Karras")
        assert there["Model"] == saved_recipe.base.name and there["Model hash"] == A[:10]
    assert read[0]["Prompt"] == "a photo of (me-duck:0.8) <lora:me-duck:0.8> in the rain"
    assert read[0]["Lora hashes"] == read[0]["TI hashes"] == f"me-duck: {B[:12]}"
    assert read[1]["Negative prompt"] == "Steps : 5, b" and read[1]["Prompt"].startswith(
        "Negative prompt : x Steps : 1"
    )
    assert (read[2]["Variation seed"], read[2]["Variation seed strength"]) == ("3", "0.25")
    assert (read[2]["Hires upscale"], read[2]["Denoising strength"]) == ("2", "0.4")
    assert read[3]["Prompt"] == read[3]["Negative prompt"] == "" and read[4]["Prompt"] == "日本"


# --- other programs' pictures -----------------------------------------------------------------------------------------

THEIR_TEXT = (
    "a cat, (sharp:1.2) {x} __name__ <lora:add-detail:0.6> <Not one> <cat-toy>\nof two lines\n"
    "Negative prompt: easynegative, <3\nblurry\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 6.5, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, Model: v1-5, "
    "Denoising strength: 0.4, Clip skip: 2, Variation seed: 11, Variation seed strength: 0.3, Hires upscale: 1.5, "
    'Hires upscaler: Latent, Lora hashes: "add-detail: 7c6bad76eb54", TI hashes: "easynegative: c74b4e810b03", '
    "Version: v1.9.4"
)


def test_supported_infotext_settings_are_read():
    foreign = read_recipe(theirs(THEIR_TEXT))
    assert isinstance(foreign, Foreign) and foreign.text == THEIR_TEXT
    assert dict(foreign.fields) == {
        "prompt": r"a cat, (sharp:1.2) \{x\} \_\_name__ \<Not one> <cat-toy> of two lines",
        "negative": "easynegative, <3 blurry",
        "steps": 20,
        "guidance": 6.5,
        "seed": 965400086,
        "size": "512x768",
        "variation_strength": 0.3,
        "variation_seed": 11,
        "hires_scale": 1.5,
        "strength": 0.4,
        "scheduler": "Euler a",
        "clip_skip": 2,
    }
    assert foreign.notes == (
        "Not loaded: the LoRA add-detail (0.6).",
        "Not loaded: the embedding easynegative.",
        "It was generated with the model v1-5.",
        "Its noise was generated on a GPU: the same seed begins from other noise here.",
    )
    assert foreign.request(num_images=2, seed=1) == GenerateRequest(
        **(dict(foreign.fields) | {"num_images": 2, "seed": 1})
    )


def test_unsupported_infotext_settings_are_omitted_and_noted():
    text = "a cat\nSteps: 500, Sampler: DPM fast, CFG scale: nan, Seed: 99999999999999999999, Size: 513x512, RNG: CPU"
    foreign = parse_infotext(text)
    assert dict(foreign.fields) == {"prompt": "a cat", "negative": ""} and len(foreign.notes) == 5
    assert foreign.notes[0] == "Left out: steps must be a whole number from 1 to 150, got 500."
    assert all(note.startswith("Left out: ") for note in foreign.notes[:4]) and "DPM fast" in foreign.notes[4]
    assert "--init-image" in parse_infotext("x\nSteps: 20, Denoising strength: 0.5, Size: 512x512").notes[-1]
    assert "near" not in parse_infotext("x\nSteps: 20, Variation seed strength: 0, Size: 512x512").fields
    assert parse_infotext("a cat\nof no kind") is None and parse_infotext("") is None


def exif(comment: bytes) -> bytes:
    """By Pillow, which is not how we read it."""
    made = Image.Exif()
    made.get_ifd(0x8769)[0x9286] = comment
    return made.tobytes()


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + THEIR_TEXT.encode("utf-16-be"),  # piexif's, which A1111 uses
        b"UNICODE\0" + THEIR_TEXT.encode("utf-16-le"),
        b"UNICODE\0" + THEIR_TEXT.encode("utf-16"),
        b"ASCII\0\0\0" + THEIR_TEXT.encode(),
        bytes(8) + THEIR_TEXT.encode(),
        THEIR_TEXT.encode(),
    ],
)
def test_infotext_in_jpeg_and_webp_is_read(format, comment):
    out = io.BytesIO()
    PICTURE.save(out, format, exif=exif(comment))
    assert read_recipe(out.getvalue()).text == THEIR_TEXT


def test_every_kind_of_png_text_chunk_is_read():
    text = "日本 a cat\nSteps: 20, Size: 512x512, Seed: 5"
    plain = text.removeprefix("日本 ")
    packed = zlib.compress(text.encode())
    for data, wanted in [
        (with_chunks(chunk(b"tEXt", b"parameters\0" + plain.encode())), plain),
        (with_chunks(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(plain.encode()))), plain),
        (with_chunks(chunk(b"iTXt", b"parameters\0\1\0en\0Einstellungen\0" + packed)), text),
        (with_chunks(chunk(b"tEXt", b"other\0x"), chunk(b"iTXt", b"parameters\0\0\0\0\0" + text.encode())), text),
    ]:
        assert read_recipe(data).text == wanted
    both = with_chunks(
        chunk(b"tEXt", b"parameters\0" + plain.encode()),
        chunk(b"iTXt", b"sdpersonal\0\0\0\0\0" + recipe().to_json().encode()),
    )
    assert read_recipe(both) == recipe()  # ours before theirs, wherever they stand


# --- hostile pictures -------------------------------------------------------------------------------------------------

GOOD = png_with_recipe(PICTURE, recipe())
JSON = recipe().to_json()
TIFF = b"II*\0\x08\0\0\0"


def entry(tag: int, count: int, value: int) -> bytes:
    return struct.pack("<HHII", tag, 4, count, value)


CUT = zlib.compress(b"x" * 1_900_000)[:-6]
HOSTILE = {
    "64 MB of ours": lambda: ours(b"[" * 64_000_000),
    "64 MB of theirs": lambda: with_chunks(chunk(b"tEXt", b"parameters\0" + b'a: "' * 16_000_000)),
    "a bomb in zTXt": lambda: with_chunks(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(60_000_000)))),
    "a bomb in iTXt": lambda: with_chunks(chunk(b"iTXt", b"sdpersonal\0\1\0\0\0" + zlib.compress(bytes(60_000_000)))),
    "broken zlib": lambda: with_chunks(chunk(b"iTXt", b"sdpersonal\0\1\0\0\0" + b"x" * 100)),
    "cut zlib": lambda: with_chunks(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 999)[:-5])),
    "no end of the language": lambda: with_chunks(chunk(b"iTXt", b"sdpersonal\0\0\0" + b"x" * 5000)),
    "lists 10^5 deep": lambda: ours("[" * 100_000),
    "objects 10^5 deep": lambda: ours('{"a":' * 49_000),
    "not UTF-8": lambda: ours(b"\xff\xfe\x00{"),
    "not JSON": lambda: ours("__import__('os').system('touch PWNED')"),
    "a list": lambda: ours("[]"),
    "nothing": lambda: ours(""),
    "NaN": lambda: ours(JSON.replace('"guidance": 7.5', '"guidance": NaN')),
    "infinite": lambda: ours(JSON.replace('"guidance": 7.5', '"guidance": 1e999')),
    "a long number": lambda: ours(JSON.replace('"seed": 7', f'"seed": {"9" * 5000}')),
    "keys twice": lambda: ours(JSON[:-1] + ', "seed": 8}'),
    "wrong types": lambda: ours(json.dumps({key: {"a": [1]} for key in json.loads(JSON)})),
    "a prompt of 200 kB": lambda: ours(JSON.replace("in the rain", "x" * 200_000)),
    "brackets": lambda: ours(JSON.replace("in the rain", "(" * 1900)),
    "a script": lambda: ours(JSON.replace("in the rain", "<script>alert(1)</script>")),
    "a path for a token": lambda: ours(JSON.replace("<me/duck-v1>", "<../../etc/passwd>")),
    "a path for a picture": lambda: ours(JSON.replace('"start": ""', '"start": "/etc/passwd"')),
    "30,000 chunks": lambda: with_chunks(chunk(b"tEXt", b"") * 30_000),
    "a chunk longer than the file": lambda: GOOD[:33] + b"\xff\xff\xff\xffiTXt" + GOOD[41:],
    "no picture": lambda: b"sdpersonal" * 1000,
    "nothing at all": lambda: b"",
    "only a signature": lambda: GOOD[:8],
    "an embedding as a pickle": lambda: with_chunks(chunk(b"tEXt", b"sd-ti-embedding\0gAJjb3MK")),
    "many keys": lambda: theirs("x\nSteps: 1, " + "a: 1, " * 40_000),
    "quotes": lambda: theirs("x\n" + 'a: "\\", ' * 30_000),
    "spaces": lambda: theirs("x\n" + " " * 240_000 + "Steps: 1, a: 2, b: 3"),
    "words": lambda: theirs("x\n" + "a " * 120_000),
    "brackets of theirs": lambda: theirs("<lora:" * 40_000 + "\nSteps: 1, b: 2, c: 3"),
    "lines": lambda: theirs("\n" * 240_000 + "Steps: 1, b: 2, c: 3"),
    "their numbers": lambda: theirs(f"x\nSteps: {'9' * 5000}, Seed: -0, CFG scale: 1e5, Size: 0x0, Hires upscale: Ⅷ"),
    "a lone surrogate": lambda: theirs("\ud800\nSteps: 1, b: 2, c: 3"),
    "a TIFF that points at itself": lambda: jpeg(TIFF + b"\xff\xff" + entry(0x8769, 1, 8) * 99),
    "a comment without end": lambda: jpeg(TIFF + b"\1\0" + entry(0x8769, 1, 22) + b"\1\0" + entry(0x9286, 4**15, 9)),
    "entries that overlap": lambda: jpeg(*overlapping(2000, 600_000)),
    "empty texts that overlap": lambda: with_chunks(chunk(b"eXIf", b"".join(overlapping(999, 900_000, 0x010F, b"\0")))),
    "texts without an end": lambda: with_chunks(chunk(b"zTXt", b"prompt\0\0" + CUT) * 2000),
    "empty segments": lambda: b"\xff\xd8" + b"\xff\xe0\0\2" * 30_000,
    "a WebP of empty chunks": lambda: b"RIFF\xff\xff\xff\xffWEBP" + b"JUNK\0\0\0\0" * 30_000,
}  # fmt: skip


def jpeg(*tiff: bytes) -> bytes:
    """Build a JPEG without pixels whose Exif is the parts of `tiff`, one segment each."""
    parts = [b"Exif\0\0" + part for part in tiff]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part for part in parts)
    return b"\xff\xd8" + segments + b"\xff\xda"


def overlapping(count: int, size: int, tag: int = 0x9286, filling: bytes = b"x") -> list[bytes]:
    """Build Exif of `size` bytes, in parts, with `count` texts that each take nearly all of it, or its filling."""
    begin = 10 + 12 * count if filling == b"\0" else 9
    entries = b"".join(struct.pack("<HHII", tag, 7, size - 12 * count - 20, begin) for _ in range(count))
    tiff = (TIFF + struct.pack("<H", count) + entries).ljust(size, filling)
    return [tiff[at : at + 65_000] for at in range(0, size, 65_000)]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_use_little_time_and_memory(name, monkeypatch):
    data = HOSTILE[name]()

    def opened(*_, **__):
        raise AssertionError("something was opened")

    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "stat", opened)
    tracemalloc.start()
    began = time.process_time()
    try:
        outcome = read_recipe(data, "x.png")
    except UserError as error:
        outcome = error
    took, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 3 and peak < 20_000_000, (took, peak)  # under tracemalloc, ten times as slow as without
    if isinstance(outcome, UserError):
        assert str(outcome).isprintable() or str(outcome).count("\n") <= 2
        assert len(str(outcome)) < 500 and "x.png" in str(outcome)


def test_hostile_texts_are_refused_with_a_message():
    with pytest.raises(UserError, match=r"^The recipe in x\.png is refused: its text is longer than 250 kB\.$"):
        read_recipe(HOSTILE["64 MB of ours"](), "x.png")
    with pytest.raises(UserError, match="nested too deeply"):
        read_recipe(HOSTILE["lists 10^5 deep"](), "x.png")
    with pytest.raises(UserError, match=r"is refused\. /script is not a concept's token"):
        read_recipe(HOSTILE["a script"](), "x.png")
    with pytest.raises(UserError, match="holds no recipe"):
        read_recipe(HOSTILE["an embedding as a pickle"](), "x.png")


SEEDS = [
    GOOD,
    png_with_recipe(PICTURE, None),
    theirs(THEIR_TEXT),
    jpeg(exif(b"UNICODE\0" + THEIR_TEXT.encode("utf-16-be"))),
]


@st.composite
def spoiled(draw):
    """A picture with bytes changed, put in, taken out, or cut off."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                data[at:at] = draw(st.binary(max_size=20))
            case 2:
                del data[at : at + draw(st.integers(1, 50))]
            case 3:
                del data[at:]
    return bytes(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20) | st.just(A),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*FIELDS, "self", "token"]), inner, max_size=3)
    ),
    max_leaves=6,
)
strange_recipes = st.dictionaries(st.sampled_from([*Recipe.model_fields, "self"]), json_values).map(
    lambda changes: ours(json.dumps(json.loads(JSON) | changes))
)
strange_texts = st.lists(
    st.sampled_from(
        ["Steps", "Seed", "Size", ": ", ", ", '"', "\\", "<lora:", ">", "\n", "{", "__", "1", "Negative prompt:"]
    )
    | st.text(max_size=5),
    max_size=40,
).map(lambda parts: theirs("".join(parts) + "\nSteps: 5, Size: 64x64, Seed: 1"))


@fuzz
@given(spoiled() | strange_recipes | strange_texts)
def test_any_image_data_is_read_or_refused(data):
    try:
        outcome = read_recipe(data, "x.png")
        assert outcome.request().num_images == 1
    except UserError as error:
        assert len(str(error)) < 3000
        return
    if isinstance(outcome, Recipe):
        assert read_recipe(png_with_recipe(PICTURE, outcome)) == outcome


def test_a_recipe_accepts_base_and_concept_objects():
    """As the generator does it."""
    base = RecipeBase(name="tiny", kind="tiny", sha256=A)
    duck = RecipeConcept(token="<me/duck>", sha256=B, strength=0.5, vectors=True)
    assert recipe(base=base, concepts=(duck,)).concepts[0].token == "<me/duck>"


def test_a_repeated_subgraph_is_read_quickly():
    subgraph = {"id": "s", "links": [[number, "a", 0] for number in range(9000)], "nodes": []}
    canvas = {"nodes": [{"type": "s"}] * 1000, "links": [], "definitions": {"subgraphs": [subgraph]}}
    began = time.process_time()
    graph_in(canvas)
    assert time.process_time() - began < 3
