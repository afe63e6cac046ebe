"""Attack this program as a stranger would: python -m tools.attack PART... [--seed N] [--count N] [--seconds N]

files: damaged and hostile files of every format that the package reads; kills: `kill -9` at random moments, and
processes that race; disk: operations on a full disk; http: a running server with passwords. Each part prints a line for
what was asked, what came of it, and pass or FAIL; a FAIL makes the exit status 1. `tests/attack` runs a short form.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# The samples of files, and the server, are those of the tests.
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
