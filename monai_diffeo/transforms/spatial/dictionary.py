"""The spatial transforms on dictionaries: one deformation for all keys."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import InvertibleTransform, MapTransform, RandomizableTransform
from monai.utils import ensure_tuple_rep
from torch import Tensor

from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.families import Family
from monai_diffeo.transforms.spatial import array
from monai_diffeo.transforms.spatial.array import MODES, PADDING_MODES, Canonicalize, RandDiffeomorphism

__all__ = ["CanonicalizeD", "CanonicalizeDict", "Canonicalized"]
__all__ += ["RandDiffeomorphismD", "RandDiffeomorphismDict", "RandDiffeomorphismd"]


class RandDiffeomorphismd(RandomizableTransform, MapTransform, InvertibleTransform):
    """Dictionary version of :class:`RandDiffeomorphism`: the same random diffeomorphism for all keys.

    The field is drawn on the frame of the first key that is there. A key with another number of voxels is taken to
    cover the same frame, corners on corners. Invert with MONAI's ``Invertd``, ``nearest_interp=False`` for probabilities.

    Args:
        keys: keys of images and label maps, each ``(C, *S)``.
        kind, prob, amplitude, sigma, strength, angle, jitter, scale, num_steps, downsample, spread: as the array version.
        mode, padding_mode: as the array version, one for all keys or one a key.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        ValueError: as :class:`RandDiffeomorphism`, and if there are not as many modes as keys.

    Example::

        RandDiffeomorphismd(keys=("image", "label"), prob=0.5, mode=("bilinear", "nearest"))
    """

    backend = RandDiffeomorphism.backend

    def __init__(
        self,
        keys: KeysCollection,
        kind: str | Family = "svf",
        prob: float = 0.1,
        amplitude: float | Sequence[float] = (0.02, 0.08),
        sigma: float | Sequence[float] = (0.06, 0.1),
        strength: float | Sequence[float] = 1.0,
        angle: float = 30.0,
        jitter: float = 0.12,
        scale: float = 0.9,
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "border",
        num_steps: int = 7,
        downsample: int = 1,
        allow_missing_keys: bool = False,
        spread: float | Sequence[float] = 0.1,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.mode = _one_a_key("RandDiffeomorphismd", "mode", mode, MODES, self.keys)
        self.padding_mode = _one_a_key("RandDiffeomorphismd", "padding_mode", padding_mode, PADDING_MODES, self.keys)
        self.deformation = RandDiffeomorphism(
            kind, prob, amplitude, sigma, strength, angle, jitter, scale, "bilinear", "border", num_steps, downsample, spread
        )

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandDiffeomorphismd:
        """Seed this transform and the deformation inside."""
        self.deformation.set_random_state(seed, state)
        super().set_random_state(seed, state)
        return self

    def randomize(self, data: Any = None) -> None:
        """Draw whether to deform, and how. ``data`` is not looked at."""
        self.deformation.randomize()
        self._do_transform = self.deformation._do_transform

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Warp all keys alike.

        Raises:
            KeyError: if a key is missing and may not.
            ShapeError: if an image has another number of axes, or an axis of one voxel.
        """
        d = dict(data)
        self.randomize()
        record, fields = None, {}
        for key, mode, padding_mode in self.key_iterator(d, self.mode, self.padding_mode):
            size = tuple(d[key].shape[1:])
            if record is None:
                dims = len(size)
                record, fields[size] = self.deformation.field(size)
            if self._do_transform and size not in fields:
                array._check_fits("RandDiffeomorphismd", d[key], dims)
                fields[size] = array._flow(record, size, family=self.deformation.family)
            out = array._deform(d[key], fields.get(size), mode, padding_mode)
            d[key] = self.push_transform(out, extra_info=array._with_sampling(record, mode, padding_mode))
        return d

    def inverse(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Undo the last deformation of every key."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = array._unpadded(d[key])
            d[key] = array._undo_random(d[key], self.pop_transform(d[key]), self.deformation.family)
        return d


class Canonicalized(MapTransform, InvertibleTransform):
    """Dictionary version of :class:`Canonicalize`: find the canonical pose on one key and bring all keys there.

    As there, never use it together with ``DiffeoInferer``. A key with another number of voxels than the source is taken to
    cover the same frame, corners on corners. Every key's metadata say under ``"canonicalization"`` how it went.

    Args:
        keys: keys to warp, each ``(C, *S)``.
        canonicalizer: images ``(B, C, *S)`` to a :class:`Canonicalization`, for example a ``Canonicalizer``.
        source_key: key of the image on which the deformation is found, by default the first of ``keys``; it must be
            there, and is itself warped only if it is one of ``keys``.
        mode, padding_mode: as for :class:`RandDiffeomorphism`, one for all keys or one a key.
        allow_missing_keys: do not raise if a key other than ``source_key`` is missing.

    Raises:
        ValueError: for an unknown ``mode`` or ``padding_mode``, or if there are not as many as keys.

    Example::

        preprocessing = Compose([..., Canonicalized(("image", "label"), canonicalizer, mode=("bilinear", "nearest"))])
        postprocessing = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)
    """

    backend = Canonicalize.backend

    def __init__(
        self,
        keys: KeysCollection,
        canonicalizer: Callable[[Tensor], Canonicalization],
        source_key: Hashable | None = None,
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "border",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.canonicalize = Canonicalize(canonicalizer)
        self.source_key = self.keys[0] if source_key is None else source_key
        self.mode = _one_a_key("Canonicalized", "mode", mode, MODES, self.keys)
        self.padding_mode = _one_a_key("Canonicalized", "padding_mode", padding_mode, PADDING_MODES, self.keys)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Warp all keys to the canonical pose of the source.

        Raises:
            KeyError: if the source is missing, or another key that may not.
            ShapeError: if an image does not have the canonicaliser's number of axes.
        """
        d = dict(data)
        if self.source_key not in d:
            named = f"'{self.source_key}', which is not among the keys {sorted(map(str, d))}"
            raise KeyError(f"Canonicalized: the deformation is found on {named}. Set 'source_key'.")
        result = self.canonicalize.find(d[self.source_key])
        record = self.canonicalize.record(result)
        for key, mode, padding_mode in self.key_iterator(d, self.mode, self.padding_mode):
            out = array._follow(d[key], result, mode, padding_mode)
            d[key] = self.push_transform(out, extra_info=array._with_sampling(record, mode, padding_mode))
        return d

    def inverse(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Bring every key back to the input."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = array._unpadded(d[key])
            d[key] = array._undo_canonicalization(d[key], self.pop_transform(d[key]))
        return d


def _one_a_key(who: str, argument: str, value, choices: tuple[str, ...], keys: tuple) -> tuple[str, ...]:
    return tuple(array._one_of(who, argument, item, choices) for item in ensure_tuple_rep(value, len(keys)))


RandDiffeomorphismD = RandDiffeomorphismDict = RandDiffeomorphismd
CanonicalizeD = CanonicalizeDict = Canonicalized
