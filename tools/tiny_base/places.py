"""Backgrounds as batched tensor operations: colour planes, patterns and twelve procedural places.

Every painter gets x, y in 0..1 with shape (1, H, W), the first and second colour (B, 3, 1, 1), four knobs
in 0..1 as (B, 1, 1) each, and a noise bank; it returns (B, 3, H, W) in 0..1. Places keep one composition
each and vary it a little: a small model can learn them, a person knows them at a glance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Knobs = list[Tensor]


def noise_bank(device: str | torch.device, side: int = 256, seed: int = 7) -> Tensor:
    """Smooth noise at three scales, tileable, (3, side, side) in 0..1: coarse, middling, fine."""
    g = torch.Generator().manual_seed(seed)
    planes = []
    for cells in (4, 16, 64):
        grid = F.pad(torch.rand(1, 1, cells, cells, generator=g), (2, 2, 2, 2), mode="circular")
        big = F.interpolate(grid, scale_factor=side // cells, mode="bicubic")
        cut = 2 * side // cells
        planes.append(big[0, 0, cut : cut + side, cut : cut + side].clamp(0, 1))
    return torch.stack(planes).to(device)


def _noise(bank: Tensor, scale: int, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Look the bank up at (x, y) shifted by knobs: (B, H, W)."""
    side = bank.shape[-1]
    u = ((x + dx) * side).long() % side
    v = ((y + dy) * side).long() % side
    return bank[scale][v, u]


def _rgb(*values: float, like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, 3, 1, 1) / 255


def _mix(a: Tensor, b: Tensor, amount: Tensor) -> Tensor:
    """a where amount is 0, b where it is 1; amount is (B, H, W)."""
    return a + (b - a) * amount.clamp(0, 1)[:, None]


def _step(value: Tensor, sharp: float = 90.0) -> Tensor:
    """A soft edge at 0, about one pixel of 128 wide."""
    return (value * sharp + 0.5).clamp(0, 1)


