"""The S3 client: botocore's, with the settings that the store needs, and the URL of a store."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from enginefarm.errors import UsageError


@dataclass(frozen=True)
class Credentials:
    """A key pair that does not come from the AWS environment. Never printed."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)


def new_client(
    endpoint: str | None,
    credentials: Credentials | None,
    *,
    attempts: int,
    connect_timeout_s: float,
    read_timeout_s: float,
) -> Any:
    """A client that makes no request yet.

    Without `endpoint` and `credentials` the standard AWS_* variables and files decide.
    Raises: UsageError for variables or files that botocore does not take.
    """
    from botocore.config import Config  # a third of a second: `quick` may do without
    from botocore.exceptions import BotoCoreError

    from enginefarm.store.service_models import new_session

    region = region_said()
    endpoint = endpoint or endpoint_said()
    if credentials is None:
        _require_plain_keys()
    config = Config(
        # By default botocore presigns for S3 with version 2, which newer regions and servers
        # refuse.
        signature_version="s3v4",
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=32,
        # Our own sha256 covers every byte; botocore's default CRC would hash them again.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint else {},
        proxies={} if credentials else None,  # the embedded server: never by a proxy
    )
    try:
        session = new_session()
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


KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
PLAIN_VALUE = re.compile(r"[!-~]+")
"""What keys, tokens, and names of regions consist of."""


def _require_plain_keys() -> None:
    """Raises: UsageError for a key that was copied with a line break. A server says of it that it
    does not match, and HTTP libraries that nobody answers."""
    for name in KEYS:
        if not PLAIN_VALUE.fullmatch(os.environ.get(name) or "-"):
            raise UsageError(
                f"store: {name} has a space, a line break or another character that no key has",
                fix=f"set {name} again, without it",
            )


def region_said() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def endpoint_said() -> str | None:
    """The first of ENDPOINTS that is set. Raises: UsageError when it is not an address."""
    name = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if name is None:
        return None
    if not is_endpoint(os.environ[name]):
        raise UsageError(
            f"store: {name} is not the address of a server",  # it is not shown: it may hold a key
            fix=f"set {name} to an address such as https://HOST or http://HOST:PORT, without a "
            "key in it",
        )
    return os.environ[name]


def is_endpoint(url: str) -> bool:
    """Whether it is http:// or https:// with a host, and nothing that could be a secret."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is no number or too large, or half of an IPv6 address
        return False
    plain = re.fullmatch(r"[!-~]+", url) is not None and not {"@", "?", "#", "\\"} & set(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain and port != 0


BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""What S3 takes for a bucket's name, old names with capitals and underscores too."""


def parse_url(url: str) -> tuple[str, str]:
    """Bucket and prefix (empty, or ending in a slash) of `s3://bucket/prefix`.

    Raises: UsageError.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # a lone bracket, taken for an IPv6 address
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
