"""Files: what identifies one, and how one is written whole."""

from __future__ import annotations

import hashlib
import os
import uuid
from os import PathLike
from pathlib import Path

__all__ = ["sha256_of", "write_atomically"]


def sha256_of(path: str | PathLike[str]) -> str:
    """SHA-256 of a file in hexadecimal, read piece by piece.

    Raises:
        OSError: if the file cannot be read, or is a pipe or a device, which may never end.
    """
    if not os.path.isfile(path):
        raise OSError("sha256_of(): expected an existing regular file. Check the path.")
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: str | PathLike[str], content: bytes) -> Path:
    """Write a file beside its target, then rename it: a reader sees the old file or the whole new one.

    Missing folders are made. Gives the path back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
