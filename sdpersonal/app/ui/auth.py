"""Control access to the app: from this machine only, or with --listen by user name and password."""

from __future__ import annotations

import atexit
import hashlib
import hmac
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ... import storage
from ...errors import UserError, printable

LOCALHOST = ("127.0.0.1", "localhost")
_MIN_PASSWORD = 8  # characters of a password
_MAX_BYTES = 100_000  # bytes of the password file


@dataclass(frozen=True)
class Access:
    """Access settings. listen: whether to accept other machines; hosts: more host names of this app, behind a proxy
    for instance; passwords: by user name, empty if nobody logs in."""

    port: int
    listen: bool = False
    hosts: tuple[str, ...] = ()
    passwords: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def address(self) -> str:
        return "0.0.0.0" if self.listen else LOCALHOST[0]

    @property
    def names(self) -> frozenset[str]:
        """The host names that a browser may use."""
        return frozenset((*LOCALHOST, *self.hosts, *(_machine_names() if self.listen else ())))

    @property
    def check(self) -> Callable[[str, str], bool] | None:
        """Function (name, password) -> whether they match, in constant time; None if nobody logs in."""
        if not self.passwords:
            return None

        def fits(name: str, password: str) -> bool:
            expected = self.passwords.get(name)
            given_digest, expected_digest = (
                hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (password, expected or "")
            )
            return hmac.compare_digest(given_digest, expected_digest) and expected is not None

        return fits


def configure_access(port: int, listen: bool, hosts: Sequence[str], password_file: Path | None) -> Access:
    """Build the access settings. Raises UserError for --listen without passwords, a password file that others can
    read, or a port that is taken."""
    if listen and password_file is None:
        raise UserError(
            "--listen lets others use your GPU and see your concepts.",
            "Give --password-file FILE too, with lines NAME:PASSWORD.",
        )
    access = Access(port, listen, tuple(hosts), _read_passwords(password_file) if password_file else {})
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((access.address, port))
        except OSError:
            raise port_taken_error(port) from None
    return access


def port_taken_error(port: int) -> UserError:
    return UserError(f"Port {port} is taken, perhaps by another running app.", "Choose another: --port N.")


def _read_passwords(path: Path) -> dict[str, str]:
    from ..backend.workspace import user_folder_name  # imported late: it loads the models' modules, which takes seconds

    data = storage.read_bytes(path, _MAX_BYTES)
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UserError(f"Others can read {printable(str(path))}.", f"Run: chmod 600 {printable(str(path))}")
    passwords: dict[str, str] = {}
    for number, text in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not text.strip() or text.startswith("#"):
            continue
        name, colon, password = text.partition(":")
        if not colon or len(password) < _MIN_PASSWORD:
            raise UserError(
                f"Line {number} of {printable(str(path))} is not NAME:PASSWORD, or the password is short.",
                f"A password has at least {_MIN_PASSWORD} characters.",
            )
        passwords[user_folder_name(name)] = password
    if not passwords:
        raise UserError(f"{printable(str(path))} has no line.", "Write one for each user: NAME:PASSWORD.")
    return passwords


def _machine_names() -> set[str]:
    """Return the machine's host names and its IPv4 addresses."""
    import psutil  # type: ignore[import-untyped]  # psutil ships no types

    name = socket.gethostname().lower()
    names = {name, f"{name}.local", socket.getfqdn().lower()}
    with suppress(OSError):
        names |= {
            address.address
            for addresses in psutil.net_if_addrs().values()
            for address in addresses
            if address.family == socket.AF_INET
        }
    return names


_GRADIO_VARIABLES = ("GRADIO_", "UVICORN_", "FORWARDED_ALLOW_IPS", "SPACE_ID", "SYSTEM=")


def isolate_gradio() -> Path:
    """Remove the environment variables of Gradio and its server; return a private folder for the files shown.

    It is in a folder of this app, readable by this user only, where its temporary files are too. It is deleted when
    the program ends, or by the next start if this one is killed.
    """
    for name in [name for name in os.environ if f"{name}=".startswith(_GRADIO_VARIABLES)]:
        del os.environ[name]
    folder = storage.private_folder("sdpersonal-app-")
    atexit.register(storage.remove, folder)
    tempfile.tempdir = str(storage.make_folder(folder / "temporary"))  # not for child processes, which may live longer
    served = storage.make_folder(folder / "served")
    os.environ["GRADIO_TEMP_DIR"] = str(served)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return served
