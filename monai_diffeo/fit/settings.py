"""Writing the file that says what a canonicaliser consists of; :mod:`monai_diffeo.canonicalize.folder` reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai_diffeo.files import record_sha256, write_atomically

__all__ = ["write_settings"]


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``canonicalizer.json``; in a bundle, its SHA-256 goes into the metadata."""
    record_sha256(write_atomically(folder / "canonicalizer.json", f"{json.dumps(settings, indent=2)}\n".encode()))
