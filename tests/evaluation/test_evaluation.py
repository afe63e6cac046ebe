"""The acceptance test and its judges, against transformers' own models and plain numpy."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings, generation
from sdpersonal.errors import UserError
from sdpersonal.evaluation import (
    ConceptEvaluation,
    ConceptScores,
    Scorer,
    explain_scores,
    format_scores,
    scorer_for_base,
    scorers,
)
from sdpersonal.evaluation.concept_score import (
    COPY_CORRELATION,
    PROMPTS,
    SCORE_SEEDS,
    class_phrase,
    prompts_and_seeds,
    with_article,
)
from sdpersonal.evaluation.part_likeness import StyleLikeness, SubjectLikeness
from sdpersonal.models.loading import built_in_folder
from sdpersonal.photos.loading import load_photos
from sdpersonal.training import sampling, train, validation
from sdpersonal.training.sampling import generate_samples
from support.narrow import save_narrow, save_photos

# --- the judge, again, from its folder ---


class Peer:
    """CLIP with transformers' model; pictures prepared with Pillow and numpy as its configuration says."""

    def __init__(self, folder):
        from transformers import CLIPModel, CLIPTokenizer

        self.model = CLIPModel.from_pretrained(folder)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.config = json.loads((folder / "preprocessor_config.json").read_text())

    def image_features(self, images):
        side, rows = self.config["crop_size"]["height"], []
        for image in images:
            image = image.convert("RGB")
            width, height = image.size
            assert width == height  # so nothing is cropped
            image = image.resize((side, side), Image.Resampling(self.config["resample"]))
            pixels = np.asarray(image, np.float64) * self.config["rescale_factor"]
            rows.append((pixels - self.config["image_mean"]) / self.config["image_std"])
        pixels = torch.tensor(np.stack(rows).transpose(0, 3, 1, 2), dtype=torch.float32)
        with torch.no_grad():
            result = self.model.visual_projection(self.model.vision_model(pixels)[1])
        return unit(result.numpy())

    def text_features(self, texts):
        ids = self.tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.no_grad():
            result = self.model.text_projection(self.model.text_model(ids.input_ids)[1])
        return unit(result.numpy())


