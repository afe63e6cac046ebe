"""Train a subject and a style on the sample photos, and mix them in one image.

python examples/train_and_mix.py
python examples/train_and_mix.py --base sd15 --out mix
"""

import argparse
from pathlib import Path

import sdpersonal as sp

PHOTOS = Path(__file__).resolve().parent / "photos"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="tiny", help="model to train: tiny, sd15, sdxl, a folder or a file")
    parser.add_argument("--out", type=Path, default=Path("mix"), help="folder for the concepts, runs and images")
    parser.add_argument("--steps", type=int, help="training steps; default: depends on the method")
    arguments = parser.parse_args()
    library = sp.Library(arguments.out / "concepts")

    if "<me/teddy>" not in library:
        teddy = sp.train_dreambooth(
            PHOTOS / "teddy-bear",
            token="<me/teddy>",
            class_noun="bear",
            base=arguments.base,
            steps=arguments.steps,
            library=library.folder,
            run=arguments.out / "runs" / "teddy",
        )
        print(f"{teddy.token}: {len(teddy.losses)} steps, all about it in {teddy.report}")
    if "<me/ink>" not in library:
        ink = sp.train_textual_inversion(
            PHOTOS / "cyanotype",
            token="<me/ink>",
            kind="style",
            base=arguments.base,
            steps=arguments.steps,
            library=library.folder,
            run=arguments.out / "runs" / "ink",
        )
        print(f"{ink.token}: {len(ink.losses)} steps, all about it in {ink.report}")

    sd = sp.load(arguments.base, library=library)
    grid = sd.xyz_grid(
        "<me/teddy> in the snow in the style of <me/ink>",
        x="strength <me/ink>: 0, 0.5, 1",
        y="seed: 1..2",
    )
    for path in grid.save(arguments.out).grids:
        print(path)


if __name__ == "__main__":
    try:
        main()
    except sp.UserError as error:
        raise SystemExit(f"error: {error}") from None
