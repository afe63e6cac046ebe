"""Triton kernels for the UNet's blocks on a CUDA card: GroupNorm with SiLU, GEGLU and sums of feature maps, both ways.

Feature maps are (B, C, H, W) in channels_last, which a kernel reads as (B, P, C) with P = H W positions. Sums are in
fp32 and in a fixed order, so that a result never depends on chance; nothing is tuned while running, so that calls can
be captured in a CUDA graph.

Import it only where Triton is installed; `fast_blocks.find_kernels` does so.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]  # not on every system
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

_TILE = 4096  # elements that a program loads at once; half as many backward, which needs twice the registers
_PROGRAMS = 528  # 4 for each processor of a large card
_MAX_CHUNKS = 64  # of an image's positions; each has its own program and its own partial sums
_MAX_WHOLE = 16384  # elements up to which one program holds all positions of its groups
_WARPS = 8
_GLU_ROWS, _GLU_COLUMNS = 8, 256  # a tile of GEGLU, and of maps that are joined
_SUM_BLOCK = 2048  # elements of a program of the residual's sum
_RUNTIME = [
    "positions",
    "c8",
    "width8",
    "cpg",
    "per_block",
    "num_groups",
    "chunk_rows",
    "chunks",
]  # never a reason to compile again


@triton.jit
def _member(offsets, cpg, width, GROUPS: tl.constexpr):
    """Return (channels, groups): whether a channel of the block is in a group of the block."""
    groups = tl.arange(0, GROUPS)
    return ((offsets[:, None] // cpg) == groups[None, :]) & (offsets[:, None] < width)


@triton.jit
def _sum_by_group(values, member):
    """Sum (channels,) to (groups,)."""
    return tl.sum(tl.where(member, values[:, None], 0.0), axis=0)


@triton.jit
def _by_channel(values, member):
    """Expand (groups,) to (channels,): each channel gets its group's value."""
    return tl.sum(tl.where(member, values[None, :], 0.0), axis=1)


@triton.jit
def _places(start, last, channels, offsets, width, c8, ROWS: tl.constexpr):
    """Return where rows of an image lie from its first element on, and which elements are inside."""
    rows = start + tl.arange(0, ROWS)
    return rows[:, None] * (c8 * 8) + channels[None, :], (rows < last)[:, None] & (offsets < width)[None, :]


@triton.jit
def _load_shift(shift, shift_bias, image, channels, offsets, width, c8, SHIFT: tl.constexpr, PAD: tl.constexpr):
    """Return what is added to each channel before the norm. SHIFT: bit 1, a shift of each image; bit 2, one of all."""
    total = tl.zeros([PAD], tl.float32)
    if SHIFT & 1:
        total += tl.load(shift + image * (c8 * 8) + channels, mask=offsets < width, other=0.0).to(tl.float32)
    if SHIFT & 2:
        total += tl.load(shift_bias + channels, mask=offsets < width, other=0.0).to(tl.float32)
    return total


@triton.jit
def _group_moments(means, deviations, count, cpg, member):
    """Return mean and squared deviations of each group, from those of its channels, each of `count` elements."""
    mean = _sum_by_group(means, member) / cpg
    delta = means - _by_channel(mean, member)
    return mean, _sum_by_group(deviations + count * delta * delta, member)


@triton.jit
def _activate(z, SILU: tl.constexpr):
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    return z


@triton.jit
def _gradient_before_silu(gradient, z, SILU: tl.constexpr):
    if SILU:
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        gradient *= sigmoid * (1.0 + z * (1.0 - sigmoid))
    return gradient


@triton.jit
def _load_affine(weight, bias, channels, offsets, width):
    scale = tl.load(weight + channels, mask=offsets < width, other=0.0).to(tl.float32)
    return scale, tl.load(bias + channels, mask=offsets < width, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=_RUNTIME)
