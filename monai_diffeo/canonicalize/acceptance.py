"""Every rule that accepts or refuses an image, a rotation or a deformation, one function each.

A rule that refuses answers with the reason why an image is left as it is, or with None. A number that is not finite is never
accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from monai_diffeo.canonicalize.result import LEFT_ALONE, REJECTED
from monai_diffeo.flow import axis_rotations, folding_fraction
from monai_diffeo.flow.grid import axis_numbers

__all__ = [
    "ROTATION_LIMITS", "agrees_better", "at_rest_note", "chosen_rotation", "finite_rows", "high_energy_note",
    "looks_again", "may_be_mirrored", "mirrored_in_two_looks", "mirrored_note", "negative_note", "poses_of_each",
    "possible_rotations", "prefer_motion", "refuse_energy_increase", "refuse_folding", "refuse_nonfinite_deformation",
    "refuse_nonfinite_energy", "refuse_unusable_image", "rotation_note", "skip_low_energy", "worst_folding",
]  # fmt: skip

AT_REST = "deformed: no better answers"
ENLARGED = "enlarged: a constant border was left out"
MIRRORED, NEGATIVE, UNLIKE = "looks mirrored", "looks like a negative", "remains unlike the training images"
"""How the notes begin by which a film is to be looked at."""
# of the disagreement after a rotation: with four poses at most 0.72 times as much on 144 films of `val` that are rotated truly;
# with eight poses and other deformations it was up to 1.1
ROTATION_LIMITS = {"energy": math.inf, "disagreement": 1.2}
_RULED_OUT = 0.01  # a rotation that is less likely is not looked at
_MIRRORED_AGAIN = 0.01  # of 1 756 films none with less than 0.16 by the first look was said to be mirrored by both
_SURE = 1e-6  # the least probability, or difference of two, that counts: float32 has 0.9 as a little less


def finite_rows(*tensors: Tensor) -> Tensor:
    """Which images have only finite values in all of the tensors ``(B, ...)``; shape ``(B,)``, bool."""
    rows = [tensor.flatten(1) for tensor in tensors]
    ends = [end for row in rows for end in (row.amin(1), row.amax(1))]  # NaN where there is one; quicker than aminmax
    return torch.stack(ends).isfinite().all(0)


def refuse_unusable_image(image: Tensor) -> list[str | None]:
    """Images ``(B, C, *S)`` with a value that is not finite, and constant images, cannot be canonicalised at all."""
    flat = image.flatten(1)
    return [
        f"{REJECTED}: the image holds NaN or infinite values" if not f else f"{REJECTED}: the image is constant" if c else None
        for f, c in zip(finite_rows(flat).tolist(), (flat.amax(1) == flat.amin(1)).tolist())
    ]


def refuse_nonfinite_energy(energy: float) -> str | None:
    """An image whose energy, before or after, is not finite is rejected."""
    return None if math.isfinite(energy) else f"{REJECTED}: energy became {energy}"


def skip_low_energy(energy: float, skip_below: float | None) -> str | None:
    """An image whose energy is at most ``skip_below`` is left alone; None moves every image."""
    return f"{LEFT_ALONE}: looks like the training images" if skip_below is not None and energy <= skip_below else None


def possible_rotations(probabilities: Sequence[float], min_confidence: float, temperature: float | None) -> list[int]:
    """Numbers of the rotations whose energies decide, 0 for none first; no numbers where an image surely stands upright.

    The probabilities are those by an orientation network, of one image. Arguments as for :func:`chosen_rotation`.
    """
    likeliest = max(range(len(probabilities)), key=probabilities.__getitem__)
    sure = probabilities[likeliest] >= min_confidence - _SURE
    if (sure and likeliest == 0) or (not sure and temperature is None):
        return []
    return [0, likeliest] if temperature is None else [0, *(k for k, p in enumerate(probabilities) if k and p >= _RULED_OUT)]


def chosen_rotation(
    probabilities: Sequence[float], energies: Mapping[int, float], min_confidence: float, temperature: float | None
) -> int:
    """Number of the rotation that an image shows, 0 if there is none that is likely enough.

    An energy is that of the canonical image that a rotation, by its number, leads to. It is minus a log-likelihood in units of
    ``temperature``, so Bayes' rule makes of the network's probabilities those that also know the energies. The likeliest
    rotation counts if it has ``min_confidence``. Without a temperature it is the network's, unless the energy rises.
    """
    finite = {k: e for k, e in energies.items() if math.isfinite(e)}
    if temperature is None:
        return min(finite, key=lambda k: (finite[k], -k), default=0) if 0 in finite else 0
    least = min(finite.values(), default=0.0)
    weights = {k: probabilities[k] * math.exp((least - e) / temperature) for k, e in finite.items()}
    best = max(weights, key=weights.__getitem__, default=0)
    return best if weights and weights[best] >= (min_confidence - _SURE) * sum(weights.values()) else 0


def looks_again(ddf: Tensor, min_motion: float) -> Tensor:
    """Which images the last look of a predictor moved by more than ``min_motion``, ``(B,)``, bool: those are not yet at rest.

    The displacement ``ddf`` ``(B, D, *S)``, voxels, counts in shares of the frame, its length averaged over the voxels.
    """
    frame = axis_numbers(ddf.shape[2:], ddf).view(-1, *[1] * (ddf.ndim - 2))
    return (ddf / frame).square().sum(1).sqrt().flatten(1).mean(1) > min_motion


def agrees_better(agreement: Tensor, other: Tensor, disagreement: float) -> Tensor:
    """Whether the answers at several poses disagree at most by the factor ``disagreement`` of how much the other ones do.

    An agreement that is not known is 0; one that is not known of the others beats nothing. All ``(B,)``.
    """
    known = torch.where(agreement.isnan(), 0.0, agreement.double())
    return ~other.isfinite() | (1 - known <= disagreement * (1 - other.double()))


def prefer_motion(energy: Tensor, agreement: Tensor, agreement_at_rest: Tensor, limits: Mapping[str, float]) -> Tensor:
    """Whether the answers on a deformed image count, or those on the image as it was given, only rotated; all ``(B,)``.

    A network that knows many poses answers best on the pose that it is given. So its answers on the deformed image count
    only if that became like the training images, with an ``energy`` of at most ``limits["energy"]``, and if the answers from
    several poses then disagree less: by the factor ``limits["disagreement"]`` or more.
    """
    better = agrees_better(agreement, agreement_at_rest, limits["disagreement"])
    return better & ((energy <= limits["energy"]) | ~agreement_at_rest.isfinite())


def poses_of_each(count: int) -> int:
    """How many poses of a deformed image, and as many of the image at rest, are asked in place of ``count`` poses of one.

    Half, but no less than two, for the answer at a single pose agrees with nothing. One pose stays one.
    """
    return max(count // 2, min(count, 2))


def may_be_mirrored(probability: Tensor) -> Tensor:
    """Whether a first look that gives this probability deserves a second one, which takes time."""
    return probability >= _MIRRORED_AGAIN


def mirrored_in_two_looks(probability: Tensor, again: Tensor) -> Tensor:
    """Probability that an image is mirrored, of two looks at it: the odds multiply."""
    odds = torch.logit(probability.double(), _SURE) + torch.logit(again.double(), _SURE)
    return torch.sigmoid(odds).to(probability)


def mirrored_note(probability: float, min_confidence: float) -> str:
    """A film that is mirrored with at least this probability is only noted, because situs inversus exists."""
    return f"{MIRRORED} (probability {probability:.2f}) and is not changed" if probability >= min_confidence - _SURE else ""


def rotation_note(rotation: int, spatial_dims: int) -> str:
    """What a rotation of the axes, by its number in :func:`~monai_diffeo.flow.axis_rotations`, was; "" for the identity."""
    if rotation == 0:
        return ""
    if spatial_dims == 2:
        return f"rotation by {90 * rotation} degrees corrected"
    axes = (f"{'-' if row.sum() < 0 else '+'}{int(row.abs().argmax()) + 1}" for row in axis_rotations(spatial_dims)[rotation])
    return f"rotation corrected: axes 1, 2, 3 of the canonical volume are axes {', '.join(axes)} of the given one"


def at_rest_note(note: str, moved: bool, undone: str, unlike: str) -> str:
    """The ``note`` of an image that was ``moved`` in the search and is not deformed now; a rotation ``undone`` is not one, and
    ``unlike`` is its :func:`high_energy_note` as it is now."""
    if not moved:
        return note
    kept = [part for part in note.split("; ") if part != undone and not part.startswith(UNLIKE)]
    return "; ".join([*filter(None, [*kept, unlike]), f"not {'rotated, not ' if undone else ''}{AT_REST}"])


def negative_note(energy: float, inverted: float, min_ratio: float) -> str:
    """An image is noted, never changed, if inverting its grey values multiplies its energy by less than ``min_ratio``."""
    if not 0 < inverted < min_ratio * energy < math.inf:
        return ""
    return f"{NEGATIVE} (inverted, its energy is multiplied by {inverted / energy:.2f}) and is not changed"


def worst_folding(ddf: Tensor, inverse_ddf: Tensor) -> Tensor:
    """Share of folded or not finite voxels ``(B,)`` of a displacement or of its inverse, whichever is larger."""
    return torch.maximum(folding_fraction(ddf), folding_fraction(inverse_ddf))


def refuse_nonfinite_deformation(finite: bool) -> str | None:
    """A deformation is rejected unless field, inverse field, velocity and moved image are all finite."""
    return None if finite else f"{REJECTED}: the deformation holds NaN or infinite values"


def refuse_folding(share: float, max_halvings: int) -> str | None:
    """A deformation is rejected if it or its inverse still folds after the halvings."""
    return None if share == 0 else f"{REJECTED}: {share:.2%} of the voxels still fold after {max_halvings} halvings"


def refuse_energy_increase(before: float, after: float, max_energy_increase: float | None) -> str | None:
    """A deformation is rejected if it raises the energy by more than ``max_energy_increase``; None accepts any rise."""
    if max_energy_increase is None or after <= before + max_energy_increase:
        return None
    return f"{REJECTED}: energy rose from {before:.3g} to {after:.3g}"


def high_energy_note(energy: float, ood_threshold: float | None) -> str:
    """An image whose energy remains above ``ood_threshold`` is noted, not rejected; None notes none."""
    above = ood_threshold is not None and energy > ood_threshold
    return f"{UNLIKE} (energy {energy:.3g})" if above else ""
