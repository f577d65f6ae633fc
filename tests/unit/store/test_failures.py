from __future__ import annotations

import errno
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from botocore import exceptions as boto

from enginefarm.errors import (
    DiskFull,
    EnginefarmError,
    StoreConflict,
    StoreDenied,
    StoreError,
    StoreMissing,
    StoreUnavailable,
    UsageError,
)
from enginefarm.store.disk import writing
from enginefarm.store.failures import translate


def answer(status: int, code: str, **headers: str) -> boto.ClientError:
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return boto.ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": metadata},  # type: ignore[typeddict-item]
        "GetObject",
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answer(404, "NoSuchKey"), StoreMissing),
        (answer(404, "NoSuchBucket"), StoreMissing),
        (answer(404, "404"), StoreMissing),
        (answer(403, "AccessDenied"), StoreDenied),
        (answer(403, "403"), StoreDenied),
        (answer(403, "SignatureDoesNotMatch"), StoreDenied),
        (answer(400, "ExpiredToken"), StoreDenied),
        (answer(412, "PreconditionFailed"), StoreConflict),
        (answer(409, "ConditionalRequestConflict"), StoreConflict),
        (answer(500, "InternalError"), StoreUnavailable),
        (answer(503, "SlowDown"), StoreUnavailable),
        (answer(429, "TooManyRequests"), StoreUnavailable),
        (answer(400, "InvalidArgument"), StoreError),
        (boto.NoCredentialsError(), StoreDenied),
        (boto.EndpointConnectionError(endpoint_url="http://x"), StoreUnavailable),
        (boto.ReadTimeoutError(endpoint_url="http://x"), StoreUnavailable),
        (ConnectionResetError(), StoreUnavailable),
    ],
)
def test_each_answer_has_its_error(error: Exception, expected: type[EnginefarmError]) -> None:
    translated = translate(error, bucket="engines", where="http://store", key="a/b")
    assert type(translated) is expected
    assert translated.transient == (expected is StoreUnavailable)


@pytest.mark.parametrize("code", ["RequestTimeTooSkewed", "403"])
@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=-1)])
def test_a_wrong_clock_is_told_as_one_and_not_as_a_wrong_key(code: str, ahead: timedelta) -> None:
    """An answer to HEAD has no body, and so no code of its own."""
    server = datetime.now(UTC) + ahead
    error = answer(403, code, date=format_datetime(server, True))
    said = translate(error, bucket="engines", where="http://store")
    assert isinstance(said, StoreDenied)
    assert "clock is wrong" in said.what
    assert f"{server:%Y-%m-%d %H:%M:%S}" in said.why
    assert "KEY" not in said.fix


def test_a_wrong_key_is_not_told_as_a_wrong_clock() -> None:
    now = format_datetime(datetime.now(UTC) - timedelta(minutes=5), True)
    error = answer(403, "403", date=now)
    assert "KEY" in translate(error, bucket="engines", where="http://store").fix


def test_a_missing_bucket_is_named_with_the_command_that_makes_it() -> None:
    translated = translate(answer(404, "NoSuchBucket"), bucket="engines", where="http://store")
    assert "'engines'" in translated.what
    assert "aws s3 mb s3://engines" in translated.fix


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_is_disk_full(code: int) -> None:
    with pytest.raises(DiskFull, match=r"/models/x\.plan"), writing(Path("/models/x.plan")):
        raise OSError(code, "no room")


def test_another_disk_error_is_not_disguised() -> None:
    with pytest.raises(OSError, match="no"), writing(Path("/models/x.plan")):
        raise OSError(errno.EIO, "no")


def test_a_place_that_may_not_be_written_is_the_users_mistake() -> None:
    with pytest.raises(UsageError, match=r"/models/x\.plan"), writing(Path("/models/x.plan")):
        raise PermissionError(errno.EACCES, "no")
