"""`app.py`, whose trainings draw rough images: for tests in which their quality is not the question."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

from sdpersonal.app.backend.train import trainer_process
from sdpersonal.cli.commands.app import AppArgs, open_app
from sdpersonal.cli.main import run_command

TRAIN = f"""
import sys
sys.path.append({str(Path(__file__).parents[1])!r})
from sdpersonal.cli.main import main
from support.quick_trainings import draw_rough_images
draw_rough_images()
sys.exit(main(sys.argv[1:]))
"""


def start(command: list[str], **options: object) -> subprocess.Popen:
    """As the app starts a training, but for `-m sdpersonal`."""
    at = command.index("-m")
    return subprocess.Popen([*command[:at], "-c", TRAIN, *command[at + 2 :]], **options)


if __name__ == "__main__":
    popen_only = mock.Mock(Popen=start, DEVNULL=subprocess.DEVNULL)
    with mock.patch.object(trainer_process, "subprocess", popen_only):
        sys.exit(run_command(open_app, AppArgs, sys.argv[1:], "app.py"))
