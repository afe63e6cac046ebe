"""Captioned latents kept in memory: the UNet trains on them, and a few old ones give way to new ones at each step.

Drawing, painting and encoding a scene costs about as much as training on it. A scene with fresh noise is worth
training on many times, so the pool makes that cost small without ever running out of new scenes.
"""

import torch
import torch.nn.functional as F

from . import feed, render, runs, tokenizer

DETAIL = 0.2  # the deviation from a blurred image at edges and eyes, of values in -1..1


def loss_weights(pictures, cover):
    """Return how much an error at each position of the latents counts: (B, 1, 16, 16), from 0.5 to 3.

    Pictures are (B, 3, 128, 128) in -1..1, cover (B, 1, 128, 128) is 1 where a thing is. Things count more than what is
    behind them, and their edges, eyes and mouths more than their surfaces.
    """
    smooth = F.avg_pool2d(F.pad(pictures, (4, 4, 4, 4), mode="replicate"), 9, 1)
    detail = F.avg_pool2d(((pictures - smooth) ** 2).mean(1, keepdim=True), 8).sqrt()
    near = F.max_pool2d(F.avg_pool2d(cover, 8), 3, 1, 1)
    return 0.5 + near * (0.5 + (detail / DETAIL).clamp(max=2))


class Pool:
    """A ring of latents (fp16), text states (fp16) and loss weights. Scene numbers only go up, so a resumed run goes on
    with scenes that it has not seen."""

    def __init__(self, source, words, vae, text_tower, size, machine):
        device = machine.device
        self.source, self.words, self.vae, self.text = source, words, vae.to(device), text_tower.to(device)
        self.renderer = render.Renderer(source.world.sprites, device)
        self.device, self.machine, self.feed = device, machine, None
        width = text_tower.config.hidden_size
        self.latents = torch.empty(size, vae.config.latent_channels, 16, 16, dtype=torch.float16, device=device)
        self.states = torch.empty(size, 77, width, dtype=torch.float16, device=device)
        self.weights = torch.empty(size, 1, 16, 16, dtype=torch.float16, device=device)
        self.drawn = 0  # scenes ever drawn; the newest len(self) of them are in the pool
        self.first = 0  # number of the series' first batch
        self.empty_states = self._encode_text([""])[0]

    def __len__(self):
        return min(self.drawn, len(self.latents))

    def state_dict(self):
        return {"first": self.first + self.drawn // self.source.count}

    def load_state_dict(self, state):
        self.first = state["first"]

    @torch.no_grad()
    def add(self):
        """One batch of new scenes over the oldest."""
        self.feed = self.feed or feed.iterate_batches(self.source, self.first, self.machine.workers)
        drawn, packed = next(self.feed)
        count = len(drawn)
        pictures, cover = self.renderer.with_cover(packed)
        with runs.autocast(self.machine):
            latents = self.vae.encode(pictures).latent_dist.mean
        rows = (torch.arange(count, device=self.device) + self.drawn) % len(self.latents)
        self.latents[rows] = (latents.float() * self.vae.config.scaling_factor).half()
        self.states[rows] = self._encode_text([s.caption for s in drawn])
        self.weights[rows] = loss_weights(pictures, cover).half()
        self.drawn += count

    @torch.no_grad()
    def _encode_text(self, captions):
        """(B, 77, d): the frozen tower sees padding as SD's does, so all 77 places count."""
        ids = tokenizer.encode(self.words, captions).to(self.device)
        return self.text(input_ids=ids).last_hidden_state.half()

    def batch(self, step, count, dropout=0.1):
        """Latents (B, C, 16, 16), states (B, 77, d), weights (B, 1, 16, 16); chance is a function of the step."""
        g = torch.Generator().manual_seed(step * 7919 + self.source.seed)
        rows = torch.randint(0, len(self), (count,), generator=g).to(self.device)
        states = self.states[rows].float()
        silent = (torch.rand(count, generator=g) < dropout).to(self.device)
        states = torch.where(silent[:, None, None], self.empty_states.float(), states)
        return self.latents[rows].float(), states, self.weights[rows].float()