def _moments_kernel(
    x, shift, shift_bias, partial, positions, c8, width8, cpg, per_block, num_groups, chunk_rows, chunks,
    SHIFT: tl.constexpr, ROWS: tl.constexpr, PAD: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Compute the partial moments of a chunk of positions: partial (B, chunks, groups, 2).

    Sums are of differences from the chunk's first row, so that squares of large means do not cancel.
    """
    chunk, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    width, offsets = width8 * 8, tl.arange(0, PAD)
    channels = block * width + offsets
    x += image.to(tl.int64) * positions * (c8 * 8)
    first = chunk * chunk_rows
    last = tl.minimum(first + chunk_rows, positions)
    origin = tl.load(x + first * (c8 * 8) + channels, mask=offsets < width, other=0.0).to(tl.float32)
    sums = tl.zeros([ROWS, PAD], tl.float32)
    squares = tl.zeros([ROWS, PAD], tl.float32)
    for start in range(first, last, ROWS):
        places, inside = _places(start, last, channels, offsets, width, c8, ROWS)
        tile = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        delta = tl.where(inside, tile - origin[None, :], 0.0)
        sums += delta
        squares += delta * delta
    count = (last - first).to(tl.float32)
    means = tl.sum(sums, axis=0) / count
    deviations = tl.sum(squares, axis=0) - means * means * count
    means += origin + _load_shift(shift, shift_bias, image, channels, offsets, width, c8, SHIFT, PAD)
    member = _member(offsets, cpg, width, GROUPS)
    mean, deviations = _group_moments(means, deviations, count, cpg.to(tl.float32), member)
    groups = tl.arange(0, GROUPS)
    targets = partial + ((image * chunks + chunk) * num_groups + block * per_block + groups) * 2
    tl.store(targets, mean, mask=groups < per_block)
    tl.store(targets + 1, deviations, mask=groups < per_block)


@triton.jit(do_not_specialize=_RUNTIME)
def _normalize_kernel(
    x, shift, shift_bias, weight, bias, y, partial, means, rstds, positions, eps, c8, width8, cpg, per_block,
    num_groups, chunk_rows, chunks,
    SHIFT: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, PAD: tl.constexpr, GROUPS: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Reduce the partial moments and normalize a chunk of positions."""
    chunk, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    width, offsets = width8 * 8, tl.arange(0, PAD)
    channels = block * width + offsets
    groups = tl.arange(0, GROUPS)
    numbers = tl.arange(0, CHUNKS)
    mask = (numbers < chunks)[:, None] & (groups < per_block)[None, :]
    sources = partial + ((image * chunks + numbers[:, None]) * num_groups + block * per_block + groups[None, :]) * 2
    chunk_means = tl.load(sources, mask=mask, other=0.0)
    deviations = tl.load(sources + 1, mask=mask, other=0.0)
    counts = tl.minimum(tl.maximum(positions - numbers * chunk_rows, 0), chunk_rows).to(tl.float32)
    shares = counts / positions.to(tl.float32)
    mean = tl.sum(chunk_means * shares[:, None], axis=0)
    delta = chunk_means - mean[None, :]
    count = positions.to(tl.float32) * cpg.to(tl.float32)
    variance = tl.sum(deviations, axis=0) / count + tl.sum(delta * delta * shares[:, None], axis=0)
    rstd = 1.0 / tl.sqrt(variance + eps)
    if chunk == 0:
        own = image * num_groups + block * per_block + groups
        tl.store(means + own, mean, mask=groups < per_block)
        tl.store(rstds + own, rstd, mask=groups < per_block)
    member = _member(offsets, cpg, width, GROUPS)
    scale, offset = _load_affine(weight, bias, channels, offsets, width)
    added = _load_shift(shift, shift_bias, image, channels, offsets, width, c8, SHIFT, PAD)
    scale *= _by_channel(rstd, member)
    added -= _by_channel(mean, member)
    x += image.to(tl.int64) * positions * (c8 * 8)
    y += image.to(tl.int64) * positions * (c8 * 8)
    first = chunk * chunk_rows
    last = tl.minimum(first + chunk_rows, positions)
    for start in range(first, last, ROWS):
        places, inside = _places(start, last, channels, offsets, width, c8, ROWS)
        tile = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        z = (tile + added[None, :]) * scale[None, :] + offset[None, :]
        tl.store(y + places, _activate(z, SILU).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_RUNTIME)
def _whole_kernel(
    x, shift, shift_bias, weight, bias, y, means, rstds, positions, eps, c8, width8, cpg, per_block, num_groups,
    SHIFT: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, PAD: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Compute GroupNorm of all positions of a block of groups, read once."""
    block, image = tl.program_id(0), tl.program_id(1)
    width, offsets = width8 * 8, tl.arange(0, PAD)
    channels = block * width + offsets
    member = _member(offsets, cpg, width, GROUPS)
    start = image.to(tl.int64) * positions * (c8 * 8)
    places, inside = _places(0, positions, channels, offsets, width, c8, ROWS)
    tile = tl.load(x + start + places, mask=inside, other=0.0).to(tl.float32)
    tile += _load_shift(shift, shift_bias, image, channels, offsets, width, c8, SHIFT, PAD)[None, :]
    scale, offset = _load_affine(weight, bias, channels, offsets, width)
    count = positions.to(tl.float32) * cpg.to(tl.float32)
    mean = _sum_by_group(tl.sum(tl.where(inside, tile, 0.0), axis=0), member) / count
    tile = tl.where(inside, tile - _by_channel(mean, member)[None, :], 0.0)
    rstd = 1.0 / tl.sqrt(_sum_by_group(tl.sum(tile * tile, axis=0), member) / count + eps)
    groups = tl.arange(0, GROUPS)
    own = image * num_groups + block * per_block + groups
    tl.store(means + own, mean, mask=groups < per_block)
    tl.store(rstds + own, rstd, mask=groups < per_block)
    z = tile * (scale * _by_channel(rstd, member))[None, :] + offset[None, :]
    tl.store(y + start + places, _activate(z, SILU).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _load_moments(means, rstds, image, num_groups, block, per_block, cpg, offsets, width):
    """Load mean and 1 / deviation of each channel's group."""
    group = image * num_groups + block * per_block + offsets // cpg
    mean = tl.load(means + group, mask=offsets < width, other=0.0)
    return mean, tl.load(rstds + group, mask=offsets < width, other=0.0)


@triton.jit(do_not_specialize=_RUNTIME)
def _gradient_sums_kernel(
    x, shift, shift_bias, dy, weight, bias, means, rstds, partial, positions, c8, width8, cpg, per_block, num_groups,
    chunk_rows, chunks,
    SHIFT: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, PAD: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Compute the partial sums of a chunk of positions, (B, chunks, groups, 2): of the normalized values' gradient,
    and of it times them."""
    chunk, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    width, offsets = width8 * 8, tl.arange(0, PAD)
    channels = block * width + offsets
    start_of_image = image.to(tl.int64) * positions * (c8 * 8)
    added = _load_shift(shift, shift_bias, image, channels, offsets, width, c8, SHIFT, PAD)
    mean, rstd = _load_moments(means, rstds, image, num_groups, block, per_block, cpg, offsets, width)
    scale, offset = _load_affine(weight, bias, channels, offsets, width)
    added -= mean
    x += start_of_image
    dy += start_of_image
    first = chunk * chunk_rows
    last = tl.minimum(first + chunk_rows, positions)
    plain = tl.zeros([ROWS, PAD], tl.float32)
    weighted = tl.zeros([ROWS, PAD], tl.float32)
    for start in range(first, last, ROWS):
        places, inside = _places(start, last, channels, offsets, width, c8, ROWS)
        tile = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dy + places, mask=inside, other=0.0).to(tl.float32)  # 0 outside, and so are the sums
        normalized = (tile + added[None, :]) * rstd[None, :]
        gradient = _gradient_before_silu(gradient, normalized * scale[None, :] + offset[None, :], SILU)
        plain += gradient
        weighted += gradient * normalized
    member = _member(offsets, cpg, width, GROUPS)
    groups = tl.arange(0, GROUPS)
    targets = partial + ((image * chunks + chunk) * num_groups + block * per_block + groups) * 2
    tl.store(targets, _sum_by_group(tl.sum(plain, axis=0) * scale, member), mask=groups < per_block)
    tl.store(targets + 1, _sum_by_group(tl.sum(weighted, axis=0) * scale, member), mask=groups < per_block)


@triton.jit(do_not_specialize=_RUNTIME)
def _gradient_kernel(
    x, shift, shift_bias, dy, skip, weight, bias, means, rstds, partial, dx, positions, c8, width8, cpg, per_block,
    num_groups, chunk_rows, chunks,
    SHIFT: tl.constexpr, SILU: tl.constexpr, SKIP: tl.constexpr, ROWS: tl.constexpr, PAD: tl.constexpr,
    GROUPS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Reduce the partial sums and write the input's gradient of a chunk of positions."""
    chunk, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    width, offsets = width8 * 8, tl.arange(0, PAD)
    channels = block * width + offsets
    groups = tl.arange(0, GROUPS)
    numbers = tl.arange(0, CHUNKS)
    mask = (numbers < chunks)[:, None] & (groups < per_block)[None, :]
    sources = partial + ((image * chunks + numbers[:, None]) * num_groups + block * per_block + groups[None, :]) * 2
    count = positions.to(tl.float32) * cpg.to(tl.float32)
    plain = tl.sum(tl.load(sources, mask=mask, other=0.0), axis=0) / count
    weighted = tl.sum(tl.load(sources + 1, mask=mask, other=0.0), axis=0) / count
    member = _member(offsets, cpg, width, GROUPS)
    plain, weighted = _by_channel(plain, member), _by_channel(weighted, member)
    added = _load_shift(shift, shift_bias, image, channels, offsets, width, c8, SHIFT, PAD)
    mean, rstd = _load_moments(means, rstds, image, num_groups, block, per_block, cpg, offsets, width)
    scale, offset = _load_affine(weight, bias, channels, offsets, width)
    added -= mean
    start_of_image = image.to(tl.int64) * positions * (c8 * 8)
    x += start_of_image
    dy += start_of_image
    skip += start_of_image
    dx += start_of_image
    first = chunk * chunk_rows
    last = tl.minimum(first + chunk_rows, positions)
    for start in range(first, last, ROWS):
        places, inside = _places(start, last, channels, offsets, width, c8, ROWS)
        tile = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(dy + places, mask=inside, other=0.0).to(tl.float32)
        normalized = (tile + added[None, :]) * rstd[None, :]
        gradient = _gradient_before_silu(gradient, normalized * scale[None, :] + offset[None, :], SILU)
        out = (gradient * scale[None, :] - plain[None, :] - normalized * weighted[None, :]) * rstd[None, :]
        if SKIP:
            out += tl.load(skip + places, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + places, out.to(dx.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_RUNTIME)
def _whole_gradient_kernel(
    x, shift, shift_bias, dy, skip, weight, bias, means, rstds, dx, positions, c8, width8, cpg, per_block, num_groups,
    SHIFT: tl.constexpr, SILU: tl.constexpr, SKIP: tl.constexpr, ROWS: tl.constexpr, PAD: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """Compute the input's gradient of all positions of a block of groups, from what is read once."""
    block, image = tl.program_id(0), tl.program_id(1)
    width, offsets = width8 * 8, tl.arange(0, PAD)
    channels = block * width + offsets
    member = _member(offsets, cpg, width, GROUPS)
    start = image.to(tl.int64) * positions * (c8 * 8)
    places, inside = _places(0, positions, channels, offsets, width, c8, ROWS)
    tile = tl.load(x + start + places, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dy + start + places, mask=inside, other=0.0).to(tl.float32)
    added = _load_shift(shift, shift_bias, image, channels, offsets, width, c8, SHIFT, PAD)
    mean, rstd = _load_moments(means, rstds, image, num_groups, block, per_block, cpg, offsets, width)
    scale, offset = _load_affine(weight, bias, channels, offsets, width)
    normalized = (tile + (added - mean)[None, :]) * rstd[None, :]
    gradient = _gradient_before_silu(gradient, normalized * scale[None, :] + offset[None, :], SILU) * scale[None, :]
    count = positions.to(tl.float32) * cpg.to(tl.float32)
    plain = _sum_by_group(tl.sum(gradient, axis=0), member) / count
    weighted = _sum_by_group(tl.sum(gradient * normalized, axis=0), member) / count
    out = gradient - _by_channel(plain, member)[None, :] - normalized * _by_channel(weighted, member)[None, :]
    out *= rstd[None, :]
    if SKIP:
        out += tl.load(skip + start + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + start + places, out.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_parts(gate):
    """Compute the normal distribution's function and density at the gate: GELU is gate * function."""
    return 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476)), 0.3989422804014327 * tl.exp(-0.5 * gate * gate)


@triton.jit
def _glu_places(rows_count, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    offsets = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < rows_count)[:, None] & (offsets < columns)[None, :]
    rows = rows.to(tl.int64)[:, None]
    return rows * (2 * columns) + offsets[None, :], rows * columns + offsets[None, :], inside


@triton.jit
def _geglu_kernel(x, y, rows_count, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute y (rows, columns) = value * GELU(gate), x (rows, 2 columns) = [value, gate]."""
    source, target, inside = _glu_places(rows_count, columns, ROWS, COLUMNS)
    value = tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + source + columns, mask=inside, other=0.0).to(tl.float32)
    function, _ = _gelu_parts(gate)
    tl.store(y + target, (value * gate * function).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _geglu_gradient_kernel(x, dy, dx, rows_count, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    source, target, inside = _glu_places(rows_count, columns, ROWS, COLUMNS)
    value = tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + source + columns, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(dy + target, mask=inside, other=0.0).to(tl.float32)
    function, density = _gelu_parts(gate)
    kind = dx.dtype.element_ty
    tl.store(dx + source, (gradient * gate * function).to(kind), mask=inside)
    tl.store(dx + source + columns, (gradient * value * (function + gate * density)).to(kind), mask=inside)


@triton.jit
def _layer_norm_places(rows_count, columns, ROWS: tl.constexpr, PAD: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    offsets = tl.arange(0, PAD)
    inside = (rows < rows_count)[:, None] & (offsets < columns)[None, :]
    return rows, offsets, rows.to(tl.int64)[:, None] * columns + offsets[None, :], inside


@triton.jit
def _layer_norm_kernel(
    x, added, weight, bias, total, y, means, rstds, rows_count, columns, eps,
    ADD: tl.constexpr, ROWS: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """Compute total = x + added where there is such, and y = LayerNorm(total); (rows, columns)."""
    rows, offsets, places, inside = _layer_norm_places(rows_count, columns, ROWS, PAD)
    tile = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        tile += tl.load(added + places, mask=inside, other=0.0).to(tl.float32)
        rounded = tile.to(total.dtype.element_ty)
        tl.store(total + places, rounded, mask=inside)
        tile = rounded.to(tl.float32)
    mean = tl.sum(tile, axis=1) / columns
    centered = tl.where(inside, tile - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centered * centered, axis=1) / columns + eps)
    tl.store(means + rows, mean, mask=rows < rows_count)
    tl.store(rstds + rows, rstd, mask=rows < rows_count)
    scale = tl.load(weight + offsets, mask=offsets < columns, other=0.0).to(tl.float32)
    offset = tl.load(bias + offsets, mask=offsets < columns, other=0.0).to(tl.float32)
    out = centered * rstd[:, None] * scale[None, :] + offset[None, :]
    tl.store(y + places, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _layer_norm_gradient_kernel(
    total, dy, skip, weight, means, rstds, dx, rows_count, columns,
    SKIP: tl.constexpr, ROWS: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    rows, offsets, places, inside = _layer_norm_places(rows_count, columns, ROWS, PAD)
    mean = tl.load(means + rows, mask=rows < rows_count, other=0.0)
    rstd = tl.load(rstds + rows, mask=rows < rows_count, other=0.0)
    tile = tl.load(total + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + offsets, mask=offsets < columns, other=0.0).to(tl.float32)
    gradient = tl.load(dy + places, mask=inside, other=0.0).to(tl.float32) * scale[None, :]
    normalized = tl.where(inside, (tile - mean[:, None]) * rstd[:, None], 0.0)
    plain = tl.sum(gradient, axis=1) / columns
    weighted = tl.sum(gradient * normalized, axis=1) / columns
    out = (gradient - plain[:, None] - normalized * weighted[:, None]) * rstd[:, None]
    if SKIP:
        out += tl.load(skip + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + places, out.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _sum_kernel(first, second, bias, out, count, channels, BLOCK: tl.constexpr):
    """Compute out = first + second + bias of the channel; all in channels_last."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    total = tl.load(first + offsets, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(second + offsets, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(bias + offsets % channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offsets, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _copy_tile(target, source, target_width, source_width, start, count, rows_count, ROWS: tl.constexpr,
               COLUMNS: tl.constexpr):  # fmt: skip
    """Copy a tile of `count` columns, from `start` on, between tensors of rows."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    offsets = start + tl.arange(0, COLUMNS)
    inside = (rows < rows_count)[:, None] & (offsets < count)[None, :]
    values = tl.load(source + rows[:, None] * source_width + offsets[None, :], mask=inside)
    tl.store(target + rows[:, None] * target_width + offsets[None, :], values, mask=inside)


@triton.jit
def _join_kernel(
    joined, first, second, rows_count, width, other_width, blocks,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Copy joined (rows, width + other_width) = [first, second], or back. blocks: of the first."""
    block = tl.program_id(1)
    total = width + other_width
    if block < blocks:
        start = block * COLUMNS
        if SPLIT:
            _copy_tile(first, joined, width, total, start, width, rows_count, ROWS, COLUMNS)
        else:
            _copy_tile(joined, first, total, width, start, width, rows_count, ROWS, COLUMNS)
    else:
        start = (block - blocks) * COLUMNS
        if SPLIT:
            _copy_tile(second, joined + width, other_width, total, start, other_width, rows_count, ROWS, COLUMNS)
        else:
            _copy_tile(joined + width, second, total, other_width, start, other_width, rows_count, ROWS, COLUMNS)


class _Plan(NamedTuple):
    """How the work of a GroupNorm is divided among programs."""

    grid: tuple[int, ...]
    sizes: tuple[int, ...]  # positions, and what the kernels call c8, width8, cpg, per_block, num_groups
    chunks: tuple[int, ...]  # chunk_rows, chunks; empty: one program goes over all positions
    forward: dict[str, int]  # ROWS, PAD, GROUPS, num_warps
    backward: dict[str, int]
    reduction: dict[str, int]  # CHUNKS: a power of 2, at least the number of chunks


def _plan(x: Tensor, num_groups: int) -> _Plan:
    """Divide an image's channels into blocks of whole groups, and its positions into chunks.

    A block is at least 64 channels wide where it can be, so that a row of it fills a cache line. There are as many
    chunks as keep all of a large card busy at once. Where all positions of a narrower block fit into one program's
    registers, there are no chunks.
    """
    batch, channels, height, width = x.shape
    positions, cpg = height * width, channels // num_groups
    for least in (32, 64):
        per_block = _groups_per_block(cpg, num_groups, least)
        block = per_block * cpg
        pad = max(64, triton.next_power_of_2(block))
        sizes = (positions, channels // 8, block // 8, cpg, per_block, num_groups)
        shape = {"PAD": pad, "GROUPS": max(8, per_block)}
        rows = max(16, triton.next_power_of_2(positions))
        if least == 32 and rows * pad <= _MAX_WHOLE:
            whole = shape | {"ROWS": rows, "num_warps": max(4, rows * pad // 1024)}  # 32 elements a thread
            return _Plan((num_groups // per_block, batch), sizes, (), whole, whole, {})
    blocks = num_groups // per_block
    rows = max(1, _TILE // pad)
    chunks = min(max(triton.cdiv(_PROGRAMS, blocks * batch), 1), _MAX_CHUNKS)
    chunk_rows = triton.cdiv(triton.cdiv(positions, chunks), rows) * rows
    chunks = triton.cdiv(positions, chunk_rows)
    shape["num_warps"] = _WARPS
    return _Plan(
        (chunks, blocks, batch),
        sizes,
        (chunk_rows, chunks),
        shape | {"ROWS": rows},
        shape | {"ROWS": max(1, rows // 2)},
        {"CHUNKS": max(16, triton.next_power_of_2(chunks))},
    )


def _groups_per_block(cpg: int, num_groups: int, least: int) -> int:
    """Return the smallest power of 2 by which a block has that many channels, and a multiple of 8, if there is one."""
    per_block = 1
    while num_groups % (2 * per_block) == 0 and (per_block * cpg < least or per_block * cpg % 8):
        per_block *= 2
    return per_block


def supports_group_norm(channels: int, num_groups: int) -> bool:
    """Return whether the kernels take this many channels: rows and blocks of groups are multiples of 8."""
    per_block = _groups_per_block(channels // num_groups, num_groups, 8)
    return per_block * (channels // num_groups) % 8 == 0 and per_block * (channels // num_groups) <= 1024


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool,
    shift: Tensor | None = None,
    shift_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute GroupNorm, then SiLU if wanted, of x + shift + shift_bias.

    Args:
        x: (B, C, H, W); converted to channels_last unless it is.
        shift: (B, C), shift_bias: (C,); neither gets a gradient.

    Returns:
        The result in channels_last; and x itself for what uses it beside the norm, such as a residual sum: its gradient
        is then added by the same kernel.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    constants = (weight, bias, shift, shift_bias)
    if x.requires_grad and torch.is_grad_enabled():
        return _GroupNorm.apply(x, *constants, num_groups, eps, silu)
    return _group_norm(x, *constants, num_groups, eps, silu)[0], x


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, bias, shift, shift_bias, num_groups, eps, silu):
        y, means, rstds = _group_norm(x, weight, bias, shift, shift_bias, num_groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, shift, shift_bias, means, rstds)
        ctx.num_groups, ctx.silu = num_groups, silu
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    def backward(ctx: Any, dy, skip):
        dx = skip
        if dy is not None:
            x, *constants = ctx.saved_tensors
            dx = _group_norm_gradient(dy, skip, x, constants, ctx.num_groups, ctx.silu)
        return dx, None, None, None, None, None, None, None


def _group_norm(x, weight, bias, shift, shift_bias, num_groups, eps, silu) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, and mean and 1 / deviation of each group (B, groups)."""
    plan = _plan(x, num_groups)
    y = torch.empty_like(x)
    means, rstds = torch.empty(2, len(x), num_groups, device=x.device, dtype=torch.float32).unbind()
    shifts, which = _shifts(x, shift, shift_bias)
    positions, *sizes = plan.sizes
    with _on_device(x):
        if not plan.chunks:
            _whole_kernel[plan.grid](
                x,
                *shifts,
                weight,
                bias,
                y,
                means,
                rstds,
                positions,
                eps,
                *sizes,
                SHIFT=which,
                SILU=silu,
                **plan.forward,
            )
            return y, means, rstds
        partial = torch.empty(len(x), plan.chunks[1], num_groups, 2, device=x.device, dtype=torch.float32)
        _moments_kernel[plan.grid](x, *shifts, partial, *plan.sizes, *plan.chunks, SHIFT=which, **plan.forward)
        _normalize_kernel[plan.grid](
            x, *shifts, weight, bias, y, partial, means, rstds, positions, eps, *sizes, *plan.chunks, SHIFT=which,
            SILU=silu, **plan.reduction, **plan.forward,
        )  # fmt: skip
    return y, means, rstds


def _group_norm_gradient(dy, skip, x, constants, num_groups, silu) -> Tensor:
    weight, bias, shift, shift_bias, means, rstds = constants
    plan = _plan(x, num_groups)
    dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
    has_skip = skip is not None
    skip = skip.to(x.dtype).contiguous(memory_format=torch.channels_last) if has_skip else dy
    dx = torch.empty_like(x)
    shifts, which = _shifts(x, shift, shift_bias)
    with _on_device(x):
        if not plan.chunks:
            _whole_gradient_kernel[plan.grid](
                x, *shifts, dy, skip, weight, bias, means, rstds, dx, *plan.sizes, SHIFT=which, SILU=silu,
                SKIP=has_skip, **plan.backward,
            )  # fmt: skip
            return dx
        partial = torch.empty(len(x), plan.chunks[1], num_groups, 2, device=x.device, dtype=torch.float32)
        _gradient_sums_kernel[plan.grid](
            x, *shifts, dy, weight, bias, means, rstds, partial, *plan.sizes, *plan.chunks, SHIFT=which, SILU=silu,
            **plan.backward,
        )  # fmt: skip
        _gradient_kernel[plan.grid](
            x, *shifts, dy, skip, weight, bias, means, rstds, partial, dx, *plan.sizes, *plan.chunks, SHIFT=which,
            SILU=silu, SKIP=has_skip, **plan.reduction, **plan.backward,
        )  # fmt: skip
    return dx


def _shifts(x: Tensor, shift: Tensor | None, shift_bias: Tensor | None) -> tuple[tuple[Tensor, Tensor], int]:
    """Return both shifts, x where there is none, and which there are as the kernels' SHIFT."""
    which = (shift is not None) + 2 * (shift_bias is not None)
    return (x if shift is None else shift.contiguous(), x if shift_bias is None else shift_bias), which


def geglu(x: Tensor) -> Tensor:
    """Return value * GELU(gate) of x = [value, gate] along the last dimension."""
    x = x.contiguous()
    return _Geglu.apply(x) if x.requires_grad and torch.is_grad_enabled() else _geglu(x)


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x):
        ctx.save_for_backward(x)
        return _geglu(x)

    @staticmethod
    def backward(ctx: Any, dy):
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        rows, columns, grid = _glu_sizes(x)
        with _on_device(x):
            _geglu_gradient_kernel[grid](
                x, dy.contiguous(), dx, rows, columns, ROWS=_GLU_ROWS, COLUMNS=_GLU_COLUMNS, num_warps=4
            )
        return dx


def _geglu(x: Tensor) -> Tensor:
    rows, columns, grid = _glu_sizes(x)
    y = x.new_empty(*x.shape[:-1], columns)
    with _on_device(x):
        _geglu_kernel[grid](x, y, rows, columns, ROWS=_GLU_ROWS, COLUMNS=_GLU_COLUMNS, num_warps=4)
    return y


def _glu_sizes(x: Tensor) -> tuple[int, int, tuple[int, int]]:
    columns = x.shape[-1] // 2
    rows = x.numel() // x.shape[-1]
    return rows, columns, (triton.cdiv(rows, _GLU_ROWS), triton.cdiv(columns, _GLU_COLUMNS))


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return LayerNorm(x + added) over the last dimension, and x + added itself for what uses it beside the norm.

    Both have the same gradient, in which the kernel adds up those of the norm and of the sum.
    """
    x, added = x.contiguous(), None if added is None else added.to(x.dtype).contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or (added is not None and added.requires_grad)):
        return _LayerNorm.apply(x, added, weight, bias, eps)
    return _layer_norm(x, added, weight, bias, eps)[:2]


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, added, weight, bias, eps):
        y, total, means, rstds = _layer_norm(x, added, weight, bias, eps)
        ctx.save_for_backward(total, weight, means, rstds)
        ctx.has_added = added is not None
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    def backward(ctx: Any, dy, skip):
        dx = skip if dy is None else _layer_norm_gradient(dy, skip, *ctx.saved_tensors)
        return dx, dx if ctx.has_added else None, None, None, None


def _layer_norm(x, added, weight, bias, eps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the result, the sum, and mean and 1 / deviation of each row."""
    rows, columns, blocks, grid = _layer_norm_sizes(x)
    total = x if added is None else torch.empty_like(x)
    y = torch.empty_like(x)
    means, rstds = torch.empty(2, rows, device=x.device, dtype=torch.float32).unbind()
    with _on_device(x):
        _layer_norm_kernel[grid](
            x, x if added is None else added, weight, bias, total, y, means, rstds, rows, columns, eps,
            ADD=added is not None, **blocks,
        )  # fmt: skip
    return y, total, means, rstds


def _layer_norm_gradient(dy, skip, total, weight, means, rstds) -> Tensor:
    rows, columns, blocks, grid = _layer_norm_sizes(total)
    dy, has_skip = dy.to(total.dtype).contiguous(), skip is not None
    skip = skip.to(total.dtype).contiguous() if has_skip else dy
    dx = torch.empty_like(total)
    with _on_device(total):
        _layer_norm_gradient_kernel[grid](
            total, dy, skip, weight, means, rstds, dx, rows, columns, SKIP=has_skip, **blocks
        )
    return dx


def _layer_norm_sizes(x: Tensor) -> tuple[int, int, dict[str, int], tuple[int]]:
    """Return rows, columns, how many of them are in a program, and the number of programs."""
    columns = x.shape[-1]
    rows, pad = x.numel() // columns, triton.next_power_of_2(columns)
    per_program = max(1, 2048 // pad)
    return rows, columns, {"ROWS": per_program, "PAD": pad, "num_warps": 4}, (triton.cdiv(rows, per_program),)


def add_with_bias(first: Tensor, second: Tensor, bias: Tensor) -> Tensor:
    """Return first + second + bias (C,) of feature maps in channels_last; the bias gets no gradient."""
    first, second = (x.contiguous(memory_format=torch.channels_last) for x in (first, second))
    if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
        return _AddWithBias.apply(first, second, bias)
    return _add_with_bias(first, second, bias)


class _AddWithBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first, second, bias):
        return _add_with_bias(first, second, bias)

    @staticmethod
    def backward(ctx: Any, grad):
        grad = grad.contiguous(memory_format=torch.channels_last)  # once for both
        return grad, grad, None


def _add_with_bias(first: Tensor, second: Tensor, bias: Tensor) -> Tensor:
    out = torch.empty_like(first)
    with _on_device(first):
        _sum_kernel[(triton.cdiv(out.numel(), _SUM_BLOCK),)](
            first, second, bias, out, out.numel(), first.shape[1], BLOCK=_SUM_BLOCK, num_warps=8
        )
    return out


def join(first: Tensor, second: Tensor) -> Tensor:
    """Concatenate the channels of feature maps. The gradient is split into two maps in one pass."""
    first, second = (x.contiguous(memory_format=torch.channels_last) for x in (first, second))
    if torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
        return _Join.apply(first, second)
    return _join(first, second)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first, second):
        ctx.widths = first.shape[1], second.shape[1]
        return _join(first, second)

    @staticmethod
    def backward(ctx: Any, grad):
        grad = grad.contiguous(memory_format=torch.channels_last)
        batch, _, height, width = grad.shape
        parts = [
            torch.empty(
                batch, channels, height, width, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
            )
            for channels in ctx.widths
        ]
        _launch_join(grad, parts[0], parts[1], split=True)
        return tuple(parts)


def _join(first: Tensor, second: Tensor) -> Tensor:
    batch, channels, height, width = first.shape
    joined = torch.empty(
        batch, channels + second.shape[1], height, width, dtype=first.dtype, device=first.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    _launch_join(joined, first, second, split=False)
    return joined


def _launch_join(joined: Tensor, first: Tensor, second: Tensor, split: bool) -> None:
    widths = first.shape[1], second.shape[1]
    rows = first.numel() // widths[0]
    blocks, others = (triton.cdiv(width, _GLU_COLUMNS) for width in widths)
    with _on_device(joined):
        _join_kernel[(triton.cdiv(rows, _GLU_ROWS), blocks + others)](
            joined, first, second, rows, *widths, blocks, SPLIT=split, ROWS=_GLU_ROWS, COLUMNS=_GLU_COLUMNS,
            num_warps=4,
        )  # fmt: skip


def _on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make x's device the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
