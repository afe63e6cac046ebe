"""Read A1111's embeddings, and the first textual inversions, which have the same layout.

    .pt           {"string_to_param": {"*": (n, dim)}, "string_to_token": ..., "name", "step", "sd_checkpoint_name"}
    .safetensors  {"emb_params": (n, dim)}, as kohya's and invoke-training's writers save it too

In rinongal's files `string_to_param` is an `nn.ParameterDict` with a key for every placeholder. A1111 names an
embedding after its file. Sources: A1111 `modules/textual_inversion/textual_inversion.py`; rinongal
textual_inversion `ldm/modules/embedding_manager.py`; kohya-ss sd-scripts `train_textual_inversion.py`.
"""

from __future__ import annotations

from ...errors import UserError
from ...prompts import Token, printable
from ..concept import Concept
from .contents import FileContents
from .to_concept import base_from_widths, make_concept

_PARAM = "string_to_param."
_SAFETENSORS_KEY = "emb_params"


def fits(content: FileContents) -> bool:
    return _SAFETENSORS_KEY in content.shapes or any(key.startswith(_PARAM) for key in content.shapes)


def read(content: FileContents, token: Token | None = None) -> Concept:
    """Convert the contents to a concept. Raises UserError."""
    keys = [key for key in content.shapes if key.startswith(_PARAM) or key == _SAFETENSORS_KEY]
    if len(keys) > 1:
        names = printable(", ".join(key.removeprefix(_PARAM) for key in keys))
        raise UserError(
            f"{printable(content.name)} holds several embeddings ({names}).", "I read one a file; save them apart."
        )
    placeholder = keys[0].removeprefix(_PARAM) if keys[0] != _SAFETENSORS_KEY else ""
    vectors = content.embeddings(keys[0])
    base = base_from_widths({"clip_l": vectors.shape[1]}, content.name)
    return make_concept(content, base, {"clip_l": vectors}, None, token, title=_title(content, placeholder))


def _title(content: FileContents, placeholder: str) -> str:
    """Return the placeholder as title: its author wrote it in prompts, unless it is A1111's `*`."""
    return "" if placeholder == "*" or content.fact("name") else placeholder[:100]
