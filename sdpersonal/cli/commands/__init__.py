"""Join the commands, a module for each with argument classes, functions, and `COMMANDS`.

No module here imports anything heavy; a command that needs torch imports it when it runs.
"""

from collections.abc import Callable
from typing import Any

from ...config import SettingsBase
from . import (
    app,
    completion,
    concepts_compare,
    concepts_edit,
    concepts_export,
    concepts_import,
    concepts_list,
    demo,
    endless,
    fleet,
    fleet_serve,
    generate,
    hub,
    outputs,
    photos,
    redo,
    sheet,
    train,
    vary,
)

_MODULES: tuple[Any, ...] = (
    *(train, fleet, fleet_serve, generate, sheet, endless, vary, redo),
    *(photos, concepts_list, concepts_edit, concepts_compare, concepts_import, concepts_export, hub, outputs),
    *(app, demo, completion),
)
COMMANDS: dict[str, tuple[Callable[[Any], int], type[SettingsBase]]] = {
    name: command for module in _MODULES for name, command in module.COMMANDS.items()
}
GROUPS = {
    "train": "Train a concept on photos.",
    "fleet": "Train many concepts, and generate for many people, on many cores, cards or machines.",
    "photos": "Check photos before training on them.",
    "concepts": "Manage the concepts of your library.",
    "hub": "Share concepts on the Hugging Face Hub.",
    "outputs": "Manage the folder of generated images.",
}
FORMER_COMMANDS = {  # kept for one more version
    "concepts push": "hub push",
    "concepts pull": "hub pull",
    "outputs": "outputs page",
}
