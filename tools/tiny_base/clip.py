"""The small CLIP: both towers, contrastive on captions and pictures (Radford et al. 2021).

Three things make it quick to train: half of the picture's patches are hidden from the image tower for most of
the run (FLIP, Li et al. 2023); a linear head on the mean of the patches, thrown away at the end, names the thing
and its place, so that every patch is taught from the first step; and Muon (Jordan et al. 2024) for the matrices.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig

from . import feed, render, runs, scenes, tokenizer
from .captions import BACKGROUNDS

WIDTH, PROJECTION = 192, 128


def build(vocabulary):
    """A CLIPModel of 5 M parameters: text 4 x 192, vision 6 x 192 over 64 patches of 16 px."""
    text = CLIPTextConfig(
        vocab_size=vocabulary, max_position_embeddings=77, projection_dim=PROJECTION,
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=3,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=6, num_attention_heads=3,
        image_size=128, patch_size=16, projection_dim=PROJECTION,
    )  # fmt: skip
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=PROJECTION)
    return CLIPModel._from_config(config, attn_implementation="sdpa")


def processor():
    """Pictures of any size -> 128 px, -1..1: the same preparation as the UNet's pictures."""
    return CLIPImageProcessor(
        size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


class ClipWithNaming(nn.Module):
    """The CLIP with its helping head."""

    def __init__(self, clip, names):
        super().__init__()
        self.clip, self.head = clip, nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, names + len(BACKGROUNDS)))
        self.names = names

    def image(self, images, hide=0.0):
        """(B, 3, 128, 128) -> pooled (B, 192), mean over patches (B, 192); `hide` is the share of patches left out."""
        tower = self.clip.vision_model
        x = tower.embeddings(images)  # (B, 1 + 64, 192)
        if hide:
            count = x.shape[1] - 1
            keep = int(count * (1 - hide))
            order = torch.rand(len(x), count, device=x.device).argsort(1)[:, :keep] + 1
            rows = torch.cat([order.new_zeros(len(x), 1), order], 1)  # the class token stays
            x = x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))
        x = tower.pre_layrnorm(x)
        x = tower.encoder(inputs_embeds=x).last_hidden_state
        return tower.post_layernorm(x[:, 0]), x[:, 1:].mean(1)

    def losses(self, images, ids, names, kinds, hide):
        """Contrastive loss, naming loss."""
        pooled, patches = self.image(images, hide)
        image = F.normalize(self.clip.visual_projection(pooled).float(), dim=-1)
        text_pooled = self.clip.text_model(input_ids=ids).pooler_output
        text = F.normalize(self.clip.text_projection(text_pooled).float(), dim=-1)
        scores = self.clip.logit_scale.exp().clamp(max=100) * image @ text.T  # (B, B)
        truth = torch.arange(len(ids), device=ids.device)
        contrast = (F.cross_entropy(scores, truth) + F.cross_entropy(scores.T, truth)) / 2
        guess = self.head(patches).float()
        naming = F.cross_entropy(guess[:, : self.names], names) + 0.3 * F.cross_entropy(guess[:, self.names :], kinds)
        return contrast, naming


def prepare_batch(drawn, packed, words, renderer):
    """One batch of scenes -> pictures in varied light, token ids, names, kinds, on the renderer's device."""
    pictures, device = renderer(packed), renderer.device
    gain = 1 + 0.12 * torch.randn(len(drawn), 1, 1, 1, device=device)
    pictures = (pictures * gain + 0.06 * torch.randn(len(drawn), 3, 1, 1, device=device)).clamp(-1, 1)
    ids = tokenizer.encode(words, [s.caption for s in drawn], "longest").to(device)
    names = torch.tensor([s.name for s in drawn], device=device)
    return pictures, ids, names, torch.as_tensor(packed["kinds"]).to(device)


def train(world, words, stage, folder, machine, export=None, start=None):
    """Train to the end (or go on after a kill); -> the CLIPModel. `export(model)` is called now and then.

    With `start`, a trained CLIPModel, only its image tower learns on, towards the text tower as it is (the mirror
    image of LiT, Zhai et al. 2022): the UNet has that text tower, so it must not move.
    """
    torch.manual_seed(1)
    learner = ClipWithNaming(build(tokenizer.SIZE), len(world.names)).to(machine.device)
    if start is not None:
        learner.clip.load_state_dict(start.state_dict())
        for part in (learner.clip.text_model, learner.clip.text_projection):
            part.requires_grad_(False)
    optimizers = _optimizers(learner, stage.lr)
    average = runs.Average(learner, 300)
    parts = {"learner": learner, "average": average, "adam": optimizers[0], "muon": optimizers[1]}
    run = runs.Run(folder, stage, parts, machine.save_minutes)
    series = 100 if start is None else 110
    renderer = render.Renderer(world.sprites, machine.device)
    # Half of the batches stand before one background: otherwise backgrounds, which are easier, are all that is learned.
    batches = feed.SceneBatches(world, series, scenes.Mix(core=0.5), stage.batch, duels=True)
    for step, (drawn, packed) in zip(
        run.steps(), feed.iterate_batches(batches, run.step, machine.workers), strict=False
    ):
        hide = 0.5 if run.progress < 0.8 else 0.0
        factor = runs.lr_factor(run.progress, step)
        pictures, ids, names, kinds = prepare_batch(drawn, packed, words, renderer)
        with runs.autocast(machine):
            contrast, naming = learner.losses(pictures, ids, names, kinds, hide)
        (contrast + 0.5 * naming).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        for optimizer in optimizers:
            runs.set_lr(optimizer, stage.lr * factor)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(learner)
        if step % 50 == 0:
            run.log(contrast=contrast.item(), naming=naming.item(), lr=stage.lr * factor)
        if step % 200 == 199 and export:
            export(averaged_model(learner, average))
    model = averaged_model(learner, average)
    if export:
        export(model)
    return model


def _optimizers(learner, lr):
    """AdamW, and Muon for the towers' matrices, whose updates are scaled to AdamW's size."""
    hidden = lambda name, p: p.ndim == 2 and ".layers." in name  # noqa: E731
    named = [(n, p) for n, p in learner.named_parameters() if p.requires_grad]
    adam = torch.optim.AdamW([p for n, p in named if not hidden(n, p)], lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    muon = torch.optim.Muon(
        [p for n, p in named if hidden(n, p)], lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    return adam, muon


def averaged_model(learner, average):
    """A CLIPModel with the averaged weights, to judge with or to ship."""
    model = build(tokenizer.SIZE)
    model.load_state_dict({k[5:]: v for k, v in average.shadow.items() if k.startswith("clip.")})
    return model.eval()


def text_tower(clip):
    """The text tower on its own, as SD's text_encoder."""
    tower = CLIPTextModel(clip.config.text_config)
    prefix = "text_model." if any(name.startswith("text_model.") for name in tower.state_dict()) else ""
    weights = {k.removeprefix("text_model."): v for k, v in clip.state_dict().items() if k.startswith("text_model.")}
    tower.load_state_dict({prefix + k: v for k, v in weights.items()})
    return tower.eval()


@torch.no_grad()
def features(clip, images=None, ids=None):
    """Unit features of pictures (B, 3, 128, 128) in -1..1 or of token ids."""
    if images is not None:
        pooled = clip.vision_model(pixel_values=images).pooler_output
        return F.normalize(clip.visual_projection(pooled).float(), dim=-1)
    return F.normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output).float(), dim=-1)
