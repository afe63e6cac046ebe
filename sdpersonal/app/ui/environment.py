"""Set up the environment before Gradio is imported, because its environment variables override its arguments."""

from __future__ import annotations

import atexit
import os
import tempfile
from pathlib import Path

from ... import storage

_GRADIO_VARIABLES = ("GRADIO_", "UVICORN_", "FORWARDED_ALLOW_IPS", "SPACE_ID", "SYSTEM=")


def isolate_gradio() -> Path:
    """Remove the environment variables of Gradio and its server; return a private folder for the files shown.

    The folder is readable by this user only and is deleted when the program ends.
    """
    for name in [name for name in os.environ if f"{name}=".startswith(_GRADIO_VARIABLES)]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="sdpersonal-"))
    atexit.register(storage.remove, folder)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return folder
