"""Who may come in: only this machine, or with --listen whoever has a name and a password."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ... import storage
from ...errors import UserError
from ...prompts import printable

LOCALHOST = ("127.0.0.1", "localhost")
_MIN_PASSWORD = 8  # characters of a password
_MAX_BYTES = 100_000  # bytes of the file


@dataclass(frozen=True)
class Access:
    """port; listen: also to other machines; hosts: more names that this app goes by, behind a proxy for instance;
    passwords: by name, empty where nobody logs in."""

    port: int
    listen: bool = False
    hosts: tuple[str, ...] = ()
    passwords: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def address(self) -> str:
        return "0.0.0.0" if self.listen else LOCALHOST[0]

    @property
    def names(self) -> frozenset[str]:
        """What a browser may call it."""
        return frozenset((*LOCALHOST, *self.hosts, *(_machine_names() if self.listen else ())))

    @property
    def check(self) -> Callable[[str, str], bool] | None:
        """(name, password) -> whether they belong together; as long for a wrong one as for a right one."""
        if not self.passwords:
            return None

        def fits(name: str, password: str) -> bool:
            wanted = self.passwords.get(name)
            given, right = (
                hashlib.sha256(each.encode("utf-8", "replace")).digest() for each in (password, wanted or "")
            )
            return hmac.compare_digest(given, right) and wanted is not None

        return fits


def configure_access(port: int, listen: bool, hosts: Sequence[str], password_file: Path | None) -> Access:
    """Raises UserError: nobody listens to others without passwords, a file of them is nobody else's, and a port
    that is taken is somebody else's."""
    if listen and password_file is None:
        raise UserError(
            "--listen lets others use your graphics card and see your concepts.",
            "Give --password-file FILE too, with lines NAME:PASSWORD.",
        )
    door = Access(port, listen, tuple(hosts), _read_passwords(password_file) if password_file else {})
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((door.address, port))
        except OSError:
            raise port_taken_error(port) from None
    return door


def port_taken_error(port: int) -> UserError:
    return UserError(f"Port {port} is taken, perhaps by an app that still runs.", "Give another: --port N.")


def _read_passwords(path: Path) -> dict[str, str]:
    from ..backend.workspace import user_folder_name  # with it comes all that draws, seconds of it

    data = storage.read_bytes(path, _MAX_BYTES)
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UserError(f"Others can read {printable(str(path))}.", f"Run: chmod 600 {printable(str(path))}")
    found: dict[str, str] = {}
    for number, text in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not text.strip() or text.startswith("#"):
            continue
        name, colon, password = text.partition(":")
        if not colon or len(password) < _MIN_PASSWORD:
            raise UserError(
                f"Line {number} of {printable(str(path))} is not NAME:PASSWORD, or the password is short.",
                f"A password has at least {_MIN_PASSWORD} characters.",
            )
        found[user_folder_name(name)] = password
    if not found:
        raise UserError(f"{printable(str(path))} has no line.", "Write one for each user: NAME:PASSWORD.")
    return found


def _machine_names() -> set[str]:
    """The machine's names and addresses in its networks."""
    import psutil

    name = socket.gethostname().lower()
    found = {name, f"{name}.local", socket.getfqdn().lower()}
    with suppress(OSError):
        found |= {
            each.address for some in psutil.net_if_addrs().values() for each in some if each.family == socket.AF_INET
        }
    return found
