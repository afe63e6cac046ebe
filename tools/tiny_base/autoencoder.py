"""The KL autoencoder: 128-px pictures to 16 x 16 latents and back (Rombach et al. 2022).

It starts as a thumbnail: the encoder as a box average, the decoder as nearest-neighbour enlarging, with the
learned layers adding nothing yet. From there the detail channels learn what the thumbnail lacks. That start is
what makes a short training enough, and it leaves latents in which the large matters most, as in pictures.
"""

import torch
from diffusers import AutoencoderKL

from . import feed, render, runs, scenes

CHANNELS = 8
KL_WEIGHT = 2e-5
LATENT_NOISE = 0.08  # noise on the latents while the decoder learns: what a sampler leaves behind must not show


def build():
    """An AutoencoderKL of 2.6 M parameters, set up as a thumbnail and its enlargement."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128), layers_per_block=1, latent_channels=CHANNELS,
        norm_num_groups=1, sample_size=128, mid_block_add_attention=False, force_upcast=False,
    )  # fmt: skip
    start_as_thumbnail(model)
    return model


@torch.no_grad()
def start_as_thumbnail(model):
    """Carry red, green and blue through all layers unchanged, as pairs +x, -x: silu(x) - silu(-x) = x, exactly.

    A constant pair beside them keeps the group norms from dividing a picture's brightness away.
    """
    for half in (model.encoder, model.decoder):
        for name, module in half.named_modules():
            if name.endswith("conv2"):
                module.weight.mul_(0.02)  # residual branches begin near nothing
                module.bias.zero_()
            elif name.endswith("conv_shortcut"):
                _write_identity(module, torch.eye(8), centre=0)
            elif name.endswith("downsamplers.0.conv"):
                _write_identity(module, torch.eye(8), box=True)
            elif name.endswith("upsamplers.0.conv"):
                _write_identity(module, torch.eye(8), centre=1)
    split = torch.zeros(8, 3)
    split[range(0, 6, 2), range(3)], split[range(1, 6, 2), range(3)] = 1, -1
    join = torch.zeros(3, 8)
    join[range(3), range(0, 6, 2)], join[range(3), range(1, 6, 2)] = 1, -1
    for half in (model.encoder, model.decoder):
        _write_identity(half.conv_in, split, centre=1)
        half.conv_in.bias[:8] = torch.tensor([0, 0, 0, 0, 0, 0, 1.5, -1.5])
        _write_identity(half.conv_out, join, centre=1)
    model.encoder.conv_out.bias[CHANNELS:] = -6  # small posterior noise at first
    model.encoder.conv_out.weight[CHANNELS:] *= 0.1
    for conv in (model.quant_conv, model.post_quant_conv):
        conv.weight.copy_(torch.eye(len(conv.weight))[:, :, None, None])
        conv.bias.zero_()


def _write_identity(conv, matrix, centre=0, box=False):
    """Write `matrix` (out, in) into the first channels of a convolution: as identity or as a 2 x 2 average."""
    rows, columns = matrix.shape
    conv.weight[:rows] = 0
    if box:
        conv.weight[:rows, :columns, :2, :2] = matrix[:, :, None, None] / 4
    else:
        conv.weight[:rows, :columns, centre, centre] = matrix
    conv.bias[:rows] = 0


def loss_of(model, images, noise, rough):
    """Reconstruction and KL; (B, 3, H, W) -> scalar, and PSNR in dB. `noise`, `rough`: unit noise like the latents."""
    posterior = model.encode(images).latent_dist
    latents = posterior.mean + posterior.std * noise + LATENT_NOISE * rough
    error = (model.decode(latents).sample - images).float()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    mse = (error**2).mean()
    loss = (
        error.abs().mean() + 2 * mse + 0.5 * edges + KL_WEIGHT * posterior.kl().float().mean() / images[0].numel() * 192
    )
    return loss, 10 * torch.log10(4 / mse.detach())


def train(world, stage, folder, machine):
    """Train to the end (or go on after a kill); -> the AutoencoderKL with its latents balanced."""
    torch.manual_seed(2)
    device = machine.device
    model = build().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    average = runs.Average(model, 500)
    run = runs.Run(folder, stage, {"model": model, "optimizer": optimizer, "average": average}, machine.save_minutes)
    renderer = render.Renderer(world.sprites, device)
    batches = feed.SceneBatches(world, 200, scenes.Mix(patterns=0.2), stage.batch)
    psnrs = []
    for step, (_, packed) in zip(run.steps(), feed.iterate_batches(batches, run.step, machine.workers), strict=False):
        runs.set_lr(optimizer, stage.lr * runs.lr_factor(run.progress, step, warmup=50))
        whole = run.progress > 0.9
        pictures = renderer(packed)
        if not whole:
            pictures = crop(pictures, step)
        noise, rough = torch.randn(2, len(pictures), CHANNELS, *(s // 8 for s in pictures.shape[2:]), device=device)
        with runs.autocast(machine):
            loss, psnr = loss_of(model, pictures, noise, rough)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)
        psnrs.append(psnr.item())
        if step % 50 == 0:
            run.log(loss=loss.item(), psnr=sum(psnrs) / len(psnrs))
            psnrs.clear()
    model = build().to(device)
    model.load_state_dict(average.shadow)
    balance(model.eval(), world, renderer)
    return model


def crop(images, step, side=64):
    """Cut one square out of each picture, anywhere on a grid of 8 px: most of a picture is much like itself."""
    g = torch.Generator().manual_seed(step)
    spots = torch.randint(0, (images.shape[-1] - side) // 8 + 1, (len(images), 2), generator=g) * 8
    return torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(images, spots.tolist(), strict=True)])


@torch.no_grad()
def balance(model, world, renderer, count=256):
    """Centre the latents, bring their channels nearer to each other, and note their scale in the config.

    The thumbnail's channels come out about ten times as large as the detail's. Taking the square root of that ratio,
    an exact change of units folded into the 1 x 1 convolutions, lets a sampler decide the large first and still see
    the small well above its last step's noise.
    """
    drawn = [scenes.draw_scene(world, 201, i, scenes.Mix()) for i in range(count)]
    latents = [model.encode(render.render(renderer, drawn[i : i + 32])).latent_dist.mean for i in range(0, count, 32)]
    latents = torch.cat(latents)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = std.clamp(min=1e-3) ** -0.5
    both, c = model.quant_conv, CHANNELS  # its outputs: c means, c log variances
    both.weight[:c] *= gain[:, None, None, None]
    both.bias[:c] = (both.bias[:c] - mean) * gain
    both.bias[c:] += 2 * gain.log()
    back = model.post_quant_conv
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight /= gain[None, :, None, None]
    model.register_to_config(scaling_factor=round(1 / (std * gain).square().mean().sqrt().item(), 4))
