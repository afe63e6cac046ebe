"""The UNet's fast blocks on a card against PyTorch's own; skipped without one."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.steps.geometry import build
from sdpersonal.models import fast_blocks
from sdpersonal.models.cuda_graphs import CapturedCall

pytestmark = pytest.mark.gpu

CHANNELS_LAST = torch.channels_last
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
# (channels, side, batch) of SD 1.x, 2.x and XL, of a narrow UNet, and one whose positions no tile divides.
SHAPES = [(320, 64, 4), (640, 64, 1), (960, 64, 1), (640, 32, 4), (1280, 32, 1), (1920, 32, 1), (1280, 16, 4)]
SHAPES += [(2560, 16, 1), (1280, 8, 4), (2560, 8, 1), (640, 128, 1), (32, 16, 2), (64, 19, 3)]


@pytest.fixture
def kernels():
    module = fast_blocks.find_kernels(torch.device("cuda", torch.cuda.current_device()))
    if module is None:
        pytest.importorskip("triton", reason="Triton is not installed")
        pytest.fail("Triton is installed, but its kernels do not run")
    return module


@pytest.fixture(autouse=True)
def exact_products():
    """PyTorch in fp32 is what the rest is compared with: no TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def relative(value, wanted):
    return ((value.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_the_group_norm_kernel_matches_pytorch(kernels, dtype, silu, shifted):
    torch.manual_seed(0)
    for channels, side, batch in SHAPES:
        x = torch.randn(batch, channels, side, side, device="cuda") * 2 + torch.randn(channels, 1, 1, device="cuda")
        x = x.to(dtype).to(memory_format=CHANNELS_LAST).requires_grad_()
        weight, bias, shift_bias = (torch.randn(channels, device="cuda").to(dtype) for _ in range(3))
        shift = torch.randn(batch, channels, device="cuda").to(dtype)
        extra = {"shift": shift, "shift_bias": shift_bias} if shifted else {}
        y, same = kernels.group_norm(x, 32, weight, bias, 1e-5, silu=silu, **extra)
        exact = x.detach().float().requires_grad_()
        z = exact + shift.float()[:, :, None, None] + shift_bias.float()[:, None, None] if shifted else exact
        expected = F.group_norm(z, 32, weight.float(), bias.float(), 1e-5)
        expected = F.silu(expected) if silu else expected
        first, second = torch.randn_like(x), torch.randn_like(x)
        (gradient,) = torch.autograd.grad([y, same], x, [first, second], retain_graph=True)
        (wanted,) = torch.autograd.grad([expected, exact * 1], exact, [first.float(), second.float()])
        assert relative(y, expected) <= TOLERANCE[dtype], (channels, side)
        assert relative(gradient, wanted) <= TOLERANCE[dtype], (channels, side)
        assert y.is_contiguous(memory_format=CHANNELS_LAST) and gradient.is_contiguous(memory_format=CHANNELS_LAST)
        (again,) = torch.autograd.grad([y, same], x, [first, second])
        assert torch.equal(gradient, again)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_geglu_and_addition_kernels_match_pytorch(kernels, dtype):
    torch.manual_seed(0)
    for rows, columns in [(4096, 1280), (256, 5120), (77, 100)]:
        x = torch.randn(2, rows, 2 * columns, device="cuda").to(dtype).requires_grad_()
        exact = x.detach().float().requires_grad_()
        value, gate = exact.chunk(2, -1)
        y, expected = kernels.geglu(x), value * F.gelu(gate)
        direction = torch.randn_like(y)
        (gradient,) = torch.autograd.grad(y, x, direction)
        (wanted,) = torch.autograd.grad(expected, exact, direction.float())
        assert relative(y, expected) <= TOLERANCE[dtype] and relative(gradient, wanted) <= TOLERANCE[dtype]
    first, second = (torch.randn(2, 320, 9, 7, device="cuda").to(dtype) for _ in range(2))
    bias = torch.randn(320, device="cuda").to(dtype)
    expected = first.float() + second.float() + bias.float()[:, None, None]
    assert relative(kernels.add_with_bias(first, second, bias), expected) <= TOLERANCE[dtype]


def test_the_concatenation_kernel_is_bitwise_equal_to_pytorch(kernels):
    for widths, side in [((1280, 640), 16), ((320, 320), 64), ((40, 264), 3)]:
        first, second = (torch.randn(2, width, side, side, device="cuda").requires_grad_() for width in widths)
        joined, wanted = kernels.join(first, second), torch.cat([first, second], dim=1)
        direction = torch.randn_like(wanted)
        assert torch.equal(joined, wanted) and joined.is_contiguous(memory_format=CHANNELS_LAST)
        gradients = [torch.autograd.grad(x, (first, second), direction) for x in (joined, wanted)]
        for value, other in zip(*gradients, strict=True):
            assert torch.equal(value, other) and value.is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_layer_norm_kernel_matches_pytorch(kernels, dtype):
    torch.manual_seed(0)
    for rows, columns in [(4096, 320), (1024, 640), (257, 1280), (77, 2048), (5, 40)]:
        x, added = (torch.randn(2, rows, columns, device="cuda").to(dtype).requires_grad_() for _ in range(2))
        weight, bias = torch.randn(2, columns, device="cuda").to(dtype)
        y, total = kernels.layer_norm(x, weight, bias, 1e-5, added)
        exact = total.detach().float().requires_grad_()
        expected = F.layer_norm(exact, (columns,), weight.float(), bias.float(), 1e-5)
        first, second = torch.randn(2, *x.shape, device="cuda").to(dtype)
        gradient, same = torch.autograd.grad([y, total], [x, added], [first, second])
        (wanted,) = torch.autograd.grad([expected, exact * 1], exact, [first.float(), second.float()])
        assert torch.equal(gradient, same) and relative(total, x.float() + added.float()) <= TOLERANCE[dtype]
        assert relative(y, expected) <= TOLERANCE[dtype] and relative(gradient, wanted) <= TOLERANCE[dtype]


def test_a_lora_in_bf16_gets_the_gradients_of_fp32(kernels):
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        base = build("narrow", "cuda")
        base.unet.to(dtype)
        trained = base.adapters.add_trainable("attention", 8, torch.Generator().manual_seed(0))
        for name, parameter in trained.items():
            if "lora_up" in name:
                nn.init.normal_(parameter, std=0.02)
        latents, t, states = inputs()
        loss = base.unet(latents.to(dtype), t, states.to(dtype)).sample.float().square().mean()
        gradients.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(trained.values()))]))
    assert F.cosine_similarity(*gradients, dim=0).item() >= 0.998


