"""Spatial transforms of one image: random diffeomorphisms for training, canonicalisation for inference. Both invert."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, PadListDataCollate, RandomizableTransform, SpatialCrop
from monai.utils import TraceKeys, TransformBackends, convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_diffeo.augmentation.deformations import random_svf, tps_protocol
from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.canonicalize.result import resize_ddf
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import Family
from monai_diffeo.flow import Deformation, exp, folding_fraction, invert, warp

__all__ = ["Canonicalize", "RandDiffeomorphism"]

MODES = ("bilinear", "nearest")
PADDING_MODES = ("border", "zeros", "reflection")
META_KEY = "canonicalization"


class RandDiffeomorphism(RandomizableTransform, InvertibleTransform):
    """Warp an image by a random diffeomorphism that can be undone.

    ``kind="svf"`` draws a smooth stationary velocity that vanishes at the frame, in 2D or 3D; its inverse is the flow
    of the negative velocity. ``kind="tps"`` draws the thin-plate spline of the DiffeoNN test protocol, in 2D: a
    scaling, a rotation and jittered control points; it is inverted numerically, and what it moves out of the frame
    cannot come back. A :class:`Family`, ``kind=CPAB((4, 4))`` say, draws parameters by its ``sample`` and inverts as the
    family does. A deformation that folds anywhere is halved until it does not.

    What was drawn is recorded in ``applied_operations`` of a ``MetaTensor``, from which alone :meth:`inverse` works,
    so that ``Invertd`` after a ``DataLoader`` does too. The frame and the affine stay as they are. The transform is
    not lazy.

    Args:
        kind: ``"svf"``, ``"tps"``, or a family of deformations.
        prob: probability of a deformation.
        amplitude: largest speed of the velocity, as share of the shortest side; a number, or a range to draw from.
        sigma: width of its smoothing, as share of the shortest side; a number, or a range to draw from.
        strength: factor on the spline's displacement; a number or a range. The published implementation applies 0.5.
        angle: largest rotation of the spline, degrees.
        jitter: largest shift of its control points, as share of the frame.
        scale: its factor on the control points.
        spread: how far a family's parameters are drawn from the identity, see its ``sample``; a number or a range.
        mode: ``"bilinear"`` for images and probabilities, ``"nearest"`` for label maps; also used by the inverse.
        padding_mode: what lies outside the frame: ``"border"``, ``"zeros"`` or ``"reflection"``.
        num_steps: squarings of the exponential, for ``"svf"``.
        downsample: draw and record the field on a grid this many times coarser. A full record takes 4 D bytes a voxel.

    Raises:
        ValueError: for an unknown ``kind``, ``mode`` or ``padding_mode``, or a range, ``num_steps`` or ``downsample``
            that makes no sense.

    Example:
        >>> transform = RandDiffeomorphism(prob=1.0).set_random_state(seed=0)
        >>> moved = transform(torch.rand(1, 32, 32))
        >>> transform.inverse(moved).shape
        torch.Size([1, 32, 32])
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        kind: str | Family = "svf",
        prob: float = 0.1,
        amplitude: float | Sequence[float] = (0.02, 0.08),
        sigma: float | Sequence[float] = (0.06, 0.1),
        strength: float | Sequence[float] = 1.0,
        angle: float = 30.0,
        jitter: float = 0.12,
        scale: float = 0.9,
        mode: str = "bilinear",
        padding_mode: str = "border",
        num_steps: int = 7,
        downsample: int = 1,
        spread: float | Sequence[float] = 0.1,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        self.kind = kind if isinstance(kind, Family) else _one_of("RandDiffeomorphism", "kind", kind, ("svf", "tps"))
        self.amplitude, self.sigma = _range("amplitude", amplitude), _range("sigma", sigma)
        self.strength, self.spread = _range("strength", strength), _range("spread", spread)
        if self.sigma[0] <= 0:
            raise ValueError(f"RandDiffeomorphism: 'sigma' must be larger than 0, got {sigma}.")
        if num_steps < 0 or downsample < 1:
            came = f"got {num_steps} and {downsample}"
            raise ValueError(f"RandDiffeomorphism: 'num_steps' must be at least 0 and 'downsample' at least 1, {came}.")
        self.angle, self.jitter, self.scale = angle, jitter, scale
        self.mode = _one_of("RandDiffeomorphism", "mode", mode, MODES)
        self.padding_mode = _one_of("RandDiffeomorphism", "padding_mode", padding_mode, PADDING_MODES)
        self.num_steps, self.downsample = num_steps, downsample
        self._drawn: dict[str, Any] = {}

    def randomize(self, data: Any = None) -> None:
        """Draw whether to deform, and how; all randomness comes from ``self.R``. ``data`` is not looked at."""
        super().randomize(None)
        self._drawn = {}
        if self._do_transform:
            self._drawn["seed"] = int(self.R.randint(2**31 - 1))
            ranged = ["amplitude", "sigma", "strength", *(["spread"] if isinstance(self.kind, Family) else [])]
            self._drawn |= {name: float(self.R.uniform(*getattr(self, name))) for name in ranged}

    def field(self, spatial_size: Sequence[int]) -> tuple[dict[str, Any], Tensor | None]:
        """The deformation that :meth:`randomize` drew, on a frame.

        Args:
            spatial_size: S, at least 2 voxels along every axis.

        Returns:
            What :meth:`inverse` needs, and the displacement ``(D, *S)``, voxels. Without a deformation the first has
            the same keys with an empty field, and the second is None.

        Raises:
            ShapeError: if the frame is not one that ``kind`` can deform.
        """
        size = tuple(int(n) for n in spatial_size)
        family = self.family
        dims = {"svf": (2, 3), "tps": (2,)}[str(self.kind)] if family is None else (family.spatial_dims,)
        if len(size) not in dims or min(size) < 2:
            named = " or ".join(f"(C, {', '.join('HWD'[:d])})" for d in dims) + " with at least 2 voxels along every axis"
            remedy = "Add the channel axis, squeeze axes of one voxel, or use kind='svf' for volumes."
            raise ShapeError("RandDiffeomorphism", "img", named, ("C", *size), remedy)
        name = "theta" if family is not None else "velocity" if self.kind == "svf" else "displacement"
        record: dict[str, Any] = {name: torch.empty(0), "num_steps": self.num_steps}
        if not self._drawn:
            return record, None
        record[name] = self._sample_field(size)
        for _ in range(10):
            ddf = _flow(record, size, family=family)
            if not bool(folding_fraction(ddf[None])):
                return record, ddf
            half = torch.full((1,), 0.5)
            record[name] = record[name] / 2 if family is None else family.scaled(record[name][None], half)[0]
        record[name] = torch.zeros_like(record[name]) if family is None else family.identity(1)[0]
        return record, _flow(record, size, family=family)

    @property
    def family(self) -> Family | None:
        """The family that ``kind`` is, or None."""
        return self.kind if isinstance(self.kind, Family) else None

    def _sample_field(self, size: tuple[int, ...]) -> Tensor:
        """Velocity or displacement ``(D, *S')`` on the grid that is recorded, in its own voxels; parameters of a family."""
        drawn = self._drawn
        coarse = tuple(max((n - 1) // self.downsample, 1) + 1 for n in size)
        generator = torch.Generator().manual_seed(drawn["seed"])
        if self.family is not None:
            return self.family.sample(1, drawn["spread"], generator)[0]
        if self.kind == "tps":
            settings = {"strength": drawn["strength"], "angle": self.angle, "jitter": self.jitter, "scale": self.scale}
            return tps_protocol(1, coarse, generator, **settings, fold_free=True)[0]
        field = random_svf(1, coarse, generator, amplitude=1.0, sigma=drawn["sigma"])[0]
        stretch = torch.tensor([(n - 1) / (m - 1) for n, m in zip(size, coarse)]).view(-1, *[1] * len(size))
        largest = torch.linalg.vector_norm(field * stretch, dim=0).amax().clamp(min=1e-12)
        return field * (drawn["amplitude"] * min(size) / largest)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> Tensor:
        """Warp one image.

        Args:
            img: shape ``(C, *S)``, any real dtype; the result has the same, a ``MetaTensor`` unless metadata are not tracked.
            randomize: whether to draw anew.

        Raises:
            ShapeError: if ``img`` has another number of axes, or an axis of one voxel.
        """
        if randomize:
            self.randomize()
        record, ddf = self.field(img.shape[1:])
        out = _deform(img, ddf, self.mode, self.padding_mode)
        return self.push_transform(out, extra_info=_with_sampling(record, self.mode, self.padding_mode))

    def inverse(self, data: Tensor) -> Tensor:
        """Undo the last deformation of a ``MetaTensor``, for any number of channels."""
        data = _unpadded(data)
        return _undo_random(data, self.pop_transform(data), self.family)


class Canonicalize(InvertibleTransform):
    """Move an image to its canonical pose, as preprocessing; ``inverse`` moves the prediction back.

    Use *either* this transform with ``Invertd`` after the network, *or* ``DiffeoInferer`` around the network, never
    both: the inferer's predictions already lie on the input, and a second way back would warp them away from it.

    The map back is recorded in ``applied_operations``, detached and on the CPU, and the inverse is built from it
    alone. An image that is left alone or rejected comes out bit for bit; ``meta["canonicalization"]`` says so, with
    the ``status``, ``energy_before``, ``energy_after``, ``folding_fraction``, ``inverse_error`` (voxels),
    ``largest_displacement`` (voxels) and ``seconds`` as plain strings and floats. The affine stays as it is, and so does
    the frame, but for an oblong image that is rotated back. The transform is deterministic (a ``CacheDataset`` runs it
    once an image) and not lazy. In ``DataLoader`` workers keep the canonicaliser on the CPU.

    ``Invertd`` samples to the nearest voxel unless told otherwise: give it probabilities and ``nearest_interp=False``,
    and take the argmax afterwards. It passes over predictions that are plain tensors, with no more than a warning: hand
    it a ``MetaTensor``, which is what a network answers for one.

    Args:
        canonicalizer: images ``(B, C, *S)`` to a :class:`Canonicalization`, for example a ``Canonicalizer``.
        mode, padding_mode: as for :class:`RandDiffeomorphism`.

    Raises:
        ValueError: for an unknown ``mode`` or ``padding_mode``.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self, canonicalizer: Callable[[Tensor], Canonicalization], mode: str = "bilinear", padding_mode: str = "border"
    ) -> None:
        super().__init__()
        self.canonicalizer = canonicalizer
        self.mode = _one_of("Canonicalize", "mode", mode, MODES)
        self.padding_mode = _one_of("Canonicalize", "padding_mode", padding_mode, PADDING_MODES)

    def find(self, img: NdarrayOrTensor) -> Canonicalization:
        """The canonicalisation of one image ``(C, *S)``, as a batch of one."""
        return self.canonicalizer(convert_to_tensor(img, track_meta=False)[None])

    def record(self, result: Canonicalization) -> dict[str, Any]:
        """What :meth:`inverse` needs to know of a batch of one."""
        return {
            "matrix": result.inverse.matrix[0].detach().cpu(),
            "residual": result.inverse.residual[0].detach().cpu(),
            "moved": bool(result.moved[0]),
            "status": result.status[0],
            "spatial_size": [int(n) for n in result.inverse_ddf.shape[2:]],
            "canonical_size": [int(n) for n in result.ddf.shape[2:]],
        }

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """Canonicalise one image ``(C, *S)``; same shape and dtype, a ``MetaTensor`` unless metadata are not tracked.

        Raises:
            ShapeError: if ``img`` does not have the canonicaliser's number of axes.
        """
        result = self.find(img)
        out = _follow(img, result, self.mode, self.padding_mode)
        return self.push_transform(out, extra_info=_with_sampling(self.record(result), self.mode, self.padding_mode))

    def inverse(self, data: Tensor) -> Tensor:
        """Bring a ``MetaTensor`` ``(K, *S')`` on the canonical image back to the input, any number of channels."""
        data = _unpadded(data)
        return _undo_canonicalization(data, self.pop_transform(data))


def _one_of(who: str, argument: str, value: str, choices: tuple[str, ...]) -> str:
    if str(value) not in choices:
        raise ValueError(f"{who}: '{argument}' must be one of {', '.join(choices)}, got {value!r}.")
    return str(value)


def _range(argument: str, value: float | Sequence[float]) -> tuple[float, float]:
    low, high = value if isinstance(value, Sequence) else (value, value)
    if not 0 <= low <= high < float("inf"):
        expected = "a number or a range (low, high), none below 0"
        raise ValueError(f"RandDiffeomorphism: '{argument}' must be {expected}, got {value}.")
    return float(low), float(high)


def _deform(img: NdarrayOrTensor, ddf: Tensor | None, mode: str, padding_mode: str) -> Tensor:
    """The values of ``img`` pulled back along ``ddf`` ``(D, *S)``, with its dtype and metadata; None moves nothing."""
    values = convert_to_tensor(img, track_meta=False)
    if ddf is not None:
        # float32 does not hold every int32
        exact = values.double() if not values.is_floating_point() and values.element_size() > 2 else values
        moved = warp(exact[None], ddf[None].to(values.device), mode, padding_mode, centered=True)[0]
        values = moved if exact is values else moved.round().to(values.dtype)
    like = img if isinstance(img, MetaTensor) else convert_to_tensor(values, track_meta=get_track_meta())
    if not (isinstance(like, MetaTensor) and get_track_meta()):
        return values
    return convert_to_dst_type(values, like, dtype=values.dtype)[0]


def _with_sampling(record: Mapping[str, Any], mode: str, padding_mode: str) -> dict[str, Any]:
    """The record of one key; ``Invertd`` finds ``mode`` and ``align_corners`` at this level and may rewrite them."""
    return {**record, "mode": mode, "padding_mode": padding_mode, "align_corners": TraceKeys.NONE}


def _flow(
    record: Mapping[str, Any], spatial_size: Sequence[int], inverse: bool = False, device="cpu", family: Family | None = None
) -> Tensor:
    """Displacement ``(D, *S)`` of what :class:`RandDiffeomorphism` recorded, on any size of the same frame."""
    if family is not None:
        deform = family.inverse if inverse else family
        with torch.no_grad():
            return deform(record["theta"].to(device)[None], tuple(spatial_size)).ddf(spatial_size)[0]
    field = record["velocity"] if "velocity" in record else record["displacement"]
    field = resize_ddf(field.to(device)[None], tuple(spatial_size))
    if "velocity" in record:
        return exp(-field if inverse else field, record["num_steps"])[0]
    return (invert(field) if inverse else field)[0]


def _check_fits(who: str, data: NdarrayOrTensor, dims: int) -> None:
    if data.ndim != dims + 1:
        raise ShapeError(who, "data", f"(C, {', '.join('HWD'[:dims])}) as the image that was moved", data.shape)


def _unpadded(data: Tensor) -> Tensor:
    """``data`` without what ``pad_list_data_collate`` put around it after the transform; no other inverse takes that away."""
    applied = data.applied_operations if isinstance(data, MetaTensor) else []
    if not applied or applied[-1].get(TraceKeys.CLASS_NAME) != PadListDataCollate.__name__:
        return data
    record = applied.pop()
    size, widths = record[TraceKeys.ORIG_SIZE], record[TraceKeys.EXTRA_INFO][TraceKeys.EXTRA_INFO]["padded"][1:]
    padded = tuple(int(n + low + high) for n, (low, high) in zip(size, widths))
    if tuple(data.shape[1:]) != padded:
        remedy = "Bring the prediction to the size that pad_list_data_collate gave the image."
        raise ShapeError("inverse()", "data", f"(K, {', '.join(map(str, padded))})", data.shape, remedy)
    crop = SpatialCrop(roi_slices=[slice(int(low), int(low + n)) for n, (low, _) in zip(size, widths)])
    with crop.trace_transform(False):
        return crop(data)


def _undo_random(data: Tensor, applied: Mapping[str, Any], family: Family | None = None) -> Tensor:
    """``data`` moved back by what :class:`RandDiffeomorphism` recorded; a family's parameters say nothing without it."""
    if not applied[TraceKeys.DO_TRANSFORM]:
        return data
    record = applied[TraceKeys.EXTRA_INFO]
    dims = len(record["velocity" if "velocity" in record else "displacement"]) if family is None else family.spatial_dims
    _check_fits("RandDiffeomorphism.inverse()", data, dims)
    ddf = _flow(record, data.shape[1:], inverse=True, device=data.device, family=family)
    return _deform(data, ddf, record["mode"], record["padding_mode"])


def _follow(img: NdarrayOrTensor, result: Canonicalization, mode: str, padding_mode: str) -> Tensor:
    """Bring what lies on the image of ``result`` to the canonical pose, and note in its metadata how it went."""
    ddf = None
    if bool(result.moved[0]):
        _check_fits("Canonicalize", img, result.ddf.shape[1])
        ddf = resize_ddf(result.ddf, tuple(img.shape[1:]), tuple(result.inverse_ddf.shape[2:]))[0]
    out = _deform(img, ddf, mode, padding_mode)
    if isinstance(out, MetaTensor):
        names = ("energy_before", "energy_after", "folding_fraction", "inverse_error", "largest_displacement")
        numbers = {name: float(getattr(result, name)[0]) for name in names}
        out.meta[META_KEY] = {"status": result.status[0], **numbers, "seconds": float(result.seconds)}
    return out


def _undo_canonicalization(data: Tensor, applied: Mapping[str, Any]) -> Tensor:
    """``data`` moved back by what :class:`Canonicalize` recorded."""
    record = applied[TraceKeys.EXTRA_INFO]
    if not record["moved"]:
        return data
    _check_fits("Canonicalize.inverse()", data, len(record["matrix"]))
    ddf = Deformation(*(record[name][None].to(data.device) for name in ("matrix", "residual"))).ddf(record["spatial_size"])
    field = resize_ddf(ddf, tuple(data.shape[1:]), tuple(record["canonical_size"]))
    return _deform(data, field[0], record["mode"], record["padding_mode"])
