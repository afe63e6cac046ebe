"""Push and pull against a server that speaks the Hub's API, through huggingface_hub itself."""

import contextlib
import dataclasses
import getpass
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdpersonal.cli.main import main
from sdpersonal.concepts import hub_transfer as ours
from sdpersonal.concepts.concept_file import concept_to_bytes
from sdpersonal.concepts.library import Library
from sdpersonal.errors import UserError
from sdpersonal.prompts import Token
from support.foreign import rows, safetensors_bytes
from support.hub_server import TOKEN, Repo, hub_server
from support.samples import card, concept, embedding, thumbnail, vectors

ID = "someone/duck"


@pytest.fixture
def hub(monkeypatch):
    """A server, and huggingface_hub (loaded already, so that HF_ENDPOINT would come too late) led to it."""
    from huggingface_hub import constants

    with hub_server() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks git-LFS
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        home = Path(os.environ["HF_HOME"])
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setenv("HTTP_PROXY", "")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path / "concepts")
    library.add(concept(card=card(license="CC-BY-4.0", scores={"likeness": 0.625}, recipe={"lr": 0.001})))
    library.add(embedding("<me/ink>", 1))
    return library


def run(library, *argv):
    return main([*argv, "--library", str(library.folder)])


def picture(path, of, **recipe) -> Path:
    """As `sdpersonal generate` leaves them."""
    text = PngInfo()
    facts = {"prompt": "<me/duck> on ice", "concepts": [{"token": "<me/duck-v1>", "sha256": of.identity}]}
    text.add_itxt("sdpersonal", json.dumps(facts | recipe))
    Image.radial_gradient("L").convert("RGB").save(path, pnginfo=text)
    return path


# --- there and back ---------------------------------------------------------------------------------------------------


def test_push_and_pull_give_back_the_same_concept(hub, library, tmp_path, capsys):
    assert run(library, "concepts", "push", "duck", ID, "--yes") == 0
    assert f"pushed: {hub.url}/{ID}" in capsys.readouterr().out
    repo = hub.repos[ID]
    assert repo.private and repo.commits[0]["summary"] == "Add <me/duck-v1>" and len(repo.commits) == 1
    names = {"README.md", "me-duck.safetensors", "learned_embeds.safetensors", "pytorch_lora_weights.safetensors"}
    assert repo.files.keys() == names | {"pictures.png"}
    other = Library(tmp_path / "other")
    assert run(other, "concepts", "pull", ID) == 0
    assert capsys.readouterr().out == "pulled: <me/duck-v1>\n"
    loaded = other.get(Token.parse("<me/duck>"))
    assert loaded.identity == concept().identity and loaded.card.license == "CC-BY-4.0"
    assert run(other, "concepts", "pull", f"https://huggingface.co/{ID}", "--as", "<me/toy>", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"pulled": ["<me/toy-v1>"]}


@pytest.mark.parametrize("word", ["duck", "ink"])
def test_importing_a_pushed_repository_reads_the_native_file(hub, library, tmp_path, capsys, word):
    """By its id on the Hub, of which no other file is fetched; as a folder; and as one among other folders."""
    first = library.get(Token.parse(f"<{word}>"))
    assert run(library, "concepts", "push", word, ID, "--yes", "--to", str(tmp_path / "all" / "down")) == 0
    requests = len(hub.asked)
    for number, source in enumerate((ID, tmp_path / "all" / "down", tmp_path / "all")):
        other = Library(tmp_path / f"other{number}")
        assert run(other, "concepts", "import", str(source)) == 0
        loaded = other.get(first.token.unversioned())
        assert loaded.identity == first.identity and loaded.card == first.card and loaded.token == first.token
        assert run(other, "concepts", "import", str(source)) == 0 and len(other.entries()) == 1
        assert run(other, "concepts", "import", str(source), "--as", "<you/thing>") == 0
        assert other.get(Token.parse("<you/thing-v1>")).card.license == first.card.license
    fetched = {line.rpartition("/")[2] for line, _, _ in hub.asked[requests:] if "/resolve/" in line}
    assert fetched == {f"me-{word}.safetensors"}
    cut = tmp_path / "all" / "down" / f"me-{word}.safetensors"
    cut.write_bytes(cut.read_bytes()[:-4])  # it is told, and what stands beside it for diffusers comes in
    other = Library(tmp_path / "from the copies")
    assert (
        run(other, "concepts", "import", str(cut.parent)) == 2 and "refused: it ends early" in capsys.readouterr().out
    )
    loaded = other.get(first.token.unversioned())
    assert loaded.identity == first.identity and loaded.card == first.card and len(other.entries()) == 1


