"""The UNet: v-prediction on the frozen text tower, zero terminal SNR, caption dropout, a moving average.

Most of its arithmetic is at 8 x 8 and 4 x 4, where a picture's things are decided and a step is cheap.
"""

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from . import feed, muon, pool, runs
from .autoencoder import CHANNELS
from .clip import WIDTH
from .worker_group import SYNC_EVERY, WorkerGroup

GUIDANCE = 3.0
AVERAGE_EVERY = 4  # steps: an update of the moving average costs as much as one of AdamW


def build(blocks=(48, 96, 224), layers=(1, 2, 1)):
    """A UNet2DConditionModel for 16 x 16 latents, cross-attention at 8 x 8 and in the middle.

    It is deepest at 8 x 8, for at 4 x 4 a thing that shares the image with another is two positions wide.
    """
    return UNet2DConditionModel(
        sample_size=16, in_channels=CHANNELS, out_channels=CHANNELS, block_out_channels=blocks, layers_per_block=layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 4), cross_attention_dim=WIDTH, norm_num_groups=16, use_linear_projection=True,
    )  # fmt: skip


def scheduler():
    """SD's noise schedule with zero terminal SNR (Lin et al. 2023), so that any brightness can be drawn."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
        steps_offset=1,  # without a meaning for trailing steps; the pipeline warns where it is not 1
    )  # fmt: skip


def loss_of(unet, alphas, latents, noise, t, states, weights):
    """Weighted mean squared error of the velocity; alphas are the cumulative products (T,), t is (B,)."""
    a = alphas[t].sqrt()[:, None, None, None]
    s = (1 - alphas[t]).sqrt()[:, None, None, None]
    velocity = a * noise - s * latents
    error = (unet(a * latents + s * noise, t, states).sample.float() - velocity) ** 2
    return (error * weights).mean()


def timestep_chances(alphas, middle=-0.3, width=2.0, floor=0.3):
    """How often each timestep is trained: more where signal and noise are alike, for there shapes are decided."""
    log_snr = torch.log(alphas.clamp(1e-6, 1 - 1e-6) / (1 - alphas.clamp(1e-6, 1 - 1e-6)))
    return torch.exp(-(((log_snr - middle) / width) ** 2) / 2) + floor


def train(world, words, clip_text, vae, preset, folder, machine, snapshot=None, start=None):
    """Train to the end (or go on after a kill); -> the averaged UNet. `snapshot(unet)` is called at each save.

    With `start`, a trained UNet, its weights are the first ones.
    """
    stage, workers = preset.unet, WorkerGroup()
    unet = _first_weights(machine.device, start)
    adam, matrices = muon.split(unet, stage.lr, apart=("conv_in", "conv_out"))
    average = runs.Average(unet, 100)
    source = feed.SceneBatches(world, 300 + workers.rank, preset.mix, preset.refill)
    scenes_pool = pool.Pool(source, words, vae, clip_text, preset.pool, machine)
    parts = {"unet": unet, "adam": adam, "muon": matrices, "average": average, "pool": scenes_pool}
    run = runs.Run(folder, stage, parts, machine.save_minutes, workers)
    while len(scenes_pool) < min(preset.pool, preset.pool_start):
        scenes_pool.add()
    noise_source = _NoiseSource(machine.device)
    losses, shown = [], run.minutes
    for step in run.steps():
        rate = stage.lr * runs.lr_factor(run.progress, step, warmup=200, fall=0.4)
        if step % preset.refill_every == 0:
            scenes_pool.add()
        if step % SYNC_EVERY == 0:
            workers.average(unet)
        turn = step * workers.size + workers.rank
        latents, states, weights = scenes_pool.batch(turn, stage.batch)
        noise, t = noise_source.draw(turn, latents.shape)
        with runs.autocast(machine):
            loss = loss_of(unet, noise_source.alphas, latents, noise, t, states, weights)
        loss.backward()
        _update(unet, (adam, matrices), rate)
        if step % AVERAGE_EVERY == 0:
            average.update(unet)
        losses.append(loss.detach())
        if step % 100 == 0:
            seen = (step + 1) * stage.batch * workers.size
            run.log(loss=torch.stack(losses).mean().item(), seen=seen, views=round(seen / len(world.sprites)))
            losses.clear()
        if snapshot and workers.rank == 0 and run.minutes - shown > 2 * machine.save_minutes:
            snapshot(averaged_model(average))
            shown = run.minutes
    if snapshot and workers.rank == 0:
        snapshot(averaged_model(average))
    return averaged_model(average)


def _first_weights(device, start):
    torch.manual_seed(3)
    unet = build().to(device)
    if start is not None:
        load_shallower(unet, start)
    if device == "cpu":
        unet.set_attn_processor(AttnProcessor())  # plain products: the fused kernel's backward is slow on a CPU
    return unet


class _NoiseSource:
    """Noise and timesteps as functions of a batch's number, whichever process trains it."""

    def __init__(self, device):
        cumulative_products = scheduler().alphas_cumprod
        self.alphas, self._chances = cumulative_products.to(device), timestep_chances(cumulative_products)

    def draw(self, number, shape):
        """Noise of that shape, (B, C, h, w), and timesteps (B,)."""
        g = torch.Generator().manual_seed(number)
        noise = torch.randn(shape, generator=g)
        t = torch.multinomial(self._chances, shape[0], replacement=True, generator=g)
        return noise.to(self.alphas.device), t.to(self.alphas.device)


def _update(unet, optimizers, rate):
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    for optimizer in optimizers:
        runs.set_lr(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def load_shallower(unet, start):
    """Give `unet` the weights of `start`, which may have fewer layers in a block; it then predicts the same.

    Layers that only `unet` has are set to the identity. An up block's first layer reads the output of the down block's
    last one, and its last layer that of the block above, so new layers go before the last one of an up block and after
    the last one of a down block.
    """
    weights = unet.state_dict()
    for name, value in start.state_dict().items():
        weights[_moved(name, unet, start)] = value
    unet.load_state_dict(weights)
    for new, old, ends in ((unet.down_blocks, start.down_blocks, 0), (unet.up_blocks, start.up_blocks, 1)):
        for block, shallower in zip(new, old, strict=True):
            first, last = len(shallower.resnets) - ends, len(block.resnets) - ends
            _set_to_identity(block.resnets[first:last], getattr(block, "attentions", [])[first:last])


def _moved(name, unet, start):
    """The name that a weight of `start` has in the deeper `unet`."""
    parts = name.split(".")
    if parts[0] == "up_blocks" and parts[2] in ("resnets", "attentions"):
        last = len(start.up_blocks[int(parts[1])].resnets) - 1
        if int(parts[3]) == last:
            parts[3] = str(len(unet.up_blocks[int(parts[1])].resnets) - 1)
    return ".".join(parts)


def _set_to_identity(resnets, attentions):
    """Make layers return their input; a layer that also reads a skip connection ignores it."""
    for resnet in resnets:
        torch.nn.init.zeros_(resnet.conv2.weight)
        torch.nn.init.zeros_(resnet.conv2.bias)
        if resnet.conv_shortcut is not None:
            torch.nn.init.dirac_(resnet.conv_shortcut.weight)
            torch.nn.init.zeros_(resnet.conv_shortcut.bias)
    for attention in attentions:
        torch.nn.init.zeros_(attention.proj_out.weight)
        torch.nn.init.zeros_(attention.proj_out.bias)


def averaged_model(average):
    """A UNet with the averaged weights."""
    model = build()
    model.load_state_dict(average.shadow)
    return model.eval()
