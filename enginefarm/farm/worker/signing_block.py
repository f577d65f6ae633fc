"""The signing key out of a secret block of the farm's Prefect server."""

from __future__ import annotations

import os
from typing import Any

from prefect.blocks.system import Secret

from enginefarm.errors import FarmError
from enginefarm.store.signing import KEY, KEY_PEM, signer

BLOCK = "ENGINEFARM_SIGNING_KEY_BLOCK"


def signing_key_from_block() -> None:
    """Gives this worker's runs the key that the block holds; a key of the worker's own wins.

    Raises: FarmError when the block is not there, or holds no text; SignatureRejected when
    that is no key.
    """
    name = os.environ.get(BLOCK)
    if not name or os.environ.get(KEY) or os.environ.get(KEY_PEM):
        return
    try:
        block: Any = Secret[str].load(name)
        text: object = block.get()
    except ValueError as error:
        raise FarmError(
            f"worker: {BLOCK} names the block secret/{name}, and the server has none of that name",
            fix="make it in the UI (Blocks, Secret) with the text of the private key's PEM file",
        ) from error
    if not isinstance(text, str):
        raise FarmError(f"worker: the block secret/{name} holds no text", fix="a PEM file's text")
    os.environ[KEY_PEM] = text
    signer()  # refused now, not when the first engine is built
