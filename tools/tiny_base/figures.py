"""The figures in the model card: what the base can do, each beside what real pictures score with the same judge.

python -m tools.tiny_base.figures --work build/tiny-base [--only colours]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from sdpersonal.config import GenerateRequest
from sdpersonal.generation import Generator
from sdpersonal.models.loading import load_base

from . import captions, clip, eyes, judge, presets, render, scenes, sheets, tokenizer, unet
from . import world as worlds
from .build_context import BuildContext

STEPS = 25


def psnr(a, b):
    """Mean over pictures of the peak signal-to-noise ratio in dB; pictures in -1..1."""
    return (10 * torch.log10(4 / ((a - b) ** 2).flatten(1).mean(1))).mean().item()


@torch.no_grad()
def autoencoder(context, pipe):
    """PSNR on scenes never trained on: of the known world, and of kept-out things, the kept-out look among theirs."""
    rows = {}
    for name, world in (("known things", context.wide), ("kept-out things", worlds.kept_out_world(context.work))):
        renderer = render.Renderer(world.sprites)
        pictures = render.render(renderer, [scenes.draw_scene(world, 900, i, scenes.Mix()) for i in range(128)])
        decoded = torch.cat([pipe.vae.decode(pipe.vae.encode(p).latent_dist.mean).sample for p in pictures.split(16)])
        rows[name] = round(psnr(decoded.clamp(-1, 1), pictures), 2)
        both = torch.cat([pictures[:12], decoded[:12]])
        sheets.sheet(both, [""] * 24, context.work / "look" / f"autoencoder-{name.split()[0]}.png", columns=12)
    return {"psnr_db": rows}


@torch.no_grad()
def contrast(context, pipe, choices=100):
    """CLIP: the right caption among 100 that differ in the thing's name alone."""
    model, words, count = context.clip, context.words, context.preset.prompts * 5 // 2
    rows = {}
    for label, world in (("the UNet's world", context.world), ("the wide world", context.wide)):
        renderer, right = render.Renderer(world.sprites), 0
        rng = scenes.generator(901, 0)
        among = min(choices, len(world.names))
        for i in range(count):
            name, look = int(rng.integers(len(world.names))), int(rng.integers(len(world.looks)))
            kind = captions.pick(rng, captions.BACKGROUNDS)
            scene = scenes.single_thing_scene(world, look, name, kind, 901, i)
            others = [n for n in rng.permutation(len(world.names)).tolist() if n != name][: among - 1]
            noun = captions.with_article(world.names[name])
            texts = [scene.caption.replace(noun, captions.with_article(world.names[n]), 1) for n in (name, *others)]
            picture = clip.features(model, images=render.render(renderer, [scene]))
            text = clip.features(model, ids=tokenizer.encode(words, texts, "longest"))
            right += int((picture @ text.T).argmax() == 0)
        rows[f"{label}, among {among}"] = round(right / count, 3)
    return {"clip_top1": rows}


