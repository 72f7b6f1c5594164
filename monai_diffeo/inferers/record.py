"""What happened to each image: a line of the log, and a dictionary in the metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from monai.data import MetaTensor
from torch import Tensor

from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.canonicalize.answers import map_parts
from monai_diffeo.canonicalize.result import REJECTED

__all__ = ["forget", "like_input", "mark", "records_of", "signs_of", "tell"]

Record = Mapping[str, Any]
_KEY = "diffeo"
_log = logging.getLogger("monai_diffeo.inferers.diffeo")


def records_of(found: Canonicalization) -> tuple[Record, ...]:
    """One dictionary of words and numbers for each image; displacements in voxels."""
    columns = {"status": found.status, "notes": found.notes}
    numbers = ("energy_before", "energy_after", "largest_displacement", "agreement")
    columns |= {name: value.tolist() for name in numbers if (value := getattr(found, name)) is not None}
    return tuple(dict(zip(columns, row)) for row in zip(*columns.values()))


def signs_of(searched: Canonicalization, agreement: Tensor | None, likeness: Tensor | None) -> list[dict[str, float]]:
    """The signs of :data:`~monai_diffeo.canonicalize.limits.LIMITED_SIGNS` of each image; NaN for what is not known of one.

    Args:
        searched: as the search moved the images.
        agreement: of the answers from several poses, ``(B,)``, or None.
        likeness: agreement of the answer with that without canonicalisation, ``(B,)``, or None.
    """
    columns = {"energy": searched.energy_after, "energy_low": -searched.energy_after, "energy_before": searched.energy_before}
    columns["folding"] = searched.folding_fraction
    columns["displacement"] = searched.largest_displacement / max(min(searched.ddf.shape[2:]) - 1, 1)
    columns |= {n: 1 - one for n, one in (("disagreement", agreement), ("change", likeness)) if one is not None}
    return [dict(zip(columns, row)) for row in zip(*(column.tolist() for column in columns.values()))]


def tell(records: Sequence[Record], inputs: Tensor, prediction: Any) -> None:
    """Log a line for each image, a warning if it is rejected, and :func:`mark` prediction and images."""
    for i, record in enumerate(records, 1):
        words = [f"DiffeoInferer: image {i} of {len(records)}: {record['status']}"]
        if REJECTED in record["status"]:
            words.append("the plain prediction is given for it")
        words.append(f"energy {record['energy_before']:.4g} to {record['energy_after']:.4g}")
        words.append(f"largest displacement {record['largest_displacement']:.1f} voxels")
        words += [f"agreement {record['agreement']:.3f}"] if "agreement" in record else []
        words += [record["notes"]] if record["notes"] else []
        words += [record["decision"]] if "decision" in record else []
        _log.log(logging.WARNING if REJECTED in record["status"] else logging.INFO, "; ".join(words))
    mark(records, inputs, prediction)


def mark(records: Sequence[Record], inputs: Tensor, prediction: Any) -> None:
    """Write ``meta["diffeo"]`` of the prediction and the images.

    It stands in the images' metadata too, because ``Invertd`` gives their metadata to the prediction. Of a batch each entry is
    a list, which ``decollate_batch`` takes apart.
    """
    if records and isinstance(inputs, MetaTensor):
        alone = len(records) == 1 and not inputs.is_batch
        entry = records[0] if alone else {key: [record[key] for record in records] for key in records[0]}

        def marked(part: Any, *_: Any) -> None:
            if isinstance(part, MetaTensor):
                part.meta = {**part.meta, _KEY: dict(entry)}

        map_parts((inputs, prediction), marked)


def forget(inputs: Any) -> None:
    """Remove what an earlier call wrote into the metadata of the images."""
    if isinstance(inputs, MetaTensor) and _KEY in inputs.meta:
        inputs.meta = {key: value for key, value in inputs.meta.items() if key != _KEY}


def like_input(tensor: Any, inputs: Tensor, kind: type[Tensor] = Tensor) -> Any:
    """The tensor, if it is of a kind, with the metadata of the images, if these have some."""
    if isinstance(inputs, MetaTensor) and isinstance(tensor, kind):
        tensor = MetaTensor(tensor)
        tensor.copy_meta_from(inputs, copy_attr=False)
    return tensor
