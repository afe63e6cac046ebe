"""Open the app: python app.py [--base tiny] [--library concepts] [--listen --password-file FILE] [--port 7860]

The same as `sdpersonal app`.
"""

import sys

from sdpersonal.cli.commands.app import AppArgs, open_app
from sdpersonal.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command(open_app, AppArgs, sys.argv[1:], "app.py"))