def test_a_native_file_among_foreign_files_is_ambiguous(tmp_path):
    from sdpersonal.concepts.importers.read_folders import read_folder

    (tmp_path / "me-duck.safetensors").write_bytes(concept_to_bytes(embedding()))
    (tmp_path / "learned_embeds.safetensors").write_bytes(concept_to_bytes(embedding()))
    with pytest.raises(UserError, match="holds several concepts"):
        read_folder(tmp_path)
    (tmp_path / "learned_embeds.safetensors").unlink()
    (tmp_path / "other.safetensors").write_bytes(safetensors_bytes({"emb_params": rows(1)}))
    with pytest.raises(UserError, match="holds several concepts"):
        read_folder(tmp_path)


def test_nothing_is_sent_without_confirmation(hub, library, tmp_path, capsys):
    for more in ([], ["--dry-run"], ["--yes", "--dry-run"]):
        assert (
            run(library, "concepts", "push", "duck", ID, *more, "--to", str(tmp_path / f"look{len(more)}{more[:1]}"))
            == 0
        )
        text = capsys.readouterr().out
        assert "Nothing was sent. Add --yes to send it." in text
    assert hub.asked == []
    shown = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if " kB  " in line}
    assert run(library, "concepts", "push", "duck", ID, "--yes", "--json") == 0
    output = json.loads(capsys.readouterr().out)
    sent = hub.repos[ID].files
    assert {item["name"]: item["size"] for item in output["files"]} == {name: len(data) for name, data in sent.items()}
    assert shown == {name: round(len(data) / 1e3, 1) for name, data in sent.items()}
    looked = {path.name: path.read_bytes() for path in next(tmp_path.glob("look0*")).iterdir()}
    assert looked == sent


def test_another_push_removes_stale_files(hub, library):
    run(library, "concepts", "push", "duck", ID, "--yes", "--public")
    assert not hub.repos[ID].private
    run(library, "concepts", "push", "ink", ID, "--yes")
    assert hub.repos[ID].files.keys() == {"README.md", "me-ink.safetensors", "learned_embeds.safetensors"}
    assert ours.pull(ID).identity == embedding("<me/ink>", 1).identity


def test_pushed_embeddings_are_stored_in_the_diffusers_format(hub, library):
    safetensors = pytest.importorskip("safetensors.numpy")
    run(library, "concepts", "push", "duck", ID, "--yes")
    tensors = safetensors.load(hub.repos[ID].files["learned_embeds.safetensors"])
    assert np.array_equal(tensors["<me/duck>"], vectors())


def test_foreign_repositories_can_be_pulled(hub, library, capsys):
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save({"<cat-toy>": torch.ones(768)}, buffer)
    files = {"learned_embeds.bin": buffer.getvalue(), "token_identifier.txt": b"<cat-toy>", "README.md": b"# Cat"}
    hub.repos["sd-concepts-library/cat-toy"] = Repo(files | {"type_of_concept.txt": b"object"})
    assert run(library, "concepts", "pull", "sd-concepts-library/cat-toy") == 0
    assert "/cat-toy-v1>" in capsys.readouterr().out


# --- the model card ---------------------------------------------------------------------------------------------------