def unit(features):
    features = features.astype(np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def peer():
    return Peer(built_in_folder() / "judge")


@pytest.fixture(scope="module")
def judge():
    return scorer_for_base("tiny")


@pytest.fixture(scope="module")
def photos(root):
    result = load_photos(root / "examples" / "photos" / "teddy-bear", 128).photos
    return [Image.fromarray(photo.square()) for photo in result]


@pytest.fixture(scope="module")
def draws(tiny):
    return lambda kind, noun, steps=6: generate_samples(
        tiny, lambda prompt: [prompt.format(class_phrase(kind, noun))], prompts_and_seeds(kind), 128, steps
    )


@pytest.fixture(scope="module")
def plain(draws):
    return {"object": draws("object", "bear"), "style": draws("style", "cyanotype")}


@pytest.fixture(scope="module")
def others(draws):
    return {"object": draws("object", "duck"), "style": draws("style", "watercolor")}


def test_features_of_the_built_in_scorer_equal_those_of_transformers(judge, peer, photos):
    np.testing.assert_allclose(judge.image_features(photos), peer.image_features(photos), atol=1e-4)
    texts = ["a bear", "an octopus on the beach, far away, in the evening", "", "<script>alert(1)</script>"]
    np.testing.assert_allclose(judge.text_features(texts), peer.text_features(texts), atol=1e-5)
    assert judge.logit_scale == pytest.approx(float(np.exp(peer.model.logit_scale.item())))
    assert (
        np.array_equal(judge.subject_features(photos), judge.image_features(photos))
        and judge.name == "the built-in CLIP"
    )


def test_image_features_are_independent_of_the_number_of_images(judge, photos):
    many = (photos * 9)[:40]
    np.testing.assert_allclose(
        judge.image_features(many),
        np.concatenate([judge.image_features([item]) for item in photos] * 9)[:40],
        atol=1e-5,
    )


# --- the figures ---


def by_hand(peer, kind, noun, photos, plain, images, parts):
    """Every figure, from its definition, but those of parts: tests/evaluation/test_part_likeness.py has theirs."""
    prompts = [item.format(noun if kind == "style" else f"a {noun}") for item in PROMPTS[kind]]
    of_images, of_photos, of_class = (peer.image_features(items) for items in (images, photos, plain))
    texts, scale = peer.text_features(prompts), float(np.exp(peer.model.logit_scale.item()))

    def own_prompt_odds(features):
        result = []
        for number, feature in enumerate(features):
            odds = [math.exp(scale * float(feature @ text)) for text in texts]
            result.append(odds[number // len(SCORE_SEEDS)] / sum(odds))
        return np.array(result)

    cosine = np.mean([float(a @ b) for a in of_images for b in of_photos])
    alike = [float(of_images[i] @ of_images[i + 1]) for i in range(0, len(of_images), 2)]

    def correlation(a, b):
        """Pearson's, over pixels and colours, each colour's mean taken off."""
        a, b = (
            np.asarray(item.convert("RGB").resize((32, 32), Image.Resampling.BOX), np.float64) / 255 for item in (a, b)
        )
        a, b = ((item - item.mean((0, 1))).ravel() for item in (a, b))
        if a.std() < 0.02 or b.std() < 0.02:
            return 0.0
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    copied = [
        max(correlation(item, photo) for photo in photos) > COPY_CORRELATION and odds < 0.5
        for item, odds in zip(images, own_prompt_odds(of_images), strict=True)
    ]
    fidelity = min(1.0, own_prompt_odds(of_images).mean() / max(own_prompt_odds(of_class).mean(), 1 / len(prompts)))
    figures = {"fidelity": fidelity, "copying": np.mean(copied)}
    figures |= {"diversity": 1 - np.mean(alike), "cosine": cosine}
    figures |= {name: value for name, value in vars(parts).items() if value is not None}
    root = math.sqrt(min(1, max(0, parts.likeness)) * min(1, max(0, fidelity)))
    return figures | {"score": root * (1 - np.mean(copied))}


def assert_equal(scores, expected):
    assert scores.to_dict().keys() == expected.keys()
    for key, value in expected.items():
        assert scores.to_dict()[key] == pytest.approx(value, abs=5e-4), key


KINDS = {"object": "bear", "style": "cyanotype", "person": "bear"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_score_equals_its_definition(judge, peer, photos, plain, others, kind):
    """Of pictures with nothing of the photos in them, and of pictures half of which are the photos."""
    noun, results = KINDS[kind], "style" if kind == "style" else "object"
    acceptance = ConceptEvaluation(judge, kind, noun, photos, plain[results])
    comparison = (StyleLikeness if kind == "style" else SubjectLikeness)(judge, photos, plain[results])
    for generated in (others[results], [*photos[:4], *others[results][4:]]):
        parts = comparison.score(generated)
        assert_equal(acceptance.score(generated), by_hand(peer, kind, noun, photos, plain[results], generated, parts))


def test_the_photos_themselves_are_scored_as_copies(judge, photos, plain):
    scores = ConceptEvaluation(judge, "object", "bear", photos, plain["object"]).score((photos * 2)[:8])
    assert scores.copying >= 0.5 and scores.likeness > 0.9
    message = explain_scores(scores, "bear")
    assert message[0].startswith("It only copies a photo: ") and f"{scores.copying:.0%} of the images" in message[0]
    assert not any("no effect" in line for line in message)


def test_class_noun_images_are_scored_as_no_effect(judge, photos, plain):
    scores = ConceptEvaluation(judge, "object", "bear", photos, plain["object"]).score(plain["object"])
    assert scores.likeness <= 1e-6 and scores.score == pytest.approx(0, abs=1e-3)
    assert scores.copying == 0
    message = explain_scores(scores, "bear")
    assert message[-1].startswith("Training had no effect: the images are no more like the photos than any bear.")


def test_copies_that_match_their_prompts_count_less_as_copying(judge, photos, plain):
    """The class noun's pictures as photos: each is in its place, and there it may be what it was."""
    acceptance = ConceptEvaluation(judge, "object", "bear", plain["object"], plain["object"])
    in_place = acceptance.score(plain["object"])
    elsewhere = acceptance.score(plain["object"][2:] + plain["object"][:2])
    assert in_place.copying < elsewhere.copying and elsewhere.copying > 0.5


def test_scores_of_one_photo_and_repeated_photos_equal_their_definition(judge, peer, photos, plain, others):
    for few in (photos[:1], photos[:1] * 4):
        acceptance = ConceptEvaluation(judge, "object", "bear", few, plain["object"])
        parts = SubjectLikeness(judge, few, plain["object"]).score(others["object"])
        assert_equal(
            acceptance.score(others["object"]),
            by_hand(peer, "object", "bear", few, plain["object"], others["object"], parts),
        )
        copies = acceptance.score(few[:1] * 8)
        assert copies.likeness >= 1 and copies.copying >= 0.5 and copies.diversity < 1e-5


@pytest.mark.parametrize("colour", ["black", "white", "#3366cc", None])
@pytest.mark.parametrize("where", ["photos", "plain", "pictures", "all"])
def test_flat_images_have_finite_scores(judge, photos, plain, others, where, colour):
    """One colour, or one that no eye tells from it."""
    flat = Image.new("RGB", (128, 128), colour or "gray")
    if colour is None:
        flat = Image.fromarray(np.random.default_rng(0).integers(127, 129, (128, 128, 3), np.uint8))

    def given(name, usual):
        return [flat] * len(usual) if where in (name, "all") else usual

    acceptance = ConceptEvaluation(judge, "object", "bear", given("photos", photos), given("plain", plain["object"]))
    scores = acceptance.score(given("pictures", others["object"]))
    assert all(math.isfinite(value) for value in scores.to_dict().values())
    assert scores.copying == 0 and 0 <= scores.score <= 1 and explain_scores(scores, "bear")
    assert "nan" not in format_scores(scores)


@pytest.mark.parametrize("likeness", [-3.0, -0.1, 0.0, 0.3, 1.0, 1.4])
@pytest.mark.parametrize("fidelity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("copying", [0.0, 0.5, 1.0])
def test_the_score_is_bounded_and_requires_every_component(likeness, fidelity, copying):
    scores = ConceptScores(likeness, fidelity, copying, 0.2, 0.5)
    assert 0 <= scores.score <= 1
    if likeness <= 0 or fidelity == 0 or copying == 1:
        assert scores.score == 0
    elif likeness >= 1 and fidelity == 1 and copying == 0:
        assert scores.score == 1
    message = explain_scores(scores, "bear")
    assert 1 <= len(message) <= 3
    assert ("only copies" in message[0]) == (copying >= 0.5)
    assert any("no effect" in line for line in message) == (likeness < 0.15)
    good = likeness >= 0.8 and fidelity >= 0.6 and copying < 0.5
    assert (message == ["It is like the photos, and the places that prompts ask for are there."]) == good


@pytest.mark.parametrize(
    ("kind", "scores", "words"),
    [
        ("object", (0.9, 1.0, 0.9), "It is like the photos in shape, colour and detail, and the places"),
        ("person", (0.85, 1.0, 0.5), "The person is like the photos in shape and colour; detail could be nearer, and"),
        ("object", (2.1, -0.1, 1.8), "It is like the photos in shape and detail, but not in colour, and the places"),
        ("style", (0.9, 0.9, 0.9), "The style is like the photos in colour and texture, and what prompts ask for is"),
        ("object", (0.5, 0.9, 0.4), "It is somewhat like the photos: right in shape and colour; not yet in detail."),
        ("object", (0.2, 0.9, 0.4), "It is hardly like the photos: right in shape and colour; not yet in detail."),
        ("object", (0.1, 0.9, 0.1), "Only the colours are those of the photos; nothing else is recognisable."),
        ("object", (0.1, 0.2, 0.1), "Training had no effect"),
        ("style", (0.1, 0.9, 0.1), "Training had no effect"),
    ],
)
def test_the_explanation_describes_the_scores(kind, scores, words):
    likeness, colour, detail = scores
    shape = None if kind == "style" else 0.8
    assert explain_scores(ConceptScores(likeness, 1, 0, 0, 0, shape, colour, detail), "bear", kind)[0].startswith(words)


def test_a_style_with_low_fidelity_is_explained_without_places():
    message = explain_scores(ConceptScores(0.9, 0.4, 0, 0, 0, None, 1, 1), "ink", "style")
    assert message[0].startswith("What a prompt asks for is hard to recognise in this style.") and len(message) == 1


def texture(seed):
    """An image with as much texture as a photograph."""
    pixels = np.random.default_rng(seed).integers(60, 190, (32, 32, 3), np.uint8)
    return Image.fromarray(pixels).resize((128, 128), Image.Resampling.BICUBIC)


@pytest.fixture(params=["textures", "dog"])
def photographs(request):
    if request.param == "textures":
        return [texture(seed) for seed in range(4)]
    folder = request.getfixturevalue("shared_photos") / request.param
    return [Image.fromarray(photo.square()) for photo in load_photos(folder, 128).photos]


def test_the_built_in_scorer_does_not_score_photographs(judge, plain, photographs, monkeypatch):
    """Smears in the photos' colours, and the photos themselves, beyond which no praise could go."""
    smears = [photo.filter(ImageFilter.GaussianBlur(6)) for photo in photographs]
    evaluation = ConceptEvaluation(judge, "object", "dog", photographs, plain["object"])
    for images in (smears, photographs):
        scores = evaluation.score((images * 8)[:8])
        message = explain_scores(scores, "dog")
        assert scores.out_of_domain and "cannot be scored: they are photographs" in message[-2]
        assert "--base sd15" in message[-1] and not any("like the photos in" in line for line in message)
        assert format_scores(scores).startswith("likeness not scored, copied ")
        assert scores.to_dict() == {"copying": round(scores.copying, 4), "out_of_domain": 1.0}
        assert ConceptScores.from_dict(scores.to_dict()).out_of_domain
    monkeypatch.setattr(judge, "knows_photographs", True)
    known = ConceptEvaluation(judge, "object", "dog", photographs, plain["object"]).score((photographs * 8)[:8])
    assert not known.out_of_domain and known.to_dict()["likeness"] > 0.8


def test_drawings_and_styles_are_scored(judge, photos, plain):
    assert not ConceptEvaluation(judge, "object", "bear", photos, plain["object"]).out_of_domain
    textures = [texture(seed) for seed in range(4)]
    assert not ConceptEvaluation(judge, "style", "ink", textures, plain["style"]).out_of_domain


def test_images_of_any_mode_and_size_are_scored(judge, photos, plain):
    acceptance = ConceptEvaluation(judge, "object", "bear", photos, plain["object"])
    modes = [item.convert("P") if i % 2 else item.resize((64, 64)).convert("RGBA") for i, item in enumerate(photos * 2)]
    assert math.isfinite(acceptance.score(modes[:8]).score)


@pytest.mark.parametrize(
    ("noun", "said"),
    [
        ("bear", "a bear"),
        ("octopus", "an octopus"),
        ("The Beatle", "The Beatle"),
        ("my dog", "my dog"),
        ("Apple", "an Apple"),
        ("some", "some"),
        ("ümlaut", "a ümlaut"),
    ],
)
def test_class_nouns_get_the_right_article(noun, said):
    assert with_article(noun) == said == class_phrase("object", noun) == class_phrase("person", noun)
    assert class_phrase("style", noun) == noun


# --- judges from the Hub's cache ---

# As the real repositories have it, which are older than transformers' present names.
CLIP_PROCESSOR = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3} | {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
DINO_PROCESSOR = {"do_normalize": True, "do_resize": True, "resample": 2} | {
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def save_clip(folder):
    """ViT-B/32's shape with narrow layers and random weights; its tokenizer is CLIP's own."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(1)
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = CLIPTokenizer.from_pretrained(built_in_folder() / "tokenizer")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=narrow | ends | {"vocab_size": len(tokenizer)},
        vision_config=narrow | {"image_size": 64, "patch_size": 32},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(CLIP_PROCESSOR | {"size": 64, "crop_size": 64}))


def save_dino(folder):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(2)
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config.image_size, config.patch_size = 64, 16
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(DINO_PROCESSOR | {"size": 64}))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the Hub, offline, and what puts a model into it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(hub_id, save, revision="main"):
        place, commit = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}", revision[-1] * 40
        (place / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (place / "refs" / revision).write_text(commit)
        (place / "snapshots" / commit).mkdir(parents=True)
        save(place / "snapshots" / commit)
        return place / "snapshots" / commit

    return put


CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    shapes = [(90, 64, 3), (64, 100, 3), (200, 200, 3), (64, 64, 3)]  # what is prepared is resized, and cropped
    return [Image.fromarray(rng.integers(0, 255, shape, np.uint8)) for shape in shapes]


def pipeline(folder, kind, processor, images):
    """transformers' own: a processor made by it from today's names, its model."""
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    size = size if "CLIP" in kind.__name__ else {"size": {"height": 64, "width": 64}}
    old = {"feature_extractor_type", "size", "crop_size"}
    prepare = processor(**({key: value for key, value in read(folder).items() if key not in old} | size))
    with torch.no_grad():
        pixels = prepare(images, return_tensors="pt").pixel_values
        model = kind.from_pretrained(folder).eval()
        if hasattr(model, "vision_model"):
            return unit(model.visual_projection(model.vision_model(pixels).pooler_output).numpy())
        return unit(model(pixels).last_hidden_state[:, 0].numpy())


def read(folder):
    return json.loads((folder / "preprocessor_config.json").read_text())


def test_scorers_load_offline_from_the_cache_and_equal_transformers(hub, images):
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, ViTImageProcessorPil, ViTModel

    clip, dino = hub(CLIP, save_clip), hub(DINO, save_dino)
    judge = scorer_for_base("sd1")
    assert judge.name == "CLIP ViT-B/32 and DINO ViT-S/16"
    np.testing.assert_allclose(
        judge.image_features(images), pipeline(clip, CLIPModel, CLIPImageProcessorPil, images), atol=1e-5
    )
    features = judge.subject_features(images)
    np.testing.assert_allclose(features, pipeline(dino, ViTModel, ViTImageProcessorPil, images), atol=1e-5)
    assert features.shape == (4, 32) and judge.image_features(images).shape == (4, 16)
    texts = ["a duck", "a very long " + "long " * 90 + "text"]
    ids = CLIPTokenizer.from_pretrained(clip)(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    model = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        reference = unit(model.text_projection(model.text_model(**ids).pooler_output).numpy())
    np.testing.assert_allclose(judge.text_features(texts), reference, atol=1e-5)


def test_subject_features_are_from_dino_if_it_is_available(hub, images):
    hub(CLIP, save_clip)
    alone = scorer_for_base("sdxl")
    assert alone.name == "CLIP ViT-B/32" and np.array_equal(
        alone.subject_features(images), alone.image_features(images)
    )
    hub(DINO, save_dino)
    both = scorer_for_base("sdxl")
    eight = images * 2
    for judge in (alone, both):
        acceptance = ConceptEvaluation(judge, "object", "cat", images[:3], eight)
        of_images, of_photos = judge.subject_features(eight[::-1]), judge.subject_features(images[:3])
        assert acceptance.score(eight[::-1]).cosine == pytest.approx(float((of_images @ of_photos.T).mean()), abs=1e-6)
    assert not np.allclose(alone.subject_features(images)[:, :16], both.subject_features(images)[:, :16])


def test_the_revision_with_safetensors_is_used(hub, images):
    """The first repository's main branch has only a pickle."""
    hub(CLIP, lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch PWNED'\ntR."))
    assert scorer_for_base("sd1") is None
    hub(CLIP, save_clip, revision="refs/pr/15")
    assert scorer_for_base("sd1").name == "CLIP ViT-B/32"
    assert "--revision refs/pr/15" in scorers.FETCH_COMMAND and CLIP in scorers.FETCH_COMMAND


def test_another_clip_repository_is_accepted(hub):
    hub("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", save_clip)
    assert scorer_for_base("sd2").name == "CLIP ViT-B/32"


def test_pickled_scorer_weights_are_not_loaded(hub, tmp_path):
    def as_pickle(folder):
        save_clip(folder)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    hub(CLIP, as_pickle)
    assert scorer_for_base("sd1") is None
    hub("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", save_clip)
    hub(DINO, lambda folder: (save_dino(folder), (folder / "model.safetensors").rename(folder / "pytorch_model.bin")))
    assert scorer_for_base("sd1").name == "CLIP ViT-B/32"


@pytest.mark.parametrize("part", ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_scorer_is_ignored(hub, part):
    folder = hub(CLIP, save_clip)
    assert scorer_for_base("sd1")
    (folder / part).unlink()
    assert scorer_for_base("sd1") is None


def test_text_features_are_equal_without_the_tokenizer_config(hub):
    folder = hub(CLIP, save_clip)
    full = scorer_for_base("sd1").text_features(["a duck", "a", "long " * 100])
    (folder / "tokenizer_config.json").unlink()
    np.testing.assert_allclose(scorer_for_base("sd1").text_features(["a duck", "a", "long " * 100]), full, atol=1e-6)


def card_with_room_for(copies, monkeypatch):
    """Without a card: what is copied to one is a copy, and after so many raises what torch raises."""
    to, made = torch.Tensor.to, []

    def copy(tensor, *args, **options):
        if torch.device("cuda") not in (*args, options.get("device")):
            return to(tensor, *args, **options)
        if len(made) == copies:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        made.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "to", copy)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


@pytest.mark.parametrize("room", [0, 5, 1 << 30], ids=["none", "for a part", "for all weights"])
def test_a_scorer_runs_on_the_cpu_if_gpu_memory_is_full(hub, images, room, monkeypatch):
    hub(CLIP, save_clip)
    hub(DINO, save_dino)
    expected, judge = scorer_for_base("sd1"), scorer_for_base("sd1")
    weights = [tensor.data_ptr() for model in (judge._clip, judge._dino) for tensor in model.parameters()]
    card_with_room_for(room, monkeypatch)
    judge.use_device(torch.device("cuda"))
    for features in ("image_features", "subject_features"):
        assert np.array_equal(getattr(judge, features)(images), getattr(expected, features)(images))
    assert np.array_equal(judge.text_features(["a duck"]), expected.text_features(["a duck"]))
    assert weights == [tensor.data_ptr() for model in (judge._clip, judge._dino) for tensor in model.parameters()]


def test_other_gpu_errors_of_a_scorer_are_raised(hub, images, monkeypatch):
    hub(CLIP, save_clip)
    judge = scorer_for_base("sd1")
    card_with_room_for(0, monkeypatch)
    judge.use_device(torch.device("cuda"))

    def fail(*_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(scorers, "_on_device", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        judge.image_features(images)


@pytest.mark.parametrize("damage", ["cut", "nonsense", "lacks a weight", "config"])
def test_a_damaged_scorer_is_refused_with_a_message(hub, damage):
    from safetensors.torch import load_file, save_file

    folder = hub(CLIP, save_clip)
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "nonsense":
        weights.write_bytes(b"<html>")
    elif damage == "config":
        (folder / "config.json").write_text("{")
    else:
        tensors = load_file(weights)
        tensors.pop("visual_projection.weight")
        save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match="is damaged") as caught:
        scorer_for_base("sd1")
    assert "--no-samples" in caught.value.hint


# --- in a run ---


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return save_narrow("sd1", tmp_path_factory.mktemp("narrow") / "sd1")


@pytest.fixture
def begin(narrow, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "DENOISING_STEPS", 2)
    monkeypatch.setattr(generation, "DEFAULT_STEPS", 4)
    monkeypatch.setattr(sampling, "_SEEDS", 1)

    def begin(**options):
        common = {"photos": save_photos(tmp_path / "photos", 3), "token": "<me/thing>", "base": str(narrow)}
        common |= {"steps": 4, "batch": 1, "rank": 2, "class_noun": "cat"}
        common |= {"library": tmp_path / "concepts", "run": tmp_path / "run"}
        message = []
        result = train(DreamboothSettings(**(common | options)), message.append)
        return Library(tmp_path / "concepts").get(result.token), message

    return begin


def test_a_run_without_a_scorer_reports_it_and_uses_the_last_checkpoint(hub, begin, tmp_path):
    concept, message = begin()
    line = next(line for line in message if "No CLIP model" in line)
    assert "the last checkpoint is used" in line and line.endswith(scorers.FETCH_COMMAND)
    assert concept.card.steps == 4 and concept.card.scores == {} and concept.thumbnail
    assert not (tmp_path / "run" / "trials.jsonl").exists()
    assert "Its samples were not scored." in (tmp_path / "run" / "report.html").read_text()


def test_a_run_is_scored_by_the_models_in_the_cache(hub, begin, tmp_path):
    hub(CLIP, save_clip)
    hub(DINO, save_dino)
    concept, messages = begin()
    assert not any("No CLIP model found" in line for line in messages)
    lines = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and concept.card.scores["score"] >= 0
    assert "CLIP ViT-B/32 and DINO ViT-S/16" in (tmp_path / "run" / "report.html").read_text()


def test_a_missing_scorer_is_refused_with_a_message(tmp_path):
    with pytest.raises(UserError, match="The scoring model is missing"):
        Scorer(tmp_path / "gone")
    shutil.copytree(built_in_folder() / "judge", tmp_path / "elsewhere")
    assert Scorer(tmp_path / "elsewhere").name == "CLIP ViT-B/32"


@pytest.mark.gpu
def test_a_scorer_on_a_gpu_matches_the_cpu_and_leaves_no_weights_there(judge, photos):
    on_card = scorer_for_base("tiny")
    on_card.use_device(torch.device("cuda"))
    stored = torch.cuda.memory_allocated()
    np.testing.assert_allclose(on_card.image_features(photos), judge.image_features(photos), atol=1e-3)
    texts = ["a duck on the beach", "a teddy bear"]
    np.testing.assert_allclose(on_card.text_features(texts), judge.text_features(texts), atol=1e-3)
    assert torch.cuda.memory_allocated() <= stored + (32 << 20)  # cuBLAS keeps its workspace
