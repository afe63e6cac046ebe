"""The model card, docs/tiny-base.md: written from the figures, never by hand.

python -m tools.tiny_base.card --work build/tiny-base --out docs
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from . import art, autoencoder, clip, filters, presets, unet, world
from .build_context import BuildContext

HERE = Path(__file__).parent
PICTURES = {  # in the work folder: in the docs
    "newest.png": "tiny-base.png",
    "real-and-drawn.png": "tiny-base-real-and-drawn.png",
    "autoencoder-kept-out.png": "tiny-base-autoencoder.png",
}


def write(context, out=Path("docs")):
    """Write out/tiny-base.md and its pictures from work/figures.json, the logs and the exported folder."""
    figures = json.loads((context.work / "figures.json").read_text())
    count = lambda model: f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}"  # noqa: E731
    names, looks = world.kept_out()
    drawn = [look for look in context.world.looks]
    net = unet.build()
    text = (HERE / "card.md").read_text().format(
        names=len(context.world.names), looks=len(drawn), guidance=f"{unet.GUIDANCE:g}", look_list=", ".join(drawn),
        name_list=", ".join(sorted(context.world.names)), width=clip.WIDTH, text_m=count(context.clip.text_model),
        vae_m=count(context.vae), channels=autoencoder.CHANNELS, unet_m=count(net),
        blocks=" / ".join(map(str, net.config.block_out_channels)),
        layers=" / ".join(map(str, net.config.layers_per_block)), judge_m=count(context.clip),
        folder_mb=figures.get("speed", {}).get("folder_mb", "?"),
        art_rows="\n".join(_art_rows(context)),
        kept_count=len(names), kept_list=", ".join(names), kept_looks=" and ".join(looks),
        recipe="\n".join(_recipe(context)), figures=_table(figures),
        limits=(HERE / "limits.md").read_text().strip(),
    )  # fmt: skip
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    (out / "tiny-base.md").write_text(text)
    for source, target in PICTURES.items():
        if (context.work / "look" / source).exists():
            picture = Image.open(context.work / "look" / source).convert("RGB").quantize(256)  # a third of the bytes
            picture.save(out / "pictures" / target, optimize=True)


def _art_rows(context):
    """A row a package that anything was trained on."""
    for look in (*context.preset.clip_looks, "names"):
        package = art.PACKAGES[look]
        yield f"| {look} | {package.source}: npm `{package.name}` {package.version} | {package.licence} |"
    if filtered := [look for look in context.world.looks if look in filters.FILTERS]:
        yield f"| {', '.join(filtered)} | filters over {context.world.looks[0]}: `tools/tiny_base/filters.py` | |"


def _recipe(context):
    """One line a training, from its log: what was really done."""
    for part, stage in (
        ("clip", context.preset.clip),
        ("clip-images", context.preset.clip_images),
        ("autoencoder", context.preset.autoencoder),
        ("unet", context.preset.unet),
    ):
        log = context.work / part / "log.jsonl"
        if not log.exists():
            yield f"- **{part}**: taken from the base that the training went on from."
            continue
        lines = log.read_text().splitlines()
        last = json.loads(lines[-1])
        rest = ", ".join(f"{k} {v}" for k, v in last.items() if k not in ("step", "minutes", "lr", "event"))
        sat = f"{last['step']} steps of {stage.batch} per process in {last['minutes']:.0f} minutes"
        yield f"- **{part}**: {sat}; at the end {rest}."


def _table(figures):
    """Nested figures -> Markdown rows, what real scenes score beside what generated images do."""
    rows = {}
    for group, values in figures.items():
        for key, value in values.items():
            kind, _, rest = key.partition(", ") if key.split(",")[0] in ("real", "drawn") else ("drawn", "", key)
            for inner, figure in (value if isinstance(value, dict) else {"": value}).items():
                parts = [group.replace("_", " "), rest.replace("_", " "), inner.replace("_", " ")]
                rows.setdefault(": ".join(filter(None, parts)), {})[kind] = figure
    lines = ["| figure | real scenes | the model |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {row} | {r.get('real', '')} | {r.get('drawn', '')} |" for row, r in rows.items())])


def main():
    parser = argparse.ArgumentParser(description="Write the model card of the base that WORK holds.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    write(BuildContext(args.work, presets.choose(args.preset)[1], "cpu"), args.out)


if __name__ == "__main__":
    main()
