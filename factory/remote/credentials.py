"""Which factory a client speaks to, and as whom: given, from the environment, or as ``factory login`` stored it.

A stored token goes to the address that it was stored for and to no other one,
also where ``FACTORY_URL`` names another.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from factory.errors import Detail, InvalidRequest, StorageFault

API = "/api/v1"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class _Given(BaseSettings):
    """``FACTORY_URL`` and ``FACTORY_TOKEN``; not with the other settings, which are handed on to processes."""

    model_config = SettingsConfigDict(env_prefix="FACTORY_", env_file=".env", env_ignore_empty=True, extra="ignore")

    url: str | None = None
    token: SecretStr | None = None


@dataclass(frozen=True)
class Login:
    """An address, and the token for it."""

    url: str
    token: str | None = field(default=None, repr=False)


def find_login(url: str | None = None, token: str | None = None) -> Login | None:
    """Return where to and as whom; None where nothing names a factory.

    Args:
        url: Address of the portal; else that of ``FACTORY_URL``, else the stored one.
        token: Else that of ``FACTORY_TOKEN``, else the one that was stored for this address.

    Raises:
        InvalidRequest: the address is none, or others may read the stored token.
        StorageFault: the stored login cannot be read.
    """
    wanted, secret = url or _Given().url, token or given_token()
    address = None if wanted is None else checked_url(wanted)
    if address is not None and secret is not None:
        return Login(address, secret)  # whatever is stored, and whether it can be read
    stored = read_login()
    if address is None:
        return None if stored is None else Login(stored.url, secret or stored.token)
    return Login(address, stored.token if stored is not None and stored.url == address else None)


def given_token() -> str | None:
    """Return the token of ``FACTORY_TOKEN``, if any."""
    token = _Given().token
    return None if token is None else token.get_secret_value().strip() or None


def checked_url(url: str) -> str:
    """Return an address as it is stored and compared.

    Raises:
        InvalidRequest: it is not one of HTTP, or holds a password or a query.

    >>> checked_url("https://factory.example.com/")
    'https://factory.example.com'
    >>> checked_url("http://127.0.0.1:8080/api/v1")
    'http://127.0.0.1:8080'
    """
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        usable = False
    if not usable or parts.username is not None or parts.query or parts.fragment:
        shown = url if "@" not in url else "(an address with a name or password in it)"
        raise InvalidRequest(
            f"FACTORY_URL: {shown!r} is not the address of a factory.",
            hint="Write it as https://factory.example.com or http://127.0.0.1:8080, without name, password and query.",
            details=[Detail("FACTORY_URL", "is not an HTTP address")],
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix(API)}"


def in_clear(url: str) -> bool:
    """Return whether whoever is on the way could read what is sent there.

    >>> in_clear("http://factory.example.com"), in_clear("http://127.0.0.1:8080"), in_clear("https://x.org")
    (True, False, False)
    """
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in LOOPBACK


def login_file() -> Path:
    """Return where the login is stored: below the user's configuration folder."""
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "factory" / "login.json"


def read_login() -> Login | None:
    """Return the stored login, if there is one.

    Raises:
        InvalidRequest: others may read it.
        StorageFault: it cannot be read.
    """
    path = login_file()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InvalidRequest(
                f"Others may read the token in {str(path)!r} (mode {mode:04o}).",
                hint="Have it revoked and log in again; or chmod 600 the file where nobody can have read it.",
                details=[Detail("login", f"mode {mode:04o}")],
            )
        document = json.loads(path.read_text(encoding="utf-8"))
        return Login(checked_url(document["url"]), str(document["token"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageFault(
            f"The login in {str(path)!r} cannot be read: {error}.", hint="Log in again: factory login URL."
        ) from error


def write_login(login: Login) -> Path:
    """Store a login for this user only, in place of the one before; return the file.

    Raises:
        StorageFault: it cannot be written.
    """
    path = login_file()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"url": login.url, "token": login.token}, file)
        draft.replace(path)
    except OSError as error:
        raise StorageFault(
            f"The login cannot be stored in {str(path)!r}: {error.strerror or error}.",
            hint="Set XDG_CONFIG_HOME to a folder that this user may write, or use FACTORY_URL and FACTORY_TOKEN.",
        ) from error
    return path


def forget_login() -> Login | None:
    """Remove the stored login; return what it was, if there was one that could be read."""
    path = login_file()
    try:
        login = read_login()
    except (InvalidRequest, StorageFault):
        login = None
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageFault(f"{str(path)!r} cannot be removed: {error.strerror or error}.", hint="Remove it.") from error
    return login
