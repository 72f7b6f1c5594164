"""A canonicaliser of 2D images for each slice of volumes, around MONAI's ``SliceInferer``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from monai.inferers import Inferer, SliceInferer
from torch import Tensor

from monai_diffeo.canonicalize.answers import map_parts
from monai_diffeo.canonicalize.result import REJECTED
from monai_diffeo.inferers.record import Record, like_input

__all__ = ["OneSliceInferer", "VolumeSlices", "is_slicewise"]


def is_slicewise(inferer: Any, inputs: Tensor, canonicalizer: Any) -> bool:
    """Whether volumes ``(B, C, H, W, D)`` meet a ``SliceInferer`` and a canonicaliser of 2D images."""
    dims = getattr(getattr(canonicalizer, "family", None), "spatial_dims", None)
    return isinstance(inferer, SliceInferer) and inputs.ndim == 5 and dims == 2


class OneSliceInferer(Inferer):
    """A ``SliceInferer`` that is asked about slices ``(B, C, H, W)``, whole, before it cuts windows."""

    def __init__(self, inferer: SliceInferer) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What it gives for the only slices of volumes."""
        axis = self.inferer.spatial_dim + 2
        kwargs = {key: part.unsqueeze(axis) if _is_image(part) else part for key, part in kwargs.items()}
        own = copy.copy(self.inferer)  # MONAI writes roi_size into it at each call
        answer = own(inputs.unsqueeze(axis), network, *args, **kwargs)
        return map_parts(answer, lambda part, *_: part.squeeze(axis))


class VolumeSlices:
    """The slices of volumes as batches of images, and volumes from what is said about the slices.

    Args:
        inferer: says along which axis, and how many slices make a batch.
        volumes: shape ``(B, C, H, W, D)``.
    """

    def __init__(self, inferer: SliceInferer, volumes: Tensor) -> None:
        self.axis, self.step, self.volumes = inferer.spatial_dim + 2, inferer.sw_batch_size, volumes
        self.batch, self.count = len(volumes), volumes.shape[self.axis]

    def split(self, kwargs: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
        """Batches of slices, each with its part of the keyword arguments that are volumes of this size."""
        frame = self.volumes.shape[2:]
        named = {k: self._slices(v) for k, v in kwargs.items() if isinstance(v, Tensor) and v.shape[2:] == frame}
        parts = enumerate(self._slices(self.volumes))
        return [(part, {**kwargs, **{k: slices[i] for k, slices in named.items()}}) for i, part in parts]

    def join(self, answer: Any) -> Any:
        """An answer about the slices, ``(B * D, K, H, W)``, as one about the volumes."""
        return map_parts(answer, lambda part, *_: self._volume(part) if _is_image(part) else part)

    def summaries(self, records: Sequence[Record]) -> tuple[Record, ...]:
        """One record a volume: means of its slices' numbers, the largest displacement, and how many slices were moved."""
        return tuple(_summary(records[i * self.count : (i + 1) * self.count]) for i in range(self.batch))

    def _slices(self, volumes: Tensor) -> tuple[Tensor, ...]:
        plain = volumes.as_tensor() if hasattr(volumes, "as_tensor") else volumes
        return plain.movedim(self.axis, 1).flatten(0, 1).split(self.step)

    def _volume(self, slices: Tensor) -> Tensor:
        return like_input(slices.unflatten(0, (self.batch, self.count)).movedim(1, self.axis), self.volumes)


def _is_image(part: Any) -> bool:
    return isinstance(part, Tensor) and part.ndim == 4


def _summary(slices: Sequence[Record]) -> Record:
    record = {k: v if isinstance(v, str) else sum(s[k] for s in slices) / len(slices) for k, v in slices[0].items()}
    kinds = [s["status"] for s in slices]
    if len(set(kinds)) > 1:
        words = [f"{kinds.count(kind)} slices {kind}" for kind in dict.fromkeys(kinds)]
        record["status"] = "; ".join(sorted(words, key=lambda word: REJECTED in word))
    record["notes"] = "; ".join(dict.fromkeys(s["notes"] for s in slices if s["notes"]))
    return {**record, "largest_displacement": max(s["largest_displacement"] for s in slices)}
