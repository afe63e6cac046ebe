"""Images of a fleet in another program: equal to those made here, and words when it is not there."""

import threading

import numpy as np
import pytest
from PIL import Image

from sdpersonal.app.backend import Workspace
from sdpersonal.app.backend.generate.image_jobs import hires_job, redo_job
from sdpersonal.app.backend.generate.jobs import generate_job
from sdpersonal.cli.commands.app import AppArgs, _fleet_client
from sdpersonal.concepts.library import Library
from sdpersonal.config import GenerateRequest
from sdpersonal.errors import Interrupted, UserError
from sdpersonal.fleet.serving.client import FleetClient, read_key
from sdpersonal.fleet.serving.messages import Made
from sdpersonal.fleet.serving.remote_generator import RemoteGenerator
from sdpersonal.fleet.store import LocalStore
from sdpersonal.generation import Generator
from sdpersonal.models.model_info import ModelInfo
from support import serve
from support.mixing import shelf_of
from support.user_jobs import Jobs

SIZE = {"size": "64x64", "steps": 2}


@pytest.fixture(scope="module")
def pool(tiny, tmp_path_factory):
    return serve.LocalPool(LocalStore(tmp_path_factory.mktemp("storage")), tiny)


@pytest.fixture(scope="module")
def url(pool, tmp_path_factory):
    with serve.open_server(pool, pool.store.folder) as url:
        yield url


@pytest.fixture
def library(tiny, tmp_path):
    library = Library(tmp_path / "concepts")
    for name in ("fox", "cat"):
        library.add(shelf_of(tiny)[name])
    return library


@pytest.fixture
def remote(url, library, tmp_path):
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "places.txt").write_text("a beach\na street\n")
    client = FleetClient(url, serve.KEYS["anna"])
    return RemoteGenerator(client, client.model(), library, tmp_path / "wildcards")


def same(ours, expected):
    assert len(ours) == len(expected)
    for image, other in zip(ours, expected, strict=True):
        pixels = [np.asarray(each.image, np.int16) for each in (image, other)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
        alone = {"batch": 1, "place": 0}
        assert image.recipe.model_copy(update=alone) == other.recipe.model_copy(update=alone)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a cat", "num_images": 5, "seed": 4},
        {"prompt": "a <me/fox> {in snow|on __places__}", "num_images": 3},
        {"prompt": "{a <me/cat>|<me/fox:0.5>}", "negative": "{blue|red}", "num_images": 2, "all_combinations": True},
        {"prompt": "a cat", "num_images": 2, "variation_strength": 0.3, "seed": 9, "variation_seed": 5},
        {"prompt": "a cat", "num_images": 1, "hires_scale": 2.0},
    ],
)
def test_remote_images_equal_local_images(remote, tiny, library, tmp_path, fields):
    request = GenerateRequest(**SIZE | fields)
    done, shown = [], []
    ours = list(remote.generate(request, lambda n, total: done.append((n, total)), preview=shown.append))
    same(ours, list(Generator(tiny, library, tmp_path / "wildcards").generate(request)))
    assert done == sorted(done) and done[-1][0] <= done[-1][1]


def test_remote_images_with_init_image_and_mask_equal_local_images(remote, tiny, library, tmp_path):
    Image.radial_gradient("L").convert("RGB").resize((64, 64)).save(tmp_path / "start.png")
    Image.linear_gradient("L").resize((64, 64)).save(tmp_path / "mask.png")
    fields = {"init_image": tmp_path / "start.png", "mask": tmp_path / "mask.png", "steps": 4}
    request = GenerateRequest(prompt="a <me/fox>", num_images=2, **fields)
    same(list(remote.generate(request)), list(Generator(tiny, library).generate(request)))


def test_the_remote_model_info_equals_the_local_model_info(remote, tiny):
    assert remote.base == ModelInfo.of(tiny)


def test_remote_error_messages_equal_local_error_messages(remote, tiny, library, pool):
    before = len(pool.batches)
    for fields in ({"prompt": "a <me/dog>"}, {"prompt": "a cat", "clip_skip": 12}, {"prompt": "a", "fast": "<me/dog>"}):
        request = GenerateRequest(**SIZE | fields)
        with pytest.raises(UserError) as here:
            list(Generator(tiny, library).generate(request))
        with pytest.raises(UserError) as there:
            list(remote.generate(request))
        assert there.value.message == here.value.message
    assert len(pool.batches) == before + 1  # only the model knows how many layers it has


