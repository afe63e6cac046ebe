"""A finished concept that is trained further: it starts as the concept is, and what does not fit is said first."""

import numpy as np
import pytest

from sdpersonal.concepts.library import Library
from sdpersonal.errors import FieldError
from sdpersonal.training import train
from sdpersonal.training.methods.continuation import find_start
from support.narrow import save_narrow, save_photos
from support.train_states import settings_for, train_state_for


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A library with a concept of each method, trained for two steps on a narrow model; and what made them."""
    folder = tmp_path_factory.mktemp("finished")
    photos, base = save_photos(folder / "photos", 2), save_narrow("sd1", folder / "sd1")
    common = {"library": folder / "concepts", "samples": False, "steps": 2}
    for method in ("inversion", "lora"):
        settings = settings_for(method, photos, base, **common, token=f"<me/{method}>", run=folder / method)
        train(settings, lambda line: None)

    def further(method, start, **more):
        values = common | {"token": f"<me/{start}>", "continue_from": f"<me/{start}>", "run": folder / "more"} | more
        return settings_for(method, photos, base, **values)

    return Library(folder / "concepts"), further


@pytest.mark.parametrize("method", ["inversion", "lora"])
def test_continued_training_starts_with_the_values_of_the_concept(finished, method):
    library, further = finished
    concept, state = library.get(f"<me/{method}>"), train_state_for(further(method, method, seed=7))
    assert state.method.embeddings.keys() == concept.vectors.keys()
    for key, vectors in concept.vectors.items():
        assert state.method.embeddings[key].detach().numpy().tobytes() == vectors.tobytes()
    lora = state.method.lora()
    assert (lora is None) == (concept.lora is None)
    for name, layer in (concept.lora.layers if concept.lora else {}).items():
        assert lora.layers[name].down.tobytes() == layer.down.tobytes()
        assert lora.layers[name].up.tobytes() == layer.up.tobytes() and lora.layers[name].alpha == layer.alpha
    state.method.close()


def test_embeddings_alone_can_be_continued_with_a_new_lora(finished):
    library, further = finished
    state = train_state_for(further("lora", "inversion"))
    vectors = state.method.embeddings["clip_l"].detach().numpy()
    assert np.array_equal(vectors, library.get("<me/inversion>").vectors["clip_l"])
    assert not any(layer.up.any() for layer in state.method.lora().layers.values())
    state.method.close()


def test_a_continued_concept_is_a_new_version_and_records_its_origin(finished, tmp_path):
    library, further = finished
    train(further("lora", "lora", run=tmp_path / "run"), lambda line: None)
    first, second = library.get("<me/lora-v1>"), library.get("<me/lora-v2>")
    assert first.identity != second.identity and second.card.recipe["continue_from"] == "<me/lora>"
    assert "continue_from" not in first.card.recipe


@pytest.mark.parametrize(
    ("method", "start", "more", "field", "words"),
    [
        ("lora", "lora", {"rank": 3}, "rank", "rank must be 2, as that of <me/lora-v1>, got 3"),
        ("pivotal", "lora", {}, "method", "pivotal trains the embeddings alone at first"),
        ("full", "lora", {}, "method", "full trains all weights"),
        ("inversion", "lora", {}, "continue_from", "has a LoRA"),
        ("inversion", "inversion", {"vectors": 3}, "vectors", "vectors must be 2"),
        ("lora", "lora", {"base": "tiny"}, "continue_from", "it is of sd1, the model is of tiny"),
    ],
)
def test_settings_incompatible_with_the_concept_are_refused(finished, method, start, more, field, words):
    _, further = finished
    kind = "tiny" if more.get("base") == "tiny" else "sd1"
    with pytest.raises(FieldError, match=words) as error:
        find_start(further(method, start, **more).model_copy(update={"continue_from": f"<me/{start}-v1>"}), kind)
    assert error.value.field == field


def test_a_concept_with_a_lora_of_other_layers_is_refused(finished):
    with pytest.raises(FieldError, match="continue_from names a concept with a LoRA of"):
        train_state_for(finished[1]("lora", "lora", text_encoder=True))


def test_a_missing_or_damaged_concept_is_refused(finished, tmp_path):
    _, further = finished
    with pytest.raises(FieldError, match="continue_from <me/nobody>: it is not in the library"):
        find_start(further("lora", "nobody"), "sd1")
    path = tmp_path / "me" / "lora-v1.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"\x00" * 50)
    with pytest.raises(FieldError, match="damaged"):
        find_start(further("lora", "lora", library=tmp_path), "sd1")
    assert find_start(further("lora", "lora", continue_from=None), "sd1") is None