def test_the_model_card_contains_licence_scores_prompts_and_images(hub, library, tmp_path):
    first = concept(
        card=card(license="CC-BY-4.0", scores={"likeness": 0.625}, kind="person", consent="yes", base="sd1"),
        vectors={"clip_l": vectors(0, 2, 768)},
    )
    drawn = picture(tmp_path / "0.png", first)
    sent = {item.name: item.data for item in ours.files_to_push(first, ID, [drawn, drawn])}
    readme = sent["README.md"].decode()
    head = dict(line.split(": ", 1) for line in readme.split("---")[1].strip().splitlines())
    assert json.loads(head["license"]) == "cc-by-4.0" and "v1-5" in head["base_model"]
    assert json.loads(head["tags"]) == ["sdpersonal", "stable-diffusion", "textual-inversion", "lora"]
    for words in (
        "likeness 0\\.625",
        "the person shown agrees",
        "pictures.png",
        "<me/duck> on ice",
        "load_lora_weights",
    ):
        assert words in readme
    grid = Image.open(io.BytesIO(sent["pictures.png"]))
    assert grid.width > grid.height and not grid.text and not grid.getexif()


def test_a_hostile_card_is_escaped_in_the_model_card():
    evil = "](http://evil.example) <script>alert(1)</script> ![x](http://evil.example/p.png)\n---\nlicense: mit"
    first = concept(
        card=card(title=evil[:90], description=evil, author="`" * 5, prompts=("```\n<script>",), license=evil[:90])
    )
    readme = next(item.data.decode() for item in ours.files_to_push(first, ID) if item.name == "README.md")
    front, body = readme.split("\n---\n", 1)
    assert [line.split(":")[0] for line in front.splitlines()[1:]] == [
        "license",
        "license_name",
        "library_name",
        "tags",
    ]
    assert "](http" not in body.replace("\\]\\(http", "") and "\n---" not in body
    outside = "".join(body.split("````")[0::2])  # fenced text is shown as it is
    assert "<script" not in outside.replace("\\<script", "")


# --- what must not go out ---------------------------------------------------------------------------------------------


def test_a_person_without_consent_is_not_pushed(hub, library, capsys):
    for consent in ("no", "unknown"):
        library.edit(Token.parse("<me/ink>"), {"kind": "person", "consent": consent})
        assert run(library, "concepts", "push", "ink", ID, "--yes") == 2
        assert "--consent yes" in capsys.readouterr().err
    assert hub.asked == []
    library.edit(Token.parse("<me/ink>"), {"consent": "yes"})
    assert run(library, "concepts", "push", "ink", ID, "--yes") == 0


def test_only_generated_images_of_the_concept_are_pushed(tmp_path):
    first = concept()
    photo, other = tmp_path / "IMG_0815.jpg", tmp_path / "photo.png"
    Image.radial_gradient("L").save(photo)
    Image.radial_gradient("L").save(other)
    for path in (
        photo,
        other,
        picture(tmp_path / "x.png", embedding(seed=9)),
        picture(tmp_path / "y.png", first, concepts=3),
    ):
        with pytest.raises(UserError, match="is not an image generated with <me/duck>"):
            ours.files_to_push(first, ID, [path])
    with pytest.raises(UserError):
        ours.files_to_push(first, ID, [tmp_path / "nowhere.png"])


def test_no_private_data_is_sent(hub, library, tmp_path):
    drawn = picture(tmp_path / "IMG_0815.png", library.get(Token.parse("<duck>")))
    assert run(library, "concepts", "push", "duck", ID, "--yes", "--pictures", str(drawn)) == 0
    assert not [line for line, _, _ in hub.asked if "/api/agent" in line]
    assert not [headers for _, headers, _ in hub.asked if "torch/" in headers]
    everything = hub.sent() + b"".join(hub.lfs.values()) + b"".join(hub.repos[ID].files.values())
    secrets = [str(Path.home()), os.environ["HOME"], str(tmp_path), str(library.folder), "IMG_0815", os.getcwd()]
    secrets += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4]  # "root" is a word
    for secret in secrets:
        assert secret.encode() not in everything, secret


# --- trouble ----------------------------------------------------------------------------------------------------------


def refused(library, capsys, *argv):
    code = run(library, "concepts", *argv)
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err and err.count("\n") <= 2, err
    return err


