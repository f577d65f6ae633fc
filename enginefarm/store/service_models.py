"""Reads botocore's descriptions of services with pydantic's JSON parser.

botocore parses a megabyte of JSON for every client, into OrderedDicts, with Python's own parser: a
third of the time that it takes to open a store. `file_loader` is its own point of extension. Each
process reads the descriptions once, because each step of a build opens the store again.
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
    """Replaces botocore.loaders.JSONFileLoader: files by name, without .json or .json.gz."""

    def exists(self, file_path: str) -> bool:
        # botocore asks this of each of its 400 services.
        return any(os.path.isfile(file_path + ending) for ending in (".json", ".json.gz"))  # noqa: PTH113

    def load_file(self, file_path: str) -> Any:
        """The content of the file; None when it does not exist."""
        plain, packed = Path(f"{file_path}.json"), Path(f"{file_path}.json.gz")
        if plain.is_file():
            return from_json(plain.read_bytes())
        if packed.is_file():
            return from_json(gzip.decompress(packed.read_bytes()))
        return None


def new_session() -> Any:
    """A botocore session with this loader. AWS_DATA_PATH still counts."""
    session: Any = botocore.session.get_session()
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    return session


@cache
def _loader(data_path: str | None) -> Any:
    """A loader that every client of the process can share: clients only read from it."""
    loader: Any = create_loader(data_path)
    loader.file_loader = PydanticFileLoader()
    return loader


def preload() -> None:
    """Imports and reads what clients need, for processes that are forked later. It makes no
    request and starts no thread."""
    with suppress(BotoCoreError):  # opening the store reports a profile that does not exist
        new_session().create_client(
            "s3",
            region_name="us-east-1",
            aws_access_key_id="none",
            aws_secret_access_key="none",  # noqa: S106 - it signs nothing
        )
