"""The file that says what a canonicaliser consists of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai_diffeo.files import record_sha256, write_atomically

__all__ = ["read_settings", "write_settings"]

_FILE = "canonicalizer.json"


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of ``canonicalizer.json``."""
    return json.loads((folder / _FILE).read_text())


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``canonicalizer.json``; in a bundle, its SHA-256 goes into the metadata."""
    record_sha256(write_atomically(folder / _FILE, f"{json.dumps(settings, indent=2)}\n".encode()))
