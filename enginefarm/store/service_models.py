"""botocore's descriptions of services, read by pydantic's JSON parser.

botocore parses a megabyte of JSON for every client, into OrderedDicts, by Python's own
parser: a third of what opening a store costs. `file_loader` is its own point of extension.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import botocore.session
from botocore.loaders import create_loader
from pydantic_core import from_json


class PydanticFileLoader:
    """What botocore.loaders.JSONFileLoader is: files by name, without .json or .json.gz."""

    def exists(self, file_path: str) -> bool:
        return any(Path(file_path + ending).is_file() for ending in (".json", ".json.gz"))

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
    loader: Any = create_loader(session.get_config_variable("data_path"))
    loader.file_loader = PydanticFileLoader()
    session.register_component("data_loader", loader)
    return session
