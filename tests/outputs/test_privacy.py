"""Nothing of the photos, the machine or the user is in anything that leaves: exports, what is pushed, the gallery.

A concept is trained for real, from photos that tell a lot, in a home folder that tells who lives there.
"""

import base64
import dataclasses
import html
import io
import json
import re
import socket
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from PIL import Image

from conftest import ROOT
from sdpersonal.cli.main import main
from sdpersonal.concepts.exporters import FORMATS
from sdpersonal.concepts.library import Library
from sdpersonal.config import DreamboothSettings
from sdpersonal.prompts import Token
from sdpersonal.training import train
from support.foreign import kohya, rows
from support.hub_server import TOKEN, hub_server

USER, HOST, MARK = "annaschmidt", "annas-laptop-7", "PLANTED"
PHOTOS = ["Anna at home, Hauptstrasse 7 (52.5170N).jpg", "-rf IMG_0815 \u202egpj.jpg", "Zoë's 3rd birthday.jpg"]


def telling(image: Image.Image) -> bytes:
    """A JPEG with everything that a camera and an editor leave in it."""
    exif = Image.Exif()
    exif[0x010F], exif[0x013B], exif[0x0132] = f"{MARK}-camera", f"{MARK}-artist", "2031:12:24 19:30:00"
    exif.get_ifd(0x8769)[0xA431] = f"{MARK}-serial"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 1.2), 3: "E", 4: (13.0, 23.0, 20.0), 27: MARK.encode()})
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif, xmp=f"<x:xmpmeta>{MARK}-xmp</x:xmpmeta>".encode(), comment=f"{MARK}-comment")
    return out.getvalue()


def telling_thumbnail() -> bytes:
    """As no run of ours leaves it."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x010F], exif[0x8825] = f"{MARK}-camera", {1: "N", 2: (52.0, 31.0, 0.0)}
    Image.radial_gradient("L").convert("RGB").save(out, "WEBP", exif=exif, xmp=f"<x:xmpmeta>{MARK}".encode())
    return out.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with photos, their captions and a library, in which `<me/bear>` is trained and a LoRA imported."""
    home = tmp_path_factory.mktemp("disk") / "home" / USER
    place = home / "Pictures" / "Our bear Bruno"
    place.mkdir(parents=True)
    for number, name in enumerate(PHOTOS, 1):
        with Image.open(ROOT / "examples" / "photos" / "teddy-bear" / f"0{number}.jpg") as picture:
            (place / name).write_bytes(telling(picture))
        (place / Path(name).with_suffix(".txt")).write_text(f"a photo of {{}} in {MARK}-caption's kitchen")
    (home / "photos of our other bears").mkdir()
    (home / "photos of our other bears" / "a.jpg").write_bytes((place / PHOTOS[0]).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, USER)
        patch.setenv("HOME", str(home))
        patch.setattr(socket, "gethostname", lambda: HOST)
        common = {"library": home / "concepts", "run": home / "runs" / "bear", "base": "tiny", "steps": 1, "rank": 2}
        common |= {"prior": str(home / "photos of our other bears"), "samples": False}
        train(DreamboothSettings(photos=place, token="<me/bear>", class_noun="teddy bear", **common), lambda _: None)
        library = Library(home / "concepts")
        bear = library.get(Token.parse("<me/bear>"))
        assert bear.card.recipe["prior"] == "photos"
        library.add(dataclasses.replace(bear, thumbnail=telling_thumbnail()), replace=True)
        metadata = {
            "ss_sd_model_name": rf"C:\Users\{USER}\models\v1-5.safetensors",
            "ss_dataset_dirs": json.dumps({f"10_{MARK} dog": {"n_repeats": 10}}),
            "ss_tag_frequency": json.dumps({f"10_{MARK} dog": {f"{MARK}-tag": 3}}),
            "ss_training_comment": f"{MARK}-comment",
            "ss_output_name": "a-dog",
        }
        made = home / "kohya.safetensors"
        made.write_bytes(kohya("sd1", every=20, **metadata))
        library.import_(made, Token.parse("<you/dog>"))
    return home


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.chdir(home)


