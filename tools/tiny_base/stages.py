"""The order of work: art, start, tokenizer, CLIP, autoencoder, what judges, UNet; then figures and the model card."""

import shutil

import torch

from . import art, autoencoder, captions, card, clip, export, eyes, figures, judge, sheets, tokenizer, unet


def run_art(context):
    art.fetch(context.work / "art")


def run_start(context):
    """With a base to go on from, put its parts where the trainings that they need no more would have left them."""
    start, work = context.preset.start, context.work
    if start is None or (work / "start" / "done").exists():
        return
    for part, folder in (
        ("tokenizer", work / "tokenizer"),
        ("judge", context.judge_folder),
        ("vae", work / "autoencoder" / "model"),
        ("unet", work / "start" / "unet"),
    ):
        copy = export.empty_folder(folder)
        shutil.copytree(start / part, copy, dirs_exist_ok=True)
        export.replace_folder(copy, folder)
    for trained in ("clip", "clip-images", "start"):
        (work / trained).mkdir(exist_ok=True)
        (work / trained / "done").touch()


def run_tokenizer(context):
    if not (context.work / "tokenizer" / "vocab.json").exists():
        tokenizer.train(context.wide, context.work / "tokenizer")


def run_clip(context):
    save = lambda model: export.save_clip(model, context.work / "tokenizer", context.judge_folder)  # noqa: E731
    p, folder = context.preset, context.work / "clip"
    if not (folder / "done").exists():
        clip.train(context.wide, context.words, p.clip, folder, context.machine, save)


def run_clip_images(context):
    """The judge's eyes: can run beside the UNet's training, whose text tower it leaves alone."""
    save = lambda model: export.save_clip(model, context.work / "tokenizer", context.judge_folder)  # noqa: E731
    p, folder = context.preset, context.work / "clip-images"
    if not (folder / "done").exists():
        clip.train(context.wide, context.words, p.clip_images, folder, context.machine, save, context.clip)


def run_autoencoder(context):
    p, folder = context.preset, context.work / "autoencoder"
    if not (folder / "model").exists():
        model = autoencoder.train(context.wide, p.autoencoder, folder, context.machine)
        model.cpu().save_pretrained(folder / "model")


def run_second_judge(context):
    folder = context.work / "second-judge"
    if not (folder / "done").exists():
        judge.train(context.world, context.preset.judge, folder, context.machine)


def run_eyes(context):
    folder = context.work / "eyes"
    if not (folder / "done").exists():
        eyes.train(context.world, context.preset.eyes, folder, context.machine)


def run_unet(context):
    folder = context.work / "unet"
    if (folder / "done").exists() and context.weights_folder.exists():
        return
    tower = clip.text_tower(context.clip).requires_grad_(False)

    def snapshot(model):
        """What there is so far, as the folder that would ship, and a sheet to look at."""
        model = model.cpu()
        pipe = export.make_pipeline(model, context.vae.cpu(), tower.cpu(), context.words, unet.scheduler())
        export.save_weights(pipe, context.work / "tokenizer", context.judge_folder, context.weights_folder)
        sample_sheet(pipe, context.world, context.work / "look" / "newest.png")
        context.vae.to(context.device), tower.to(context.device)

    start = context.start_unet
    unet.train(
        context.world, context.words, tower, context.vae, context.preset, folder, context.machine, snapshot, start
    )


@torch.no_grad()
def sample_sheet(pipe, world, path, count=24):
    """Pictures of things spread over the world, each look and place in turn -> a PNG."""
    looks = [look for look in world.looks]
    places = list(captions.PLACES)
    prompts = []
    for i in range(count):
        thing = captions.with_article(world.names[i * len(world.names) // count])
        behind = (
            captions.PLACES[places[i % 12]][0] if i % 2 else f"on a {list(captions.COLOURS)[i // 2 % 12]} background"
        )
        prompts.append(f"{captions.LOOKS[looks[i % len(looks)]][0].format(thing)} {behind}")
    generator = [torch.Generator().manual_seed(i) for i in range(count)]
    pictures = pipe(
        prompts, num_inference_steps=20, guidance_scale=unet.GUIDANCE, generator=generator, output_type="pt"
    ).images
    sheets.sheet(pictures * 2 - 1, prompts, path)


def run_figures(context):
    figures.measure(context)


def run_card(context):
    card.write(context, context.work / "export")


RUN = {
    "art": run_art,
    "start": run_start,
    "tokenizer": run_tokenizer,
    "clip": run_clip,
    "clip-images": run_clip_images,
    "autoencoder": run_autoencoder,
    "second-judge": run_second_judge,
    "eyes": run_eyes,
    "unet": run_unet,
    "figures": run_figures,
    "card": run_card,
}
ORDER = tuple(RUN)


def run(stage, context):
    """Run one stage by name."""
    RUN[stage](context)
