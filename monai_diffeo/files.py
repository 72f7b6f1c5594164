"""Files: what identifies one, whether it is the one that its bundle names, and how one is written whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from os import PathLike
from pathlib import Path

from monai_diffeo.errors import OutputError, WeightsError

__all__ = [
    "bundle_of",
    "check_sha256",
    "output_error",
    "printable",
    "record_sha256",
    "remove_unfinished",
    "sha256_below",
    "sha256_of",
    "sha256_or_none",
    "sync_folder",
    "write_atomically",
]

_FULL = "The disk is full. Make room, then run again with --resume true."
_SHUT = "The output folder may not be written to. Check its permissions."
_REASONS = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EFBIG: _FULL, errno.EACCES: _SHUT, errno.EPERM: _SHUT}
_REASONS |= {errno.EROFS: _SHUT, errno.ENAMETOOLONG: "The name of an output would be too long. Give the film a shorter name."}
_REASONS |= {errno.ENOENT: "The output folder, or the report in it, was removed during the run. Run again."}
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.part")


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


def sha256_or_none(path: str | PathLike[str]) -> str | None:
    """SHA-256 of a file, None if it cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return None


def sha256_below(folder: str | PathLike[str]) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path from there; hidden files are left out."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def check_sha256(path: str | PathLike[str]) -> None:
    """Refuse a file that is not the one whose SHA-256 is in the ``configs/metadata.json`` of the bundle that it lies in.

    Of a folder every file is checked. What lies in no bundle, or has no SHA-256 there, is not checked.

    Raises:
        WeightsError: if a file differs, or the metadata cannot be read.
    """
    path = Path(os.path.abspath(path))
    if (bundle := bundle_of(path)) is None:
        return
    for name, expected in _recorded(bundle).items():
        file = bundle / name
        if file.is_relative_to(path) and file.is_file() and (found := sha256_of(file)) != expected:
            remedy = f'python -c "from monai_diffeo.files import record_sha256; record_sha256({str(file)!r})"'
            raise WeightsError(
                f"check_sha256(): {name} must have the SHA-256 {expected} of its bundle's metadata.json, got {found}. The file "
                f"was damaged or changed: copy it again. If you changed it, run: {remedy}"
            )


def record_sha256(path: str | PathLike[str]) -> None:
    """Write the SHA-256 of a file of a bundle's ``models``, or of all files in it, into the bundle's ``configs/metadata.json``.

    Args:
        path: a file or folder in ``models``, or the bundle's folder for all of ``models``. Outside of a bundle nothing is done.
    """
    path = Path(os.path.abspath(path))
    if (bundle := bundle_of(path)) is None:
        return
    hashes = {name: value for name, value in _recorded(bundle).items() if (bundle / name).is_file()}
    if path.is_file():
        hashes[path.relative_to(bundle).as_posix()] = sha256_of(path)
    else:
        below = bundle / "models" if path == bundle else path
        hashes |= {(below / name).relative_to(bundle).as_posix(): value for name, value in sha256_below(below).items()}
    file = bundle / "configs" / "metadata.json"
    section = '"sha256": ' + json.dumps(dict(sorted(hashes.items())), indent=4).replace("\n", "\n    ")
    text, found = re.subn(r'"sha256": *\{[^}]*\}', lambda _: section, file.read_text(encoding="utf-8"))
    write_atomically(file, (text if found else f"{text.rstrip()[:-1].rstrip()},\n    {section}\n}}\n").encode())


def bundle_of(path: Path) -> Path | None:
    """The bundle that a path lies in, or is; None outside of a bundle."""
    return next((folder for folder in (path, *path.parents) if (folder / "configs" / "metadata.json").is_file()), None)


def _recorded(bundle: Path) -> dict[str, str]:
    try:
        return dict(json.loads((bundle / "configs" / "metadata.json").read_bytes()).get("sha256", {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"check_sha256(): cannot read metadata.json in {bundle}: {error}. Copy the file again.") from error


def write_atomically(path: str | PathLike[str], content: bytes, mode: int = 0o666) -> Path:
    """Write a file beside its target, then rename it: a reader sees the old file or the whole new one.

    File and folder are on the disk when this returns. Missing folders are made. Gives the path back.

    Args:
        path, content: of the file.
        mode: permissions, less those that the process's umask takes away.

    Raises:
        OutputError: if it cannot be written; what was there before stays.
    """
    path = Path(path)
    unfinished = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except OSError as error:
        raise output_error(error) from None
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def remove_unfinished(folder: str | PathLike[str]) -> None:
    """Remove what killed processes left of :func:`write_atomically` below a folder that no other process writes into."""
    for path in Path(folder).rglob(".*.part"):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def printable(text: str) -> str:
    r"""A text as letters that can be seen, so that a name is one line and is what it looks like; others are spelt out.

    Example:
        >>> printable("two\nlines"), printable("gpj\u202e.png"), printable("Müller")
        ('two\\nlines', 'gpj\\u202e.png', 'Müller')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def output_error(error: OSError) -> OutputError:
    """The same error in a sentence of ours, without the name of a file."""
    if isinstance(error, OutputError):
        return error
    other = f"An output could not be written ({errno.errorcode.get(error.errno or 0, 'unknown reason')}). Check the disk."
    return OutputError(_REASONS.get(error.errno or 0, other))


def sync_folder(folder: Path) -> None:
    """The names in a folder are on the disk when this returns."""
    if os.name == "nt":  # Windows syncs names by itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
