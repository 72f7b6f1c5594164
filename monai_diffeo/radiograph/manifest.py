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


def _ids(given: str | Path | Iterable[str]) -> list[str]:
    return Path(given).read_text().split() if isinstance(given, str | Path) else list(given)


def read_manifest(
    dataset_dir: str | Path,
    split: str | None = None,
    sources: str | Iterable[str] | None = None,
    manifest: str = "manifest.csv",
    limit: int | None = None,
    ids: str | Path | Iterable[str] | None = None,
    without: str | Path | Iterable[str] = (),
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
        ids: keep only these, in their order: ids, or a text file of them, one a line. None keeps all.
        without: leave these out, ids or a file too.

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
    left_out, chosen = set(_ids(without)), None if ids is None else _ids(ids)
    by_id = ["id"] if left_out or chosen is not None else []
    missing = {"image", *(["split"] if split else []), *(["source"] if sources else []), *by_id} - columns
    if missing:
        raise ValueError(f"read_manifest(): {manifest} lacks the columns {sorted(missing)}; it has {sorted(columns)}.")
    kept = [r for r in rows if (split is None or r["split"] == split) and (wanted is None or r["source"] in wanted)]
    if by_id:
        known = {row["id"]: row for row in kept if row["id"] not in left_out}
        if absent := [name for name in chosen or () if name not in known]:
            lacking = f"lacks {len(absent)} of {len(chosen or ())} ids, first {absent[0]!r}"
            raise ValueError(f"read_manifest(): {manifest} {lacking}. Check split and sources.")
        kept = list(known.values()) if chosen is None else [known[name] for name in chosen]
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
