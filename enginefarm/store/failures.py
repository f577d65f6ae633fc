"""Translates botocore's errors into ours. Messages name the endpoint, never a secret."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from botocore import exceptions as boto
from urllib3.exceptions import HTTPError

from enginefarm.errors import (
    EnginefarmError,
    StoreConflict,
    StoreDenied,
    StoreError,
    StoreMissing,
    StoreUnavailable,
    one_line,
)

NOT_FOUND = frozenset({"NoSuchKey", "NotFound", "404"})
DENIED = frozenset(
    {
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "AuthorizationHeaderMalformed",
        "403",
        "401",
    }
)
SKEWED = "RequestTimeTooSkewed"
MOST_SKEW = timedelta(minutes=15)
"""What S3 allows between the two clocks."""

CONFLICT = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})

# Raised before an answer of the server, or in the middle of it.
TRANSPORT = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    HTTPError,
    ConnectionError,
    TimeoutError,
)
NO_KEY = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)


def code_of(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_missing_key(error: boto.ClientError) -> bool:
    return code_of(error) in NOT_FOUND or (
        status_of(error) == 404 and code_of(error) != "NoSuchBucket"
    )


def translate(error: Exception, *, bucket: str, where: str, key: str = "") -> EnginefarmError:
    """Our error for one of botocore's.

    where: the endpoint. key: the object, if the request was about one.
    """
    place = f"s3://{bucket}/{key}" if key else f"s3://{bucket}"
    if isinstance(error, NO_KEY):
        return StoreDenied(
            f"store {place}: no credentials",
            why="neither the environment nor the AWS configuration has a complete key",
            fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)",
        )
    if isinstance(error, TRANSPORT):
        return StoreUnavailable(
            f"store {place}: no answer from {where}",
            why=type(error).__name__,
            fix="check that the server is up and that AWS_ENDPOINT_URL names it",
        )
    if isinstance(error, boto.ClientError):
        return _of_code(error, bucket, place, where)
    return StoreError(f"store {place}: {type(error).__name__}", why=one_line(error))


def _of_code(error: boto.ClientError, bucket: str, place: str, where: str) -> EnginefarmError:
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return StoreMissing(
            f"store: {where} has no bucket {bucket!r}",
            fix=f"create it (aws s3 mb s3://{bucket}), or correct ENGINEFARM_STORE",
        )
    if is_missing_key(error):
        return StoreMissing(f"store: the object {place} does not exist")
    if code in CONFLICT or status == 412:
        return StoreConflict(f"store: {place} was written by somebody else first")
    denied = code in DENIED or status in (401, 403)
    said = clock_of(error.response)
    if code == SKEWED or (denied and said and abs(datetime.now(UTC) - said) > MOST_SKEW):
        return StoreDenied(
            f"store {place}: {where} refuses what this machine asks, because its clock is wrong",
            why=f"the server's clock says {said or 'another time'}, and this machine's "
            f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S+00:00}",
            fix="set the clock (NTP) of this machine, or of the server if that one is wrong",
        )
    if denied:
        return StoreDenied(
            f"store {place}: access refused by {where}",
            why=code,
            fix="check AWS_ACCESS_KEY_ID / AWS_SECRET_ACCESS_KEY and the bucket's policy",
        )
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout", "Throttling"):
        return StoreUnavailable(f"store {place}: {where} answered {status} {code}")
    return StoreError(f"store {place}: {where} answered {status} {code}")


def clock_of(answer: Any) -> datetime | None:
    """The server's time when it answered, with an error too; None if it did not say. HEAD has no
    other sign of a wrong clock than 403."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return parsedate_to_datetime(headers.get("date", "")).astimezone(UTC)
    except ValueError:
        return None


@contextmanager
def mapped(bucket: str, where: str, key: str = "") -> Generator[None]:
    """Runs S3 calls, and raises our errors instead of botocore's."""
    try:
        yield
    except (
        boto.BotoCoreError,
        boto.ClientError,
        HTTPError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise translate(error, bucket=bucket, where=where, key=key) from error