def test_a_cancelled_remote_generation_is_interrupted(remote):
    with pytest.raises(Interrupted):
        list(remote.generate(GenerateRequest(prompt="a cat", steps=50), cancelled=lambda: True))


@pytest.fixture
def jobs(remote, library, tmp_path):
    workspace = Workspace(library, tmp_path / "outputs", tmp_path / "runs", tmp_path / "served")
    return Jobs(lambda name: remote, workspace, on_fleet=True)


def test_the_app_generates_its_images_on_the_fleet(jobs, pool, tiny, library):
    before = sum(pool.batches)
    view = jobs.run(generate_job({"prompt": "a <me/fox>", "num_images": 3, **SIZE}))
    saved = [jobs.gallery.find(None, image["id"]) for image in view["images"]]
    alone = list(Generator(tiny, library).generate(GenerateRequest(prompt="a <me/fox>", num_images=3, **SIZE)))
    for ours, image in zip(saved, alone, strict=True):
        pixels = [np.asarray(each.convert("RGB"), np.int16) for each in (Image.open(ours.path), image.image)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
    assert sum(pool.batches) == before + 3
    for plan in (redo_job(library, saved[0]), hires_job(library, saved[0], 0.1)):
        assert jobs.views(plan)[-1]["state"] == "done"


def test_jobs_of_several_users_run_on_the_fleet_concurrently(remote, library, tmp_path):
    """Two jobs that each wait until the other has begun."""
    both = threading.Barrier(2)

    class Meeting:
        base = remote.base

        def generate(self, *args):
            both.wait(20)
            return iter(())

    jobs = Jobs(
        lambda name: Meeting(), Workspace(library, tmp_path / "o", tmp_path / "r", tmp_path / "s"), on_fleet=True
    )
    threads = [
        threading.Thread(target=lambda user=user: jobs.run(lambda: generate_job({"prompt": "a"}), user))
        for user in ("anna", "ben")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not both.broken


def test_an_unreachable_fleet_fails_the_job_and_a_later_job_succeeds(jobs, remote, tmp_path):
    remote._client._port += 1  # nothing listens there; or another program, which refuses
    view = jobs.views(generate_job({"prompt": "a cat", "num_images": 1, **SIZE}))[-1]
    assert view["state"] == "failed" and view["message"].startswith(
        f"The fleet at {remote._client.url} does not answer"
    )
    remote._client._port -= 1
    assert jobs.views(generate_job({"prompt": "a cat", "num_images": 1, **SIZE}))[-1]["state"] == "done"


@pytest.mark.parametrize("png", [b"", b"x" * 100, b"\x89PNG\r\n\x1a\n"])
def test_invalid_images_from_the_fleet_are_refused(tmp_path, remote, png):
    async def behave(number, tasks):
        yield Made(0, png)

    with serve.open_server(serve.FakePool(behave=behave), tmp_path) as url:
        generator = RemoteGenerator(FleetClient(url, serve.KEYS["ben"]), remote.base, Library(tmp_path / "none"))
        with pytest.raises(UserError, match="The fleet sent an image"):
            list(generator.generate(GenerateRequest(prompt="a", num_images=1)))


def test_a_wrong_key_is_refused_with_a_message(url):
    with pytest.raises(UserError, match="does not know your key"):
        FleetClient(url, "wrong").model()


def test_keys_are_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SDPERSONAL_FLEET_KEY", "from-environment")
    assert read_key(None) == "from-environment"
    (tmp_path / "key").write_text("from-file\n")
    assert read_key(tmp_path / "key") == "from-file"
    for content in (b"", b"two keys", b"\xff", b"a\nb"):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(UserError, match="has no key"):
            read_key(tmp_path / "key")


@pytest.mark.parametrize("fields", [{"fleet": "ftp://x"}, {"fleet": "x"}, {"fleet": "http://x:99999"}, {"fleet": "http://x/y"},
                                    {"fleet": "http://x", "base": "tiny"}, {"fleet_key": "key"}])  # fmt: skip
def test_invalid_fleet_flags_are_refused(fields):
    with pytest.raises(UserError, match="--fleet"):
        _fleet_client(AppArgs(**fields))
