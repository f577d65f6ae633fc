"""botocore's descriptions of services, read by pydantic's JSON parser.

botocore parses a megabyte of JSON for every client, into OrderedDicts, by Python's own
parser: a third of what opening a store costs. `file_loader` is its own point of extension.
A process reads them once: each step of a build opens the store anew.
"""

from __future__ import annotations

import gzip
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError
from botocore.loaders import create_loader
from pydantic_core import from_json


class PydanticFileLoader:
    """What botocore.loaders.JSONFileLoader is: files by name, without .json or .json.gz."""

    def exists(self, file_path: str) -> bool:
        # botocore asks this of each of its 400 services.
        return any(os.path.isfile(file_path + ending) for ending in (".json", ".json.gz"))  # noqa: PTH113

    def load_file(self, file_path: str) -> Any:
        """None when there is no such file."""
        plain, packed = Path(f"{file_path}.json"), Path(f"{file_path}.json.gz")
        if plain.is_file():
            return from_json(plain.read_bytes())
        if packed.is_file():
            return from_json(gzip.decompress(packed.read_bytes()))
        return None


def new_session() -> Any:
    """A botocore session that reads its descriptions so. AWS_DATA_PATH still counts."""
    session: Any = botocore.session.get_session()
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    return session


@cache
def _loader(data_path: str | None) -> Any:
    """botocore's loader keeps what it has read, and clients only read it."""
    loader: Any = create_loader(data_path)
    loader.file_loader = PydanticFileLoader()
    return loader


def preload() -> None:
    """Imports and reads what clients need, for processes that are forked later. Nothing is asked
    of a server, and no thread is started."""
    with suppress(BotoCoreError):  # a profile that does not exist: whoever opens the store says so
        new_session().create_client(
            "s3",
            region_name="us-east-1",
            aws_access_key_id="none",
            aws_secret_access_key="none",  # noqa: S106 - it signs nothing
        )
