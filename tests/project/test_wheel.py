"""A wheel built from the tree and installed alone holds everything, the built-in base included."""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile

import pytest
from PIL import Image

import sdpersonal
from conftest import ROOT

PARTS = ["pyproject.toml", "README.md", "LICENSE", "NOTICE", "sdpersonal"]


def run(*command, **options):
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    return ran


def build_wheel(folder):
    """From a copy: building leaves folders behind in the tree it is run on."""
    tree = folder / "tree"
    tree.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / part)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", folder, tree)
    return next(folder.glob("sdpersonal-*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of an environment with the wheel in it, and of this one everything but sdpersonal."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    # Installing torch again would take minutes. A path added this way brings modules only: an editable install's own
    # .pth file is not followed, so the checkout stays out of reach.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    with open(os.path.join(site, "libraries.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    return python.parent


@pytest.fixture
def bare_environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def test_the_wheel_contains_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("sdpersonal/")}
    files = {path for path in (ROOT / "sdpersonal").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packed == {path.relative_to(ROOT).as_posix() for path in files}


def test_an_installed_wheel_reports_its_version_without_torch(installed, bare_environment):
    report = "import sys; sys.modules['torch'] = None; import importlib.metadata, sdpersonal as sp"
    report += "; print(sp.__version__, importlib.metadata.version('sdpersonal'))"
    ran = run(installed / "python", "-c", report, env=bare_environment)
    assert ran.stdout.split() == [sdpersonal.__version__] * 2


def test_the_package_is_imported_from_the_wheel(installed, bare_environment):
    where = run(installed / "python", "-c", "import sdpersonal; print(sdpersonal.__file__)", env=bare_environment)
    assert where.stdout.startswith(str(installed.parent))


@pytest.mark.thorough  # its files are compared with the checkout's, and the app below opens the base that it holds
@pytest.mark.slow
def test_an_installed_wheel_generates_an_image(installed, tmp_path, bare_environment):
    command = ["generate", "a photo of a cat on grass", "--steps", "4", "--n", "1", "--base", "tiny", "--out", tmp_path]
    run(installed / "sdpersonal", *command, env=bare_environment, cwd=tmp_path)
    (picture,) = tmp_path.rglob("*.png")
    with Image.open(picture) as image:
        assert image.size == (128, 128)
        assert len(image.getcolors(1 << 16) or range(1 << 16)) > 100  # something is drawn on it


def test_every_command_is_in_the_wheel(installed, bare_environment, tmp_path):
    for command in ("app", "demo", "train dreambooth", "concepts list"):
        shown = run(installed / "sdpersonal", *command.split(), "--help", env=bare_environment, cwd=tmp_path)
        assert shown.stdout.startswith(f"usage: sdpersonal {command} ")


def test_the_demos_photos_are_in_the_wheel(installed, bare_environment, tmp_path):
    """With the captions beside them; the demo itself takes minutes."""
    script = "from sdpersonal.cli.commands.demo import SAMPLES; from sdpersonal.photos.loading import load_photos\n"
    script += "for name in ('teddy-bear', 'cyanotype'):\n"
    script += (
        "    photos = load_photos(SAMPLES / name, 64).photos; print(name, len(photos), all(p.captions for p in photos))"
    )
    shown = run(installed / "python", "-c", script, env=bare_environment, cwd=tmp_path)
    assert shown.stdout.splitlines() == ["teddy-bear 5 True", "cyanotype 5 True"]


@pytest.mark.slow
def test_an_installed_wheel_serves_the_app(installed, bare_environment, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [installed / "sdpersonal", "app", "--base", "tiny", "--port", str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=bare_environment, cwd=tmp_path, **pipes) as server:
        try:
            lines = iter(server.stdout.readline, "")
            assert any(f"Open http://127.0.0.1:{port}" in line for line in lines)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
                text = page.read().decode()
            for asset in re.findall(r'(?:src|href)="(/page/[^"]+\.(?:js|css))"', text):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{asset}", timeout=60) as file:
                    assert file.read(1)
            assert "main.js" in text and "base.css" in text
        finally:
            server.terminate()
            code = server.wait(60)
    assert code == 0
