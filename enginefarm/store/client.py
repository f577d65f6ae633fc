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
    """
    from botocore.config import Config  # a third of a second: `quick` may do without

    from enginefarm.store.service_models import new_session

    region = region_said()
    endpoint = endpoint or endpoint_said()
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
    session = new_session()
    return session.create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=region or session.get_config_variable("region") or "us-east-1",
        aws_access_key_id=credentials.access_key if credentials else None,
        aws_secret_access_key=credentials.secret_key if credentials else None,
        config=config,
    )


def region_said() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def endpoint_said() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


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
    if parts.scheme != "s3" or not fit or parts.query:
        raise UsageError(
            "store: the URL must be s3://bucket or s3://bucket/prefix, without a key in it",
            fix="set ENGINEFARM_STORE to such a URL; the key goes into the AWS_* variables",
        )
    prefix = "/".join(segments)
    return parts.netloc, f"{prefix}/" if prefix else ""
