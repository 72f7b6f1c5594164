"""Names for films whose own names may hold a patient's name: from the content of the file, and from nothing else."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

from monai_diffeo.files import sha256_of, write_atomically

__all__ = ["PSEUDONYMS_NAME", "is_pseudonym_table", "pseudonyms", "write_pseudonyms"]

PSEUDONYMS_NAME = "pseudonyms.csv"
_HEADER = ("pseudonym", "input")
_DIGITS = 16


def pseudonyms(films: Iterable[str | PathLike[str]]) -> dict[str, str]:
    """Film to pseudonym: the first 16 digits of the SHA-256 of its content.

    Further films of the same content get ``-2``, ``-3`` in the order that is given. A film that cannot be read is
    ``unreadable``, the next one ``unreadable-2``. Each film is read once.
    """
    names, times = dict[str, str](), Counter[str]()
    for film in films:
        try:
            name = sha256_of(film)[:_DIGITS]
        except OSError:
            name = "unreadable"
        times[name] += 1
        names[str(film)] = name if times[name] == 1 else f"{name}-{times[name]}"
    return names


def write_pseudonyms(path: str | PathLike[str], inputs: Mapping[str, str]) -> Path:
    """Write the table of pseudonyms, a CSV file that its owner alone may read, whole or not at all.

    Args:
        path: of the table.
        inputs: name of each film by its pseudonym.

    Raises:
        OutputError: if it cannot be written.
    """
    table = io.StringIO(newline="")
    csv.writer(table).writerows([_HEADER, *inputs.items()])
    return write_atomically(path, table.getvalue().encode("utf-8", "surrogateescape"), mode=0o600)


def is_pseudonym_table(path: str | PathLike[str]) -> bool:
    """Whether a file is one that :func:`write_pseudonyms` wrote."""
    try:
        with open(path, "rb") as file:
            return file.readline().rstrip() == ",".join(_HEADER).encode()
    except OSError:
        return False
