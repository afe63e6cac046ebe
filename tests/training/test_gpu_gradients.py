"""Steps that are replayed as a CUDA graph, on a card."""

import pytest
import torch

from benchmarks.card.own_step import our_step, settings_for, train_state
from benchmarks.steps.geometry import build

pytestmark = pytest.mark.gpu
STEPS = 6


def learned(kind, method, arm, more):
    torch.manual_seed(0)
    base = build(kind, "cuda")
    for model in base.modules().values():
        model.to(torch.bfloat16)
    state = train_state(base, settings_for(method, 2, **more), 128)
    initial = {name: value.detach().clone() for name, value in state.method.trainable_parameters().items()}
    step = our_step(state, 2, arm)
    for _ in range(STEPS):
        step()
    assert bool(state.gradients._passes) == (arm == "graph")
    end = {name: value.detach() - initial[name] for name, value in state.method.trainable_parameters().items()}
    state.method.close()
    return torch.cat([change.float().flatten() for change in end.values()])


@pytest.mark.parametrize("kind", ["narrow", "narrow-sdxl"])
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("lora", {"text_encoder": True}),
        ("lora", {"prior": "predicted"}),
        ("lora", {"optimizer": "prodigy"}),
        ("pivotal", {}),
        ("full", {}),
        ("textual-inversion", {}),
    ],
)
def test_replayed_steps_train_like_eager_steps(kind, method, more):
    plain, again = learned(kind, method, "plain", more), learned(kind, method, "plain", more)
    replayed = learned(kind, method, "graph", more)
    noise = torch.nn.functional.cosine_similarity(plain, again, dim=0)
    cosine = torch.nn.functional.cosine_similarity(plain, replayed, dim=0)
    assert torch.isfinite(replayed).all() and 1 - cosine < max(1e-2, 4 * (1 - noise))


def test_training_steps_do_not_synchronize_with_the_gpu():
    torch.manual_seed(0)
    base = build("narrow", "cuda")
    state = train_state(base, settings_for("lora", 2), 128)
    step = our_step(state, 2)
    for _ in range(3):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    state.method.close()
