"""What every test gets: its own library, home and working directory, a closed network; the built-in base on request."""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from support import no_fsync

ROOT = Path(__file__).resolve().parent.parent

# Before torch is imported anywhere: workers beside each other must not each start a thread per core.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
# Matplotlib rebuilds its font list wherever it finds none: once per session, not once per test.
os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="sdpersonal-matplotlib-")
os.environ["MPLBACKEND"] = "Agg"
# Hundreds of child processes import the package: each would compile it anew where the environment forbids .pyc files.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["HF_HUB_OFFLINE"] = "1"  # child processes, which the guard below does not reach
no_fsync.install()
# A shell ignores Ctrl-C in what it puts in the background, nohup the end of a terminal; children inherit
# that. Tests send them both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Their files take minutes. The others, which take seconds, come after them, so that all workers end at the same time.
_FIRST = ("tests/training/test_resume.py", "tests/training/", "tests/app/")

_TRAINING_FOLDERS = ("api", "cli", "fleet", "training")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((i for i, start in enumerate(_FIRST) if item.nodeid.startswith(start)), 9))
    if not os.environ.get("SDPERSONAL_THOROUGH"):
        skip = pytest.mark.skip(reason="minutes of it: SDPERSONAL_THOROUGH=1 runs it, as make test-thorough does")
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(skip)
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not _has_cuda():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no CUDA card"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True, scope="session")
def base_dtype():
    """With SDPERSONAL_BASE_DTYPE=bfloat16, bases are loaded in this precision, as on a card; not in other processes."""
    if not (name := os.environ.get("SDPERSONAL_BASE_DTYPE")):
        yield
        return
    import torch

    from sdpersonal.models import loading

    before = loading.compute_dtype
    loading.compute_dtype = lambda device: getattr(torch, name)
    yield
    loading.compute_dtype = before


@pytest.fixture(autouse=True, scope="module")
def quick_trainings(request):
    """Trainings in the tests' own process share the built-in CLIP, and plot no curves."""
    if request.path.parent.name not in _TRAINING_FOLDERS:
        yield
        return
    from support import quick_trainings

    with quick_trainings.quick_trainings():
        yield


@pytest.fixture(scope="session")
def own_folders(tmp_path_factory):
    """A folder for each test. pytest would look through all folders of the tests before for the next free number."""
    folder = tmp_path_factory.mktemp("own")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_folder(own_folders, monkeypatch):
    """No test can touch a real library or home, or lean on the folder it was started in."""
    folder = next(own_folders)
    (folder / "home").mkdir(parents=True)
    (folder / "work").mkdir()
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("HF_HOME", str(folder / "home" / "huggingface"))
    monkeypatch.chdir(folder / "work")


@pytest.fixture(autouse=True)
def closed_network(request, monkeypatch):
    """Code under test finds a machine without a network, and a test whose code tried to use one fails."""
    tried = []

    def guarded(connect):
        def try_connect(sock, address):
            if sock.family in (socket.AF_INET, socket.AF_INET6) and not _loopback(address[0]):
                tried.append(address)
                raise OSError(errno.ENETUNREACH, "Network is unreachable (closed in tests)")
            return connect(sock, address)

        return try_connect

    real_lookup = socket.getaddrinfo

    def lookup(host, *args, **kwargs):
        if host is not None and not _loopback(host):
            tried.append(host)
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known (network closed in tests)")
        return real_lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    yield
    if tried and not request.node.get_closest_marker("tries_network"):
        pytest.fail(f"tried to reach {', '.join(map(str, tried))}")


def _loopback(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name in ("localhost", "", "0.0.0.0", "::", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout, with its scripts, examples and README."""
    return ROOT


@pytest.fixture(scope="session")
def shared_photos() -> Path:
    """Photos of real subjects: one folder each, too big and not ours to ship."""
    folder = ROOT.parent / "shared" / "photos"
    if not folder.is_dir():
        pytest.skip("no photos of real subjects in ../shared/photos")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """The built-in base on the CPU, loaded once. Tests give it back as they found it."""
    from sdpersonal.models import load_base

    return load_base("tiny", device="cpu")
