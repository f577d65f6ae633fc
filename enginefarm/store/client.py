"""botocore's S3 client with the settings that the store needs, and the URL of a store."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from enginefarm.errors import UsageError


@dataclass(frozen=True)
class Credentials:
    """A key pair that does not come from the AWS environment. Never printed."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)


class Patience(NamedTuple):
    """How often a request is made, and how long each attempt may take."""

    attempts: int = 4
    connect_s: float = 5
    read_s: float = 60


USUAL = Patience()


def new_client(endpoint: str | None, credentials: Credentials | None, patience: Patience) -> Any:
    """A client that makes no request yet.

    Without `endpoint` and `credentials` the standard AWS_* variables and files decide.
    Raises: UsageError for variables or files that botocore does not accept.
    """
    from botocore.config import Config  # takes a third of a second, which `quick_client` avoids
    from botocore.exceptions import BotoCoreError

    region = configured_region()
    endpoint = endpoint or configured_endpoint()
    if credentials is None:
        _require_plain_keys()
    config = Config(
        # By default botocore presigns for S3 with version 2, which newer regions and servers
        # refuse.
        signature_version="s3v4",
        connect_timeout=patience.connect_s,
        read_timeout=patience.read_s,
        retries={"mode": "standard", "total_max_attempts": patience.attempts},
        max_pool_connections=32,
        # Our own sha256 covers every byte; botocore's default CRC would hash them again.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint else {},
        proxies={} if credentials else None,  # the embedded server is never reached through a proxy
    )
    try:
        session = _new_session()
        return session.create_client(
            "s3",
            endpoint_url=endpoint,
            region_name=region or session.get_config_variable("region") or "us-east-1",
            aws_access_key_id=credentials.access_key if credentials else None,
            aws_secret_access_key=credentials.secret_key if credentials else None,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise UsageError(
            "store: the AWS settings cannot be used",
            why=" ".join(str(error).split()),
            fix="correct the AWS_* variable or the file that the line above names",
        ) from None


def _new_session() -> Any:
    """A botocore session that shares the descriptions of services with all others of the process:
    each step of a build opens the store again, and to read them takes 0.06 s."""
    import botocore.session

    session: Any = botocore.session.get_session()
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    return session


@cache
def _loader(data_path: str | None) -> Any:
    """data_path: AWS_DATA_PATH, which still counts."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
PLAIN_VALUE = re.compile(r"[!-~]+")
"""The characters of keys, tokens and names of regions."""


def _require_plain_keys() -> None:
    """Raises: UsageError for a key that was copied with a line break. A server would answer that
    it does not match; an HTTP library would report that the server does not answer."""
    for name in KEYS:
        if not PLAIN_VALUE.fullmatch(os.environ.get(name) or "-"):
            raise UsageError(
                f"store: {name} has a space, a line break or another character that no key has",
                fix=f"set {name} again without it",
            )


def configured_region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def configured_endpoint() -> str | None:
    """The first of ENDPOINTS that is set. Raises: UsageError when it is not an address."""
    name = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if name is None:
        return None
    if not is_endpoint(os.environ[name]):
        raise UsageError(
            f"store: {name} is not the address of a server",  # its value may hold a key
            fix=f"set {name} to an address such as https://HOST or http://HOST:PORT, without a "
            "key in it",
        )
    return os.environ[name]


def is_endpoint(url: str) -> bool:
    """Whether it is http:// or https:// with a host, and without anything that may be secret."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # the port is not a number or is too large, or an IPv6 address is cut off
        return False
    plain = re.fullmatch(r"[!-~]+", url) is not None and not {"@", "?", "#", "\\"} & set(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain and port != 0


BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""The bucket names that S3 accepts, including old ones with capitals and underscores."""


def parse_url(url: str) -> tuple[str, str]:
    """Bucket and prefix (empty, or ending in a slash) of `s3://bucket/prefix`.

    Raises: UsageError.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # a lone bracket, which starts an IPv6 address
        parts = urlsplit("")
    segments = parts.path.strip("/").split("/")
    fit = BUCKET.fullmatch(parts.netloc) and not {".", ".."} & set(segments)
    if parts.scheme != "s3" or not fit or {"?", "#"} & set(url):
        raise UsageError(
            "store: the URL must be s3://bucket or s3://bucket/prefix, without a key in it",
            fix="set ENGINEFARM_STORE to such a URL; the key goes into the AWS_* variables",
        )
    prefix = "/".join(segments)
    return parts.netloc, f"{prefix}/" if prefix else ""
