"""Where this machine's farm is, and its password: two files in the farm's home.

The server writes both when it starts. Every command on the same machine reads them, so nothing has
to be exported there. On other machines set PREFECT_API_URL and PREFECT_API_AUTH_STRING.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from enginefarm.errors import FarmError
from enginefarm.settings import current
from enginefarm.store.disk import write_atomically

API_URL = "PREFECT_API_URL"
PASSWORD = "PREFECT_API_AUTH_STRING"  # noqa: S105 - a name
SERVER_PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"  # noqa: S105 - a name
DEFAULT_URL = "http://127.0.0.1:4200/api"


def folder() -> Path:
    return current().home / "farm"


def password_file() -> Path:
    return folder() / "password"


def saved_password() -> str | None:
    """The password of this machine's farm; None until a server has started here."""
    try:
        return password_file().read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FarmError(
            f"farm: cannot read the password in {password_file()}",
            why=error.strerror or "",
            fix=f"run this as the user who started the server, or set {PASSWORD}",
        ) from error


def ensure_password() -> str:
    """The saved password; the first time, a new one in a file that only this user can read.

    Raises: FarmError when the folder cannot be written.
    """
    path = password_file()
    try:
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"enginefarm:{secrets.token_urlsafe(24)}\n")
        try:
            os.link(new, path)  # of two servers that start at the same time, the first decides
        except FileExistsError:
            pass
        finally:
            new.unlink()
    except OSError as error:
        raise FarmError(
            f"farm: cannot write the password to {folder()}",
            why=error.strerror or "",
            fix="set ENGINEFARM_HOME to a folder that you may write",
        ) from error
    made = saved_password()
    if made is None:
        raise FarmError(f"farm: {path} is empty", fix=f"delete {path} and start the server again")
    return made


def save_url(url: str) -> None:
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder() / "url", f"{url}\n".encode())


def saved_url() -> str | None:
    try:
        return (folder() / "url").read_text("utf-8").strip() or None
    except OSError:
        return None


def configure() -> None:
    """Points this process at the farm, by its environment or else by this machine's files.

    The saved password is sent only to this machine's own server.
    """
    url = os.environ.setdefault(API_URL, saved_url() or DEFAULT_URL)
    if os.environ.get(PASSWORD):
        return
    password = saved_password() if url == saved_url() or loopback(_host_of(url)) else None
    if password is not None:
        os.environ[PASSWORD] = password


def loopback(host: str) -> bool:
    """Whether only this machine reaches that host's ports."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
