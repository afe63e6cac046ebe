"""Training on a frozen base in bf16, as on a card, beside fp32: the same but for rounding.

SDPERSONAL_BASE_DTYPE=bfloat16 makes every test of the suite load such a base (tests/conftest.py).
"""

import pytest
import torch

from sdpersonal.models import loading
from support.narrow import save_narrow, save_photos
from support.train_states import METHODS, cloned_tensors, settings_for, train_state_for

MORE = {"lora": {"prior": "predicted", "text_encoder": True, "checkpointing": 2}}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def folder(request, tmp_path_factory):
    return save_narrow(request.param, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), 2)


def step_in(dtype, settings, monkeypatch):
    """Take a step; return the loss, the gradients as one vector, and what was trained."""
    monkeypatch.setattr(loading, "compute_dtype", lambda device: dtype)
    state = train_state_for(settings, pivot_steps=0)
    loss = state.gradients.add(state.method.inputs(state.photos.batch(range(2))), 0)
    parameters = state.method.trainable_parameters()
    before = cloned_tensors(parameters)
    gradients = torch.cat([value.grad.flatten() for value in parameters.values()])
    assert state.gradients.apply(state.optimizer) > 0
    changed = {name for name, value in parameters.items() if not torch.equal(value, before[name])}
    assert {value.dtype for value in parameters.values()} == {torch.float32}  # the masters
    state.method.close()
    return float(loss), gradients, changed


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_on_a_bf16_base_matches_fp32(folder, photos, method, monkeypatch):
    settings = settings_for(method, photos, folder, **MORE.get(method, {}))
    expected, exact, trained = step_in(torch.float32, settings, monkeypatch)
    loss, gradients, changed = step_in(torch.bfloat16, settings, monkeypatch)
    assert loss == pytest.approx(expected, rel=0.01) and torch.isfinite(gradients).all()
    assert torch.nn.functional.cosine_similarity(gradients, exact, dim=0) > 0.999
    assert changed == trained