def spoken(name: str, data: bytes) -> bytes:
    """Everything that can be read in a file: its name, its bytes, pictures in base64, members of archives, escapes."""
    parts = [name.encode(), data]
    parts += [base64.b64decode(encoded) for encoded in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data)]
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts += [content for member in archive.namelist() for content in (member.encode(), archive.read(member))]
    text = data.decode("utf-8", "ignore")
    parts += [html.unescape(text).encode(), text.replace("\\", "").encode()]  # Markdown escapes what stands in names
    return b"\n".join(parts)


def secrets(home: Path) -> list[bytes]:
    words = [USER, HOST, MARK, "/Pictures", "Bruno", "other bears", "kohya.safetensors", "2031:12:24"]
    words += [str(home), home.as_uri(), "Hauptstrasse", "IMG_0815", "Zoë", "birthday", "52.5170", "Zo\\u00eb"]
    words += [quote(word) for word in words]
    return [*(word.encode() for word in words), b"Exif\0\0", b"xmpmeta", b"<exif:"]


def check(home: Path, leaving: dict[str, bytes]) -> None:
    photos = [path.read_bytes() for path in (home / "Pictures" / "Our bear Bruno").glob("*.jpg")]
    assert len(photos) == 3 and all(
        MARK.encode() in photo and b"Exif\0\0" in photo for photo in photos
    )  # it would be seen
    pieces = [photo[at : at + 24] for photo in photos for at in range(0, len(photo) - 24, 997)]
    assert leaving
    for name, data in leaving.items():
        text = spoken(name, data)
        for secret in secrets(home):
            at = text.lower().find(secret.lower())
            assert at < 0, f"{secret} is in {name}: {text[max(0, at - 200) : at + 60]}"
        for piece in pieces:
            assert piece not in text, name


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("token", ["<me/bear>", "<you/dog>"])
@pytest.mark.parametrize("format", FORMATS)
def test_exports_contain_no_private_data(home, tmp_path, capsys, format, token):
    to = tmp_path / "out"
    code = main(["concepts", "export", token, "--format", format, "--to", str(to)])
    if format == "sd-concepts-library" and token == "<you/dog>":  # a LoRA alone
        assert code == 2
        return
    assert code == 0
    capsys.readouterr()
    check(home, files_in(to))


@pytest.mark.parametrize("token", ["<me/bear>", "<you/dog>"])
def test_pushed_files_and_requests_contain_no_private_data(home, tmp_path, capsys, monkeypatch, token):
    from huggingface_hub import constants

    assert main(["concepts", "push", token, "someone/it", "--to", str(tmp_path / "look")]) == 0
    shown = files_in(tmp_path / "look")
    check(home, shown)
    with hub_server() as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        assert main(["concepts", "push", token, "someone/it", "--yes"]) == 0
        sent = {"requests": server.sent()} | {f"lfs/{name}": data for name, data in server.lfs.items()}
        assert server.repos["someone/it"].files == shown
    assert len(sent["requests"]) > 1000
    check(home, sent)


def test_the_gallery_contains_no_private_data(home, tmp_path, capsys):
    assert main(["concepts", "gallery", "--to", str(tmp_path / "page"), "--title", "Ours"]) == 0
    page = files_in(tmp_path / "page")
    assert page.keys() == {"index.html"} and b"me/bear" in page["index.html"] and b"you/dog" in page["index.html"]
    check(home, page)


def test_exports_of_imported_embeddings_contain_no_private_data(home, tmp_path, capsys):
    """A1111's `.pt` holds the checkpoint's name, which may be a path."""
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": rows(1)}, "name": "toy", "step": 3}
    torch.save(content | {"sd_checkpoint_name": f"/home/{USER}/models/own.ckpt"}, tmp_path / "toy.pt")
    library = Library(tmp_path / "concepts")
    library.import_(tmp_path / "toy.pt")
    assert main(["concepts", "export", "toy", "--to", str(tmp_path / "out"), "--library", str(library.folder)]) == 0
    check(home, files_in(tmp_path / "out"))
