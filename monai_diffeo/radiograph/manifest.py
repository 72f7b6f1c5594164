"""Lists of films from a manifest: one row a film, any extra columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

__all__ = ["read_manifest", "spread_rows"]


def spread_rows(total: int, count: int | None) -> list[int]:
    """``count`` row numbers evenly spaced from the first to the last of ``total``; all if None or too many.

    Lists come sorted by finding or by class: their first rows are no sample of them.
    """
    if count is None or count >= total:
        return list(range(total))
    return [round(i * (total - 1) / max(count - 1, 1)) for i in range(count)]


def read_manifest(
    dataset_dir: str | Path,
    split: str | None = None,
    sources: str | Iterable[str] | None = None,
    manifest: str = "manifest.csv",
    limit: int | None = None,
) -> list[dict[str, str]]:
    """Rows of a manifest as MONAI datalist items, in the manifest's order.

    Columns: ``image`` (path below ``dataset_dir``) is needed; ``mask`` becomes ``label``; ``split``, ``source`` and ``id`` are
    used where they are asked for; every column is kept.

    Args:
        dataset_dir: folder of the manifest.
        split: keep rows of this split; None keeps all.
        sources: keep rows of this source or these; None or ``"any"`` keeps all.
        manifest: file name below ``dataset_dir``.
        limit: keep so many rows, evenly spaced over the list.

    Raises:
        FileNotFoundError: if there is no manifest.
        ValueError: if a column is missing or no row is left.
    """
    root = Path(dataset_dir)
    if isinstance(sources, str):
        sources = None if sources.lower() == "any" else [sources]
    wanted = None if sources is None else set(sources)
    if not (root / manifest).is_file():
        raise FileNotFoundError(
            f"read_manifest(): expected {manifest} in {root}. Write one with a column 'image' "
            "(and 'mask', 'split', 'source'), or name another folder with --dataset_dir."
        )
    with open(root / manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0] if rows else ())
    missing = {"image", *(["split"] if split else []), *(["source"] if sources else [])} - columns
    if missing:
        raise ValueError(f"read_manifest(): {manifest} lacks the columns {sorted(missing)}; it has {sorted(columns)}.")
    kept = [r for r in rows if (split is None or r["split"] == split) and (wanted is None or r["source"] in wanted)]
    if not kept:
        named = f"split {split!r} and sources {sorted(wanted) if wanted else 'any'}"
        remedy = " Train without validation: --val_interval 0." if split == "val" else ""
        raise ValueError(f"read_manifest(): no film of {named} in {manifest}.{remedy}")
    items = []
    for row in (kept[i] for i in spread_rows(len(kept), limit)):
        item = dict(row, image=str(root / row["image"]))
        if row.get("mask"):
            item["label"] = str(root / row["mask"])
        items.append(item)
    return items