def two_unets(dtype):
    """A narrow UNet in fp32 without the kernels, and its copy in `dtype` with them."""
    torch.manual_seed(0)
    fast = build("narrow", "cuda").unet
    plain = copy.deepcopy(fast)
    kinds = {own: kind for kind, own in fast_blocks.FAST_BLOCKS.items()}
    for module in plain.modules():  # what `use_fast_blocks` did
        module.__class__ = kinds.get(type(module), type(module))
        module.__dict__.pop("runs_channels_last", None)
    return plain, fast.to(dtype)


def inputs(rows=2, side=16):
    generator = torch.Generator("cuda").manual_seed(1)
    latents = torch.randn(rows, 4, side, side, device="cuda", generator=generator)
    states = torch.randn(rows, 77, 768, device="cuda", generator=generator)
    return latents, torch.full((rows,), 500, device="cuda"), states


def predict(unet):
    """The prediction and the gradients with respect to latents and prompt, in fp32."""
    latents, t, states = inputs()
    latents, states = (x.requires_grad_() for x in (latents, states))
    out = unet(latents.to(unet.dtype), t, states.to(unet.dtype)).sample.float()
    return out, *torch.autograd.grad(out.square().sum(), (latents, states))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 6e-2)])
def test_a_unet_with_kernels_predicts_the_same(kernels, dtype, tolerance):
    plain, fast = two_unets(dtype)
    for value, wanted in zip(predict(fast), predict(plain), strict=True):
        assert ((value - wanted).norm() / wanted.norm()).item() <= tolerance
        assert F.cosine_similarity(value.flatten(), wanted.flatten(), 0).item() >= 0.998


def test_a_narrow_unet_stays_in_channels_last(kernels):
    _, fast = two_unets(torch.bfloat16)
    places = []

    def look(name):
        def hook(module, args, out):
            out = getattr(out, "sample", out[0] if isinstance(out, tuple) else out)
            if out.dim() == 4:
                places.append((name, out.is_contiguous(memory_format=CHANNELS_LAST)))

        return hook

    # Blocks first: with hooks on its layers, a block takes another way through them.
    for kinds in ((fast_blocks.ResnetBlock2D, fast_blocks.Transformer2DModel), (nn.Conv2d, nn.GroupNorm)):
        for name, module in fast.named_modules():
            if isinstance(module, kinds):
                module.register_forward_hook(look(name))
        predict(fast)
    assert len(places) > 100 and [name for name, is_channels_last in places if not is_channels_last] == []


def test_tensors_are_not_converted_between_memory_formats(kernels):
    _, fast = two_unets(torch.bfloat16)
    predict(fast)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        predict(fast)
        torch.cuda.synchronize()
    converting = [row.key for row in profile.key_averages() if "ToNhwc" in row.key or "ToNchw" in row.key]
    assert len(converting) <= 2, converting  # the latents' 4 channels may be


def test_a_cuda_graph_captures_a_unet_with_kernels(kernels):
    _, fast = two_unets(torch.bfloat16)
    latents, t, states = inputs()
    states.requires_grad_()

    def step():
        out = fast(latents.bfloat16(), t, states.bfloat16()).sample.float()
        return out, *torch.autograd.grad(out.square().sum(), states)

    call = CapturedCall(step, torch.device("cuda"))
    latents.copy_(torch.randn_like(latents))
    replayed = [value.clone() for value in call.replay()]
    for value, wanted in zip(replayed, step(), strict=True):
        assert ((value - wanted).norm() / wanted.norm()).item() <= 1e-2


def test_trainable_weights_under_autocast_match_pytorch(kernels):
    plain, fast = two_unets(torch.float32)
    for unet in (plain, fast):
        unet.requires_grad_(True)
    losses = []
    for unet in (plain, fast):
        with torch.autocast("cuda", torch.bfloat16):
            losses.append(unet(*inputs()).sample.float().square().mean())
        losses[-1].backward()
    assert relative(losses[1], losses[0]) <= 1e-2
    for parameter, other in zip(plain.parameters(), fast.parameters(), strict=True):
        assert other.grad is not None and torch.isfinite(other.grad).all() and parameter.grad is not None
