"""Control access to the app: from this machine only, or with --listen by user name and password."""

from __future__ import annotations

import atexit
import hashlib
import hmac
import ipaddress
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ... import storage
from ...errors import UserError, printable
from ...storage.user_file import read_user_file

LOCALHOST = ("127.0.0.1", "localhost")
_MIN_PASSWORD = 8  # characters of a password, without the spaces around it


@dataclass(frozen=True)
class Access:
    """Access settings. listen: whether to accept other machines; hosts: more host names of this app, behind a proxy
    for instance; passwords: by user name, empty if nobody logs in; proxies: addresses and networks of proxies, whose
    X-Forwarded-For and X-Forwarded-Proto are believed."""

    port: int
    listen: bool = False
    hosts: tuple[str, ...] = ()
    passwords: dict[str, str] = field(default_factory=dict, repr=False)
    proxies: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        return "0.0.0.0" if self.listen else LOCALHOST[0]

    @property
    def names(self) -> frozenset[str]:
        """The host names that a browser may use."""
        return frozenset((*LOCALHOST, *self.hosts, *(_machine_names() if self.listen else ())))

    def is_proxy(self, address: str) -> bool:
        """Return whether the address is one of the proxies."""
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(peer in ipaddress.ip_network(proxy) for proxy in self.proxies)

    @property
    def check(self) -> Callable[[str, str], bool] | None:
        """Function (name, password) -> whether they match, in constant time; None if nobody logs in."""
        if not self.passwords:
            return None

        def fits(name: str, password: str) -> bool:
            expected = self.passwords.get(name)
            given_digest, expected_digest = (
                hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (password, expected or "")
            )
            return hmac.compare_digest(given_digest, expected_digest) and expected is not None

        return fits


def configure_access(
    port: int, listen: bool, hosts: Sequence[str], password_file: Path | None, proxies: Sequence[str] = ()
) -> Access:
    """Build the access settings. Raises UserError for --listen or --proxy without passwords, a password file that
    others can read, a proxy that is no address, or a port that is taken."""
    if listen and password_file is None:
        raise UserError(
            "--listen lets others use your GPU and see your concepts.",
            "Give --password-file FILE too, with lines NAME:PASSWORD.",
        )
    if proxies and password_file is None:
        raise UserError(
            "--proxy lets whoever reaches the proxy use your GPU and see your concepts.",
            "Give --password-file FILE too, with lines NAME:PASSWORD.",
        )
    for proxy in proxies:
        _check_proxy(proxy)
    passwords = _read_passwords(password_file) if password_file else {}
    access = Access(port, listen, tuple(hosts), passwords, tuple(proxies))
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


def _check_proxy(proxy: str) -> None:
    """Raise UserError if the text is not an address or a network, or is everybody's."""
    try:
        everybody = ipaddress.ip_network(proxy).prefixlen == 0
    except ValueError:
        everybody = True
    if everybody:
        raise UserError(
            f"--proxy: {printable(proxy, 60)} is not the address of a proxy.",
            "Give the address that the proxy connects from, such as 127.0.0.1, or its network, such as 172.17.0.0/16.",
        )


def _read_passwords(path: Path) -> dict[str, str]:
    hint = f"A password has at least {_MIN_PASSWORD} characters, which can be typed and are not all spaces."
    return read_user_file(path, "password", _MIN_PASSWORD, hint)


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
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"  # of the API, whose times it would keep
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"  # and sum up after each
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn would believe every program on this machine; see `protect`
    return served