def plain(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    return first.expand(-1, -1, x.shape[1], x.shape[2])


def stripes(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    angle = (k[0] * 4).floor() * (math.pi / 4)
    wave = ((x * torch.cos(angle) + y * torch.sin(angle)) * (4 + 2 * k[1]) + k[2]) % 1.0
    return _mix(first, second, _step((wave - 0.5).abs() - 0.25, 20.0))


def dots(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    n = 4 + (k[1] * 2).floor()
    u, v = (x * n + k[2]) % 1.0 - 0.5, (y * n + k[3]) % 1.0 - 0.5
    return _mix(first, second, _step(0.26 - (u * u + v * v).sqrt(), 20.0))


def checks(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    n = 2 + (k[1] * 2).floor()
    wave = torch.sin((x * n + k[2]) * 2 * math.pi) * torch.sin((y * n + k[3]) * 2 * math.pi)
    return _mix(first, second, _step(wave, 6.0))


def gradient(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    flat = (k[0] < 0.5).float()
    return _mix(first, second, flat * x + (1 - flat) * y)


def grass(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    blades = _noise(bank, 2, x, y * 0.35, k[0], k[1]) * 0.3 + _noise(bank, 1, x, y, k[1], k[2]) * 0.5
    return _mix(_rgb(58, 124, 40, like=first), _rgb(112, 184, 66, like=first), blades)


def table(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    plank = y * 4 + k[0]
    grain = _noise(bank, 1, x * 0.2, y * 2, k[1] + plank.floor() * 0.37, k[2])
    wood = _mix(_rgb(150, 98, 54, like=first), _rgb(190, 134, 82, like=first), grain)
    return _mix(wood, _rgb(92, 56, 28, like=first), _step(0.05 - (plank % 1.0 - 0.5).abs(), 25.0))


def beach(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    horizon, shore = 0.36 + 0.08 * k[0], 0.58 + 0.06 * k[1]
    wavy = shore + 0.015 * torch.sin(x * 9 + k[2] * 6)
    sky = _mix(_rgb(98, 176, 240, like=first), _rgb(190, 226, 250, like=first), y / 0.4)
    sea = _mix(_rgb(22, 104, 168, like=first), _rgb(52, 166, 190, like=first), (y - horizon) / 0.2)
    sand = _mix(_rgb(240, 214, 156, like=first), _rgb(220, 190, 130, like=first), (y - shore) * 2.2)
    return _mix(_mix(sky, sea, _step(y - horizon)), sand, _step(y - wavy))


def sky(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    blue = _mix(_rgb(74, 150, 232, like=first), _rgb(160, 210, 248, like=first), y)
    clouds = _noise(bank, 0, x, y * 1.6, k[0], k[1]) * 0.75 + _noise(bank, 1, x, y * 1.6, k[2], k[3]) * 0.25
    return _mix(blue, _rgb(252, 252, 255, like=first), (clouds - 0.52) * 4)


def space(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    glow = _noise(bank, 0, x, y, k[0], k[1])
    dark = _mix(_rgb(8, 8, 28, like=first), _rgb(46, 22, 78, like=first), glow * 0.9)
    # one star in about a third of the cells of a 9 x 9 grid, its place and size from the noise bank
    u, v = x * 9 + k[2] * 9, y * 9 + k[3] * 9
    cx, cy = u.floor() * 0.0917, v.floor() * 0.1313
    there = _noise(bank, 2, cx, cy, k[0], k[1])
    du = u % 1.0 - 0.3 - 0.4 * _noise(bank, 2, cx, cy, k[1] + 0.3, k[0])
    dv = v % 1.0 - 0.3 - 0.4 * _noise(bank, 2, cx, cy, k[0] + 0.6, k[1] + 0.2)
    star = _step(0.13 * there - (du * du + dv * dv).sqrt(), 9.0) * (there > 0.55)
    return _mix(dark, _rgb(255, 255, 240, like=first), star)


def snow(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    hill = 0.46 + 0.06 * k[0] + 0.03 * torch.sin(x * 5 + k[1] * 6)
    sky_ = _mix(_rgb(158, 184, 214, like=first), _rgb(206, 220, 236, like=first), y * 2)
    ground = _mix(_rgb(252, 252, 255, like=first), _rgb(224, 232, 246, like=first), (y - hill) * 1.6)
    return _mix(sky_, ground, _step(y - hill))


def bricks(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    row = y * 8 + k[0]
    column = x * 4 + k[1] + 0.5 * (row.floor() % 2)
    tone = _noise(bank, 2, column.floor() * 0.173, row.floor() * 0.119, k[2], k[3])
    red = _mix(_rgb(158, 66, 52, like=first), _rgb(190, 90, 70, like=first), tone)
    joint = torch.minimum((row % 1.0 - 0.5).abs() * -1 + 0.5, ((column % 1.0 - 0.5).abs() * -1 + 0.5) * 2)
    return _mix(red, _rgb(206, 196, 184, like=first), _step(0.08 - joint, 14.0))


def forest(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    leaves = _noise(bank, 1, x, y, k[0], k[1])
    green = _mix(_rgb(20, 58, 32, like=first), _rgb(50, 108, 52, like=first), leaves)
    trunk = _step(0.16 - ((x * 4 + k[2]) % 1.0 - 0.5).abs(), 12.0) * _step(0.78 - y)
    ground = _mix(green, _rgb(62, 42, 28, like=first), trunk * 0.9)
    return _mix(ground, _rgb(64, 84, 36, like=first), _step(y - 0.76 - 0.02 * torch.sin(x * 8 + k[3] * 6)))


def city(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    block = x * 5 + k[0]
    height = 0.18 + 0.34 * _noise(bank, 2, block.floor() * 0.237, torch.zeros_like(y), k[1], k[2])
    tone = _noise(bank, 2, block.floor() * 0.311, torch.zeros_like(y), k[2], k[1])
    tower = _mix(_rgb(84, 92, 112, like=first), _rgb(132, 126, 134, like=first), tone)
    lit = ((block % 1.0 * 3) % 1.0 - 0.5).abs().maximum(((y * 14) % 1.0 - 0.5).abs())
    tower = _mix(tower, _rgb(250, 222, 130, like=first), _step(0.27 - lit, 8.0))
    sky_ = _mix(_rgb(150, 196, 236, like=first), _rgb(206, 226, 242, like=first), y * 1.6)
    scene = _mix(sky_, tower, _step(y - height))
    road = 0.74
    scene = _mix(
        scene, _rgb(74, 76, 82, like=first).expand(x.shape[0], -1, -1, -1), _step(y - road).expand(x.shape[0], -1, -1)
    )
    dash = _step(0.25 - ((x * 4 + k[3]) % 1.0 - 0.5).abs(), 12.0) * _step(0.014 - (y - 0.88).abs())
    return _mix(scene, _rgb(246, 240, 220, like=first), dash)


def desert(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    far = 0.5 + 0.04 * torch.sin(x * 6 + k[0] * 6)
    near = 0.68 + 0.06 * torch.sin(x * 4 + k[1] * 6)
    sky_ = _mix(_rgb(110, 184, 236, like=first), _rgb(246, 226, 190, like=first), y * 1.9)
    scene = _mix(sky_, _rgb(226, 168, 96, like=first), _step(y - far))
    return _mix(scene, _rgb(204, 138, 68, like=first), _step(y - near))


def underwater(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    water = _mix(_rgb(44, 168, 204, like=first), _rgb(6, 54, 116, like=first), y)
    rays = _noise(bank, 0, x * 1.2 + y * 0.5, torch.zeros_like(y), k[0], k[1])
    water = _mix(water, _rgb(150, 224, 236, like=first), (rays - 0.5) * 1.2 * (1 - y))
    u, v = x * 5 + k[2], y * 5 + k[3]
    there = _noise(bank, 2, u.floor() * 0.171, v.floor() * 0.213, k[0], k[1])
    ring = ((u % 1.0 - 0.5) ** 2 + (v % 1.0 - 0.5) ** 2).sqrt() - 0.2 * there
    bubble = _step(0.05 - ring.abs(), 14.0) * (there > 0.62)
    return _mix(water, _rgb(206, 240, 248, like=first), bubble * 0.8)


def sunset(x: Tensor, y: Tensor, first: Tensor, second: Tensor, k: Knobs, bank: Tensor) -> Tensor:
    horizon = 0.64 + 0.06 * k[0]
    up = (y / horizon).clamp(0, 1)
    sky_ = _mix(_rgb(88, 44, 122, like=first), _rgb(250, 146, 62, like=first), up * up)
    cx = 0.25 + 0.5 * k[1]
    sun = _step(0.15 - ((x - cx) ** 2 + (y - horizon) ** 2).sqrt(), 60.0)
    scene = _mix(sky_, _rgb(255, 220, 110, like=first), sun)
    return _mix(scene, _rgb(46, 30, 66, like=first), _step(y - horizon))


PAINTERS = (
    plain,
    stripes,
    dots,
    checks,
    gradient,
    grass,
    table,
    beach,
    sky,
    space,
    snow,
    bricks,
    forest,
    city,
    desert,
    underwater,
    sunset,
)


def paint(kinds: Tensor, backs: Tensor, size: int, bank: Tensor) -> Tensor:
    """(B,) kinds and (B, 10) colours and knobs -> (B, 3, size, size). Each kind present is painted as one batch."""
    device = bank.device
    line = (torch.arange(size, device=device) + 0.5) / size
    x, y = line.view(1, 1, -1).expand(1, size, size), line.view(1, -1, 1).expand(1, size, size)
    out = torch.empty(len(kinds), 3, size, size, device=device)
    for kind in kinds.unique().tolist():
        rows = (kinds == kind).nonzero()[:, 0]
        b = backs[rows]
        first, second = b[:, :3, None, None], b[:, 3:6, None, None]
        knobs = [b[:, 6 + i, None, None] for i in range(4)]
        out[rows] = PAINTERS[kind](x, y, first, second, knobs, bank)
    return out
