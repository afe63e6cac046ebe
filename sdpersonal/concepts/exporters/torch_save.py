"""Build the bytes of `torch.save({word: rows})` without torch.

The file is the zip of torch >= 1.6 with its three oldest members alone (`data.pkl`, `data/0`, `version`), which every
later torch reads, also with `weights_only`. `torch.save` itself is not used for two reasons: it adds members that
A1111's scanner of pickles refuses (`byteorder`, `.format_version`, `.storage_alignment`, `.data/serialization_id`), and
no other export needs torch, whose import takes seconds.
"""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # zip's first date: the same concept gives the same bytes, and no time is revealed


def torch_save_bytes(word: str, rows: np.ndarray) -> bytes:
    """Build a file that holds {word: rows}. rows: float32, contiguous."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            ("data.pkl", _pickle_bytes(word, rows.shape)),
            ("data/0", rows.astype("<f4").tobytes()),
            ("version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", _ZIP_DATE), content)
    return out.getvalue()


def _pickle_bytes(word: str, shape: tuple[int, ...]) -> bytes:
    """Pickle with protocol 2.

    The value is {word: torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())}.
    """
    count = int(np.prod(shape))
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    storage = (
        b"("
        + _pickle_text("storage")
        + b"ctorch\nFloatStorage\n"
        + _pickle_text("0")
        + _pickle_text("cpu")
        + _pickle_int(count)
        + b"tQ"
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + _pickle_int(0)
        + b"".join(b"(" + b"".join(map(_pickle_int, sizes)) + b"t" for sizes in (shape, strides))
        + b"\x89"  # requires_grad
        + hooks
        + b"tR"
    )
    return b"\x80\x02}" + _pickle_text(word) + tensor + b"s."


def _pickle_text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _pickle_int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)