def test_invalid_logins_are_refused_with_a_message(hub, library, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "y" * 34)
    assert "does not accept your login" in refused(library, capsys, "push", "duck", ID, "--yes")
    monkeypatch.delenv("HF_TOKEN")
    requests = len(hub.asked)
    assert "not logged in" in refused(library, capsys, "push", "duck", ID, "--yes")
    assert len(hub.asked) == requests and hub.repos == {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "may not write to another/duck" in refused(library, capsys, "push", "duck", "another/duck", "--yes")


def test_a_foreign_repository_is_never_overwritten(hub, library, capsys):
    hub.repos[ID] = Repo({"README.md": b"# My model", "model.safetensors": b"precious"})
    assert "already exists on the Hub" in refused(library, capsys, "push", "duck", ID, "--yes")
    assert hub.repos[ID].files == {"README.md": b"# My model", "model.safetensors": b"precious"}
    hub.repos[ID] = Repo({".gitattributes": b"", "README.md": b"empty yet"})
    assert run(library, "concepts", "push", "duck", ID, "--yes") == 0


@pytest.mark.parametrize(
    "name", ["duck", "../../etc", "a/b/c", "someone/duck/", "", "https://evil.example/a/b", "a b/c"]
)
def test_invalid_repository_names_are_refused(hub, library, capsys, name):
    for argv in (("push", "duck", name, "--yes"), ("pull", name)):
        assert "Traceback" not in refused(library, capsys, *argv)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "message"), [(403, "may not write"), (429, "pause"), (500, "HTTP 500"), (413, "HTTP 413")]
)
def test_http_errors_during_push_are_reported(hub, library, capsys, status, message, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between tries
    hub.fail = {"/commit/": status}
    assert message in refused(library, capsys, "push", "duck", ID, "--yes")
    assert hub.repos[ID].files == {}


@pytest.mark.parametrize("part", ["whoami", "repos/create", "preupload", "lfs/objects", "/lfs/", "/commit/"])
def test_a_broken_connection_leaves_the_repository_unchanged(hub, library, capsys, part, monkeypatch):
    run(library, "concepts", "push", "duck", "someone/before", "--yes")
    before = dict(hub.repos["someone/before"].files)
    hub.cut = (part,)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    name = ID if part == "repos/create" else "someone/before"
    assert "connection broke" in refused(library, capsys, "push", "ink", name, "--yes")
    assert hub.repos["someone/before"].files == before


def test_pulling_a_repository_without_a_concept_is_refused(hub, library, capsys):
    assert "no repository nobody/nothing" in refused(library, capsys, "pull", "nobody/nothing")
    hub.repos["a/model"] = Repo({"model_index.json": b"{}", "unet/x.safetensors": b""})
    assert "whole model" in refused(library, capsys, "pull", "a/model")
    hub.repos["a/empty"] = Repo({"README.md": b""})
    assert "holds no embedding or LoRA" in refused(library, capsys, "pull", "a/empty")
    hub.repos["a/broken"] = Repo({"learned_embeds.safetensors": b"broken"})
    assert "refused" in refused(library, capsys, "pull", "a/broken")


def test_http_errors_during_pull_are_reported(hub, library, capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between tries
    hub.repos[ID] = Repo({"x.safetensors": concept_to_bytes(embedding())})
    for status in (403, 429, 500):
        hub.fail = {"/api/models/": status}
        assert f"refuses access to {ID} (HTTP {status})" in refused(library, capsys, "pull", ID)


def test_hostile_file_lists_are_refused(hub, library, capsys, tmp_path):
    data = concept_to_bytes(embedding("<me/cat>", 3))
    evil = ["../../../evil.safetensors", "/etc/evil.safetensors", "a/../../b.safetensors", "../evil.safetensors"]
    hub.repos["a/b"] = Repo({name: data for name in evil})
    err = refused(library, capsys, "pull", "a/b")
    assert "\x1b" not in err
    assert not list(tmp_path.parent.rglob("evil.safetensors")) and not list(Path(os.environ["HOME"]).rglob("evil*"))
    hub.repos["a/b"] = Repo({"x.safetensors": data})
    hub.listed = [{"rfilename": "x.safetensors", "size": 10**12}]
    assert "4 GB" in refused(library, capsys, "pull", "a/b")
    hub.listed = [{"rfilename": "there-is-no-such.safetensors", "size": 10}]
    refused(library, capsys, "pull", "a/b")
    hub.listed = [{"rfilename": f"{n}.safetensors", "size": 10**8} for n in range(100)]
    assert "4 GB" in refused(library, capsys, "pull", "a/b")
    assert [str(entry.token) for entry in library.entries()] == ["<me/duck-v1>", "<me/ink-v1>"]


@pytest.mark.parametrize("name", ["lora[v2].safetensors", "what?.safetensors", "a[!b]*.safetensors", "[[].safetensors"])
def test_file_names_are_not_interpreted_as_patterns(hub, library, name):
    hub.repos[ID] = Repo({name: concept_to_bytes(embedding("<me/cat>", 3)), "other.safetensors": b"x"})
    assert run(library, "concepts", "import", f"{ID}/{name}") == 0
    assert library.get("<me/cat>").identity == embedding("<me/cat>", 3).identity


def test_file_names_like_patterns_fetch_no_other_files(hub, library, capsys):
    hub.repos[ID] = Repo({"*.safetensors": b"x", "*": b"x", "x/y/huge.safetensors": bytes(5000), "README.md": b"x"})
    refused(library, capsys, "pull", ID)
    gets = [path for path, _, _ in hub.asked if path.startswith("GET") and "/resolve/" in path]
    assert gets and not [path for path in gets if "huge" in path]


def test_repositories_with_too_many_files_are_refused(hub, library, capsys):
    hub.repos[ID] = Repo()
    hub.listed = [{"rfilename": f"{n}.safetensors", "size": 10} for n in range(2000)]
    assert "holds 2,000 files" in refused(library, capsys, "pull", ID)


LIES = {
    "etag": ({"ETag": '"../../../../etag"'}, {}, "impossible etag"),
    "linked etag": ({"X-Linked-Etag": '"..\\x"'}, {}, "impossible x-linked-etag"),
    "commit": ({"X-Repo-Commit": "../../x"}, {}, "impossible x-repo-commit"),
    "dots": ({"ETag": '".."'}, {}, "impossible etag"),
    "size": ({}, {"size": 10}, "larger than the Hub announced"),
    "sum": ({}, {"lfs": {"sha256": "0" * 64, "size": 1, "pointerSize": 1}}, "not the file that the Hub announced"),
}


@pytest.mark.parametrize("answers, listed, message", LIES.values(), ids=LIES)
def test_false_hub_metadata_writes_nothing_outside_the_cache(hub, library, capsys, tmp_path, answers, listed, message):
    data = concept_to_bytes(embedding("<me/cat>", 3))
    hub.repos[ID], hub.answers = Repo({"x.safetensors": data}), answers
    hub.listed = [{"rfilename": "x.safetensors", "size": len(data)} | listed]
    cache, home = Path(os.environ["HF_HOME"]) / "hub", Path(os.environ["HOME"])
    assert message in refused(library, capsys, "pull", ID)
    stored = [
        path for place in (home, tmp_path) for path in place.rglob("*") if path.is_file() and not path.is_symlink()
    ]
    assert not [path for path in stored if cache not in path.parents and path.read_bytes() == data]
    assert not [path for path in stored if "etag" in path.name]
    hub.answers, hub.listed = {}, None
    assert run(library, "concepts", "pull", ID) == 0  # nothing of the lie stayed in the cache


def test_redirects_into_the_local_network_are_refused():
    from huggingface_hub import get_session

    from sdpersonal.concepts.importers import hub_client

    session = get_session()
    for start, end, refuses in (
        ("https://huggingface.co/a", "http://127.0.0.1:8080/", True),
        ("https://huggingface.co/a", "http://localhost/", True),
        ("https://huggingface.co/a", "http://[::1]/", True),
        ("https://huggingface.co/a", "http://169.254.169.254/latest", True),
        ("https://huggingface.co/a", "https://cdn.example.org/", False),
        ("https://huggingface.co/a", "/b", False),
        ("http://127.0.0.1:1/a", "http://127.0.0.1:2/", False),  # a mirror of one's own
    ):
        request = session.build_request("GET", start)
        answer = SimpleNamespace(request=request, url=request.url, headers={"location": end}, is_success=False)
        with pytest.raises(UserError, match="this network") if refuses else contextlib.nullcontext():
            hub_client._check_answer(answer)


def test_cached_files_in_subfolders_are_used_when_the_hub_fails(hub, library, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between tries
    data = safetensors_bytes({"emb_params": rows(1)})
    hub.repos[ID] = Repo({"README.md": b"# Duck", "embeddings/duck.safetensors": data})
    assert run(library, "concepts", "pull", ID, "--as", "<me/first>") == 0
    hub.fail = {"/api/models/": 500}
    assert run(library, "concepts", "pull", ID, "--as", "<me/second>") == 0
    first, second = (library.get(Token.parse(token)) for token in ("<me/first>", "<me/second>"))
    assert first.identity == second.identity


def test_pulling_never_overwrites_another_concept(hub, library, tmp_path, capsys):
    run(library, "concepts", "push", "duck", ID, "--yes")
    other = Library(tmp_path / "other")
    other.add(concept("<me/duck-v1>", 7))
    assert "is already in the library with other content" in refused(other, capsys, "pull", ID)
    assert run(other, "concepts", "pull", ID, "--replace") == 0
    assert other.get(Token.parse("<duck>")).identity == concept().identity


TIMED = """
import sys, time
from huggingface_hub import HfApi, snapshot_download  # seconds on a busy machine, and no part of what is measured
import sdpersonal.concepts.hub_transfer
from sdpersonal.cli.main import main
began = time.monotonic()
code = main(sys.argv[1:])
print("took", time.monotonic() - began)
sys.exit(code)
"""


@pytest.mark.parametrize("command, is_silent", [("push", True), ("pull", False)])
def test_an_unreachable_hub_is_reported_within_seconds(library, root, command, is_silent):
    """In a process of its own, with HF_ENDPOINT: a port where nobody listens, or one that never answers."""
    environment = os.environ | {"HF_TOKEN": TOKEN, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    argv = [sys.executable, "-c", TIMED, "concepts", command]
    argv += ["duck", ID, "--yes"] if command == "push" else [ID]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        port = silent.getsockname()[1] if is_silent else 1
        done = subprocess.run(
            [*argv, "--library", str(library.folder)],
            env=environment | {"HF_ENDPOINT": f"http://127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2 and "The Hub cannot be reached" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert float(done.stdout.rpartition("took")[2]) < 10  # five; and five for a machine that does much else


def test_the_thumbnail_is_pushed_where_no_images_are_given():
    assert thumbnail()
    names = [item.name for item in ours.files_to_push(concept(), ID)]
    assert names[0] == "README.md" and "pictures.png" in names
    assert "pictures.png" not in [item.name for item in ours.files_to_push(embedding(), ID)]


def begins(first) -> bytes:
    return concept_to_bytes(dataclasses.replace(first, token=first.token.unversioned()))[:2]


def test_versions_from_several_repositories_are_pulled_as_versions(hub, library, tmp_path, capsys):
    # A repository each: the server here calls every commit by one name, and the Hub's cache goes by that.
    other = Library(tmp_path / "other")
    for number in range(3):
        first = embedding("<me/ink>", seed=number + 5)
        texts = ({"description": "x" * count} for count in range(300))
        ones = (dataclasses.replace(first, card=first.card.model_copy(update=text)) for text in texts)
        first = next(item for item in ones if begins(item)[:1] == b"\x80")  # as a pickle does
        token = library.add(first)
        assert run(library, "concepts", "push", str(token), f"{ID}-{number}", "--yes") == 0
        capsys.readouterr()
        if number:
            assert run(other, "concepts", "pull", f"{ID}-{number}") == 2
            assert "--duplicates versions" in capsys.readouterr().err
        assert run(other, "concepts", "pull", f"{ID}-{number}", "--duplicates", "versions") == 0
        assert run(other, "concepts", "pull", f"{ID}-{number}") == 0  # once more adds nothing
        assert other.get(Token.parse("<me/ink>")).identity == first.identity
    assert len(other.entries()) == 3 and other.verify() == []
