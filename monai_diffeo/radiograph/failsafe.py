"""A dataset in which one bad file never stops the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.data import Dataset

from monai_diffeo.errors import FilmError
from monai_diffeo.files import sha256_or_none

__all__ = ["FAILURE", "FailSafeDataset", "collate_one", "root_cause"]

FAILURE = "failure"


def root_cause(error: BaseException) -> BaseException:
    """The first film error in a chain of ``raise ... from ...``, else the error that began it; MONAI wraps errors."""
    chain = [error]
    while chain[-1].__cause__ is not None and chain[-1].__cause__ not in chain:
        chain.append(chain[-1].__cause__)
    return next((e for e in chain if isinstance(e, FilmError)), chain[-1])


class FailSafeDataset(Dataset):
    """As ``monai.data.Dataset``, but an item whose transform fails is given as ``{path_key: path, "failure": error}``.

    Items are dictionaries with a path under ``path_key``; ``"path"`` and ``"sha256"`` of the file are added. Load with
    ``batch_size=1``, and look for the key ``"failure"`` before anything else.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Callable, path_key: str = "image") -> None:
        super().__init__(data, transform)
        self.path_key = path_key

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = str(self.data[index][self.path_key])
        try:
            sha256 = sha256_or_none(path)  # before: who hashes it again sees if it changed meanwhile
            return {**super().__getitem__(index), "path": path, "sha256": sha256 or ""}
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever a reader meets, the next film must be read; a panic of Rust is no Exception
            return {"path": path, FAILURE: root_cause(error)}


def collate_one(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate a batch of one; a failure passes as it is."""
    from monai.data import list_data_collate

    return batch[0] if FAILURE in batch[0] else list_data_collate(batch)