def _test_prompts(world, count, seed):
    """(look, name, place) of the test prompts: every name before any twice."""
    rng = scenes.generator(seed, 0)
    names = [n for _ in range(-(-count // len(world.names))) for n in rng.permutation(len(world.names)).tolist()][
        :count
    ]
    kinds = list(captions.PLACES)
    return [(int(rng.integers(len(world.looks))), name, kinds[int(rng.integers(len(kinds)))]) for name in names]


def _test_scenes(context, seed=902):
    """The (look, name, place) of the test prompts, and a scene of one thing for each."""
    subjects = _test_prompts(context.world, context.preset.prompts, seed)
    return subjects, [
        scenes.single_thing_scene(context.world, look, name, kind, seed, i)
        for i, (look, name, kind) in enumerate(subjects)
    ]


@torch.no_grad()
def generate(pipe, prompts, seed=0, guidance=unet.GUIDANCE, batch=16):
    """Prompts -> (N, 3, 128, 128) in -1..1; picture i from seed + i."""
    out = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        images = pipe(
            part, num_inference_steps=STEPS, guidance_scale=guidance, generator=generators, output_type="pt"
        ).images
        out.append(images.cpu() * 2 - 1)
    return torch.cat(out)


@torch.no_grad()
def pictures(context, pipe, guidance=unet.GUIDANCE):
    """ "a LOOK of a NAME on PLACE": named right by the CLIP and by the second judge, beside real pictures' scores."""
    subjects, staged = _test_scenes(context)
    renderer = render.Renderer(context.world.sprites)
    real = torch.cat([render.render(renderer, staged[i : i + 40]) for i in range(0, len(staged), 40)])
    drawn = generate(pipe, [scene.caption for scene in staged], guidance=guidance)
    rows = {label: _recognised(context, images, subjects) for label, images in (("real", real), ("drawn", drawn))}
    both = [p for pair in zip(real[:24], drawn[:24], strict=True) for p in pair]
    names = [c for s in staged[:24] for c in ("real", s.caption)]
    sheets.sheet(torch.stack(both), names, context.work / "look" / "real-and-drawn.png", columns=12)
    return {"pictures": rows}


def _recognised(context, images, subjects):
    """Shares of images (N, 3, 128, 128) in which the CLIP and the second judge find the (look, name, place) asked."""
    classifier = judge.load(context.work / "second-judge", context.world)
    name, look, place = classifier(images)
    truth = [
        torch.tensor(column)
        for column in zip(*[(n, lk, captions.BACKGROUNDS.index(k)) for lk, n, k in subjects], strict=True)
    ]
    place_of = place[:, len(captions.BACKGROUNDS) - len(captions.PLACES) :].argmax(1) + 5
    return {
        "name, CLIP": _accuracy(_clip_names(context, images, subjects), truth[0]),
        "name, classifier": _accuracy(name.argmax(1), truth[0]),
        "name in first five, classifier": _share((name.topk(5).indices == truth[0][:, None]).any(1)),
        "look, classifier": _accuracy(look.argmax(1), truth[1]),
        "place, classifier": _accuracy(place_of, truth[2]),
    }


@torch.no_grad()
def few_steps(context, pipe):
    """The same prompts in few steps of DPM++ 2M: what is recognised, and seconds an image, one after the other."""
    (subjects, staged), rows = _test_scenes(context), {}
    prompts = [scene.caption for scene in staged]
    generator = Generator(load_base(str(context.weights_folder), device="cpu"))
    for steps in (4, 6, 8):
        requests = [
            GenerateRequest(prompt=prompt, num_images=1, seed=i, steps=steps, scheduler="DPM++ 2M")
            for i, prompt in enumerate(prompts)
        ]
        began = time.perf_counter()
        images = [np.asarray(image.image) for request in requests for image in generator.generate(request)]
        seconds = (time.perf_counter() - began) / len(prompts)
        drawn = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
        rows[f"{steps} steps"] = _recognised(context, drawn, subjects) | {"picture_s": round(seconds, 2)}
        sheets.sheet(drawn[:24], prompts[:24], context.work / "look" / f"few-steps-{steps}.png", columns=12)
    return {"few_steps": rows}


PAIR_FIGURES = {"side by side": ("beside",), "left and right": ("left", "right"), "one above": ("above", "below")}
VIEW = 0.62  # of the side: a part of an image that shows a thing of a pair as large as the judge knows single ones


def _views(images):
    """The left, right, upper and lower part of every image: (4, N, 3, H, W)."""
    side = images.shape[-1]
    cut = int(VIEW * side)
    middle, end = (side - cut) // 2, side - cut
    corners = ((middle, 0), (middle, end), (0, middle), (end, middle))  # y, x
    return torch.stack([images[..., y : y + cut, x : x + cut] for y, x in corners])


def named_in_views(classifier, images, first, second, first_choices=1):
    """Whether the judge names both of two things, each in a part of its own, among its first choices: (N,) of bool."""
    logits = torch.stack([classifier(part)[0] for part in _views(images)])  # (4, N, names)
    best = logits.topk(first_choices, dim=2).indices
    a, b = ((best == torch.as_tensor(names)[None, :, None]).any(2) for names in (first, second))  # (4, N)
    return (a[:, None] & b[None] & ~torch.eye(4, dtype=torch.bool)[..., None]).any((0, 1))


@torch.no_grad()
def pairs(context, pipe):
    """Two things in one scene, by the way they are put: both named by the second judge, beside real scenes' scores."""
    world, rows = context.world, {}
    drawn_looks = [float(not world.filter(look)) for look in range(len(world.looks))]
    shares = tuple(share / sum(drawn_looks) for share in drawn_looks)
    classifier, sheet = judge.load(context.work / "second-judge", world), []
    for i, (label, kinds) in enumerate(PAIR_FIGURES.items()):
        mix = scenes.Mix(places=0.5, patterns=0, pairs=1, pair_kinds=kinds, look_shares=shares, flip=0)
        staged = [scenes.draw_scene(world, 903 + i, n, mix) for n in range(max(2, context.preset.prompts // 4))]
        first, second = [s.name for s in staged], [s.others[0] for s in staged]
        real = render.render(render.Renderer(world.sprites), staged)
        drawn = generate(pipe, [s.caption for s in staged])
        for kind, some in (("real", real), ("drawn", drawn)):
            rows[f"{kind}, {label}"] = {
                f"both named{among}": _share(named_in_views(classifier, some, first, second, choices))
                for among, choices in (("", 1), (" in first five", 5))
            }
        sheet += [(image, scene.caption) for image, scene in zip(drawn[:8], staged[:8], strict=False)]
    sheets.sheet(torch.stack([s[0] for s in sheet]), [s[1] for s in sheet], context.work / "look" / "pairs.png")
    return {"pairs": rows}


@torch.no_grad()
def looks(context, pipe):
    """Each look in turn, of the same things in the same places: look, name and place by the second judge."""
    world, count = context.world, max(2, context.preset.prompts // 8)
    classifier, rows, sheet = judge.load(context.work / "second-judge", world), {}, []
    subjects = _test_prompts(world, count, 906)
    for look, label in enumerate(world.looks):
        staged = [
            scenes.single_thing_scene(world, look, name, kind, 906, i) for i, (_, name, kind) in enumerate(subjects)
        ]
        real = render.render(render.Renderer(world.sprites), staged)
        drawn = generate(pipe, [s.caption for s in staged])
        for kind, some in (("real", real), ("drawn", drawn)):
            names, looks_, places_ = (logits.argmax(1) for logits in classifier(some))
            rows[f"{kind}, {label}"] = {
                "look": _share(looks_ == look),
                "name": _accuracy(names, torch.tensor([name for _, name, _ in subjects])),
                "place": _accuracy(places_, torch.tensor([captions.BACKGROUNDS.index(kind) for *_, kind in subjects])),
            }
        sheet += [(image, scene.caption) for image, scene in zip(drawn[:8], staged[:8], strict=False)]
    sheets.sheet(torch.stack([s[0] for s in sheet]), [s[1] for s in sheet], context.work / "look" / "looks.png")
    return {"looks": rows}


@torch.no_grad()
def open_eyes(context, pipe):
    """How many eyes the detector finds in faces that look at the viewer; in real ones after the autoencoder too."""
    detector, faces = eyes.load(context.work / "eyes"), eyes.FaceScenes(context.world)
    staged = [faces.draw(907, i, whole=True)[0] for i in range(context.preset.prompts)]
    real = faces.images(staged)
    drawn = generate(pipe, [scene.caption for scene in staged])
    decoded = torch.cat([pipe.vae.decode(pipe.vae.encode(p).latent_dist.mean).sample for p in real.split(16)])
    rows = {
        label: {f"{number} eyes": _share(eyes.count(detector, some) == number) for number in range(3)}
        for label, some in (("real", real), ("real, after the autoencoder", decoded.clamp(-1, 1)), ("drawn", drawn))
    }
    sheets.sheet(drawn[:24], [scene.caption for scene in staged[:24]], context.work / "look" / "eyes.png", columns=12)
    return {"open_eyes": rows}


def _share(right):
    return round(right.float().mean().item(), 3)


def _accuracy(guess, truth):
    return _share(guess == truth)


def _clip_names(context, some, asked):
    """The name that the CLIP finds nearest, told look and place: (N,)."""
    world, guesses = context.world, []
    nouns = [captions.with_article(name) for name in world.names]
    features = torch.cat([clip.features(context.clip, images=p) for p in some.split(50)])
    for feature, (look, _, kind) in zip(features, asked, strict=True):
        form = captions.LOOKS[world.looks[look]][0]
        texts = [f"{form.format(noun)} {captions.PLACES[kind][0]}" for noun in nouns]
        guesses.append(
            (clip.features(context.clip, ids=tokenizer.encode(context.words, texts, "longest")) @ feature)
            .argmax()
            .item()
        )
    return torch.tensor(guesses)


@torch.no_grad()
def colours(context, pipe):
    """ "on a RED background" for twelve colours: distance of the border's mean colour from the one asked, of 255."""
    names = list(captions.COLOURS)[:12]
    things = [context.world.names[i * len(context.world.names) // 12] for i in range(12)]
    prompts = [
        f"a 3d render of {captions.with_article(t)} on a {c} background" for t, c in zip(things, names, strict=True)
    ]
    drawn = (generate(pipe, prompts, seed=50) + 1) * 127.5
    border = torch.cat(
        [
            drawn[:, :, :6].flatten(2),
            drawn[:, :, -6:].flatten(2),
            drawn[..., :6].flatten(2),
            drawn[..., -6:].flatten(2),
        ],
        2,
    )
    backgrounds = torch.tensor([captions.COLOURS[c] for c in names]).float()
    off = (border.mean(2) - backgrounds).abs().amax(1)
    sheets.sheet(drawn / 127.5 - 1, prompts, context.work / "look" / "colours.png", columns=6)
    return {
        "colours": {"worst channel, mean": round(off.mean().item(), 1), "within 25": int((off <= 25).sum()), "of": 12}
    }


def speed(context, pipe):
    """Seconds to load, and for one picture at 25 steps with guidance, on this machine's CPU as busy as it is."""
    start = time.perf_counter()
    fresh = StableDiffusionPipeline.from_pretrained(context.weights_folder, torch_dtype=torch.float32)
    loaded = time.perf_counter() - start
    fresh.set_progress_bar_config(disable=True)
    generate(fresh, ["a cat"])
    start = time.perf_counter()
    generate(fresh, ["a 3d render of a cat on the beach"])
    size = sum(f.stat().st_size for f in context.weights_folder.rglob("*") if f.is_file()) / 1e6
    return {
        "speed": {
            "load_s": round(loaded, 2),
            "picture_s": round(time.perf_counter() - start, 2),
            "folder_mb": round(size, 1),
        }
    }


FIGURES = {f.__name__: f for f in (autoencoder, contrast, pictures, few_steps, pairs, looks, open_eyes, colours, speed)}


def measure(context, only=None):
    """All figures (or one) -> work/figures.json, each replacing its older value."""
    pipe = StableDiffusionPipeline.from_pretrained(context.weights_folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    path = context.work / "figures.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for name in [only] if only else FIGURES:
        figures |= FIGURES[name](context, pipe)
        print(json.dumps(figures, indent=1), flush=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def main():
    parser = argparse.ArgumentParser(description="Measure the base that is in WORK/export/weights.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny-base"))
    parser.add_argument("--preset", choices=["auto", *presets.PRESETS], default="auto")
    parser.add_argument("--only", choices=FIGURES)
    args = parser.parse_args()
    measure(BuildContext(args.work, presets.choose(args.preset)[1], "cpu"), args.only)


if __name__ == "__main__":
    main()
