"""The command line: python -m tools.attack PART... [--seed N] [--count N] [--seconds N]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .outcomes import Report


def main() -> int:
    """Run the parts; return 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.attack", description="Attack this program as a stranger would."
    )
    parser.add_argument("parts", nargs="*", choices=["files", "kills", "disk", "http", []], metavar="PART")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--count", type=int, help="mutations, kills or operations; each part has its own number")
    parser.add_argument("--seconds", type=float, help="the longest that a part may take; for http, of the crowd")
    parser.add_argument("--workers", type=int, default=0, help="processes of the fuzzer; one for each core otherwise")
    parser.add_argument("--only", nargs="*", default=[], help="names of formats, of files; of checks, of http")
    parser.add_argument("--replay", type=Path, nargs="*", default=[], help="folders of saved failing files")
    options = parser.parse_args()
    failed = False
    for case in options.replay:
        from .files import replay

        report = Report()
        replay(report, case)
        failed |= bool(report.failures)
    for part in options.parts or ([] if options.replay else ["files", "kills", "disk", "http"]):
        print(f"--- {part}, seed {options.seed}", flush=True)
        report = Report(lambda line: print(line, flush=True))
        _run(part, report, options)
        failed |= bool(report.failures)
    return int(failed)


def _run(part: str, report: Report, options: argparse.Namespace) -> None:
    more = {name: value for name in ("count", "seconds") if (value := getattr(options, name)) is not None}
    if part == "files":
        from .files import attack_files

        attack_files(report, options.seed, workers=options.workers, only=options.only, **more)
    elif part == "kills":
        from .kills import attack_kills

        attack_kills(report, options.seed, **more)
    elif part == "disk":
        from .disk import attack_disk

        attack_disk(report, options.seed, **more)
    elif part == "http":
        from .http_server import attack_server

        attack_server(report, options.seed, only=options.only, **more)


if __name__ == "__main__":
    sys.exit(main())
