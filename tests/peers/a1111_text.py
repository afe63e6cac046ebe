"""AUTOMATIC1111's web UI: `parse_generation_parameters` on texts as its pictures have them.

    python a1111_text.py CHECKOUT < texts.json

prints one JSON list: for each text what is read, or null where that fails.
"""

import json
import os
import sys
import tempfile
from types import SimpleNamespace

import stand_in

checkout = sys.argv[1]
texts = json.load(sys.stdin)
import torch  # noqa: E402, F401 - before the stand-ins: they must see nothing missing that is here

stand_in.use(checkout, "gradio", "ldm", "sgm", "k_diffusion")
place = tempfile.mkdtemp()
for file in (
    "sd/ldm/models/diffusion/ddpm.py",
    "generative-models/sgm/x.py",
    "BLIP/models/blip.py",
    "k-diffusion/x.py",
):
    os.makedirs(os.path.dirname(f"{place}/{file}"))
    open(f"{place}/{file}", "w").close()  # only whether it is there is asked
os.chdir(f"{place}/sd")
sys.argv[1:] = ["--data-dir", place, "--use-cpu", "all", "--no-half", "--skip-torch-cuda-test"]
import modules.shared as shared  # noqa: E402
import modules.shared_init  # noqa: E402

modules.shared_init.initialize()
import modules.processing  # noqa: E402 - as its own start does: the others import each other in a ring
from modules.infotext_utils import parse_generation_parameters  # noqa: E402

shared.prompt_styles = SimpleNamespace(extract_styles_from_prompt=lambda prompt, negative: ([], prompt, negative))
found = []
for text in texts:
    try:
        found.append(parse_generation_parameters(text, []))
    except Exception as error:
        print(repr(error), file=sys.stderr)
        found.append(None)
print("\n" + json.dumps(found, default=str))
