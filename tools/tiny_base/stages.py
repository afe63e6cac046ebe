"""The order of work: art, tokenizer, CLIP, autoencoder, second judge, UNet; then figures and the model card."""

import torch

from . import art, autoencoder, captions, card, clip, export, figures, judge, sheets, tokenizer, unet


def run_art(shop):
    art.fetch(shop.work / "art")


def run_tokenizer(shop):
    if not (shop.work / "tokenizer" / "vocab.json").exists():
        tokenizer.train(shop.wide, shop.work / "tokenizer")


def run_clip(shop):
    save = lambda model: export.save_clip(model, shop.work / "tokenizer", shop.judge_folder)  # noqa: E731
    p, folder = shop.preset, shop.work / "clip"
    if not (folder / "done").exists():
        clip.train(shop.wide, shop.words, p.clip, folder, shop.machine, save)


def run_clip_images(shop):
    """The judge's eyes: can run beside the UNet's training, whose text tower it leaves alone."""
    save = lambda model: export.save_clip(model, shop.work / "tokenizer", shop.judge_folder)  # noqa: E731
    p, folder = shop.preset, shop.work / "clip-images"
    if not (folder / "done").exists():
        clip.train(shop.wide, shop.words, p.clip_images, folder, shop.machine, save, shop.clip)


def run_autoencoder(shop):
    p, folder = shop.preset, shop.work / "autoencoder"
    if not (folder / "model").exists():
        model = autoencoder.train(shop.wide, p.autoencoder, folder, shop.machine)
        model.cpu().save_pretrained(folder / "model")


def run_second_judge(shop):
    folder = shop.work / "second-judge"
    if not (folder / "done").exists():
        judge.train(shop.world, shop.preset.judge, folder, shop.machine)


def run_unet(shop):
    folder = shop.work / "unet"
    if (folder / "done").exists() and shop.weights_folder.exists():
        return
    tower = clip.text_tower(shop.clip).requires_grad_(False)

    def snapshot(model):
        """What there is so far, as the folder that would ship, and a sheet to look at."""
        model = model.cpu()
        pipe = export.make_pipeline(model, shop.vae.cpu(), tower.cpu(), shop.words, unet.scheduler())
        export.save_weights(pipe, shop.work / "tokenizer", shop.judge_folder, shop.weights_folder)
        sample_sheet(pipe, shop.world, shop.work / "look" / "newest.png")
        shop.vae.to(shop.device), tower.to(shop.device)

    unet.train(shop.world, shop.words, tower, shop.vae, shop.preset, folder, shop.machine, snapshot)


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


def run_figures(shop):
    figures.measure(shop)


def run_card(shop):
    card.write(shop, shop.work / "export")


RUN = {
    "art": run_art,
    "tokenizer": run_tokenizer,
    "clip": run_clip,
    "clip-images": run_clip_images,
    "autoencoder": run_autoencoder,
    "second-judge": run_second_judge,
    "unet": run_unet,
    "figures": run_figures,
    "card": run_card,
}
ORDER = tuple(RUN)


def run(stage, shop):
    """Run one stage by name."""
    RUN[stage](shop)
