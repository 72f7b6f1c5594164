"""What is usual of the images of a fit: quantiles of signs that need no label, and the decision on an image by them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from monai_diffeo.canonicalize.result import NO_RESULT, OK, REJECTED, REVIEW
from monai_diffeo.errors import WeightsError
from monai_diffeo.files import record_sha256, write_atomically

__all__ = ["LIMITED_SIGNS", "SignLimits", "load_limits"]

LIMITED_SIGNS: Mapping[str, str] = {
    "energy": "the canonical image is unlike the images of the fit",
    "energy_low": "the canonical image has an energy below those of the fit, as noise and even images may have",
    "energy_before": "the image as it came is unlike the images of the fit",
    "displacement": "the image had to be moved far",
    "folding": "the deformation folds",
    "disagreement": "the answers from several poses disagree",
    "change": "the answers with and without canonicalisation differ",
}
"""Every sign by its name, with what is said where it is above its limit. In each, more is worse."""

_FILE, _QUANTILE = "limits.json", 0.99
_FAR = 10.0  # times as far above the median as the limit: an image of something else
_LEAST = dict.fromkeys(("energy", "energy_low", "energy_before"), 1.0)  # from the median to a limit, in spreads
_SMALL = 1e-3


@dataclass(frozen=True)
class SignLimits:
    """Quantiles of the signs of images of a fit, some of them deformed.

    Attributes:
        mode: of the canonicaliser that they were measured with.
        images: how many there were.
        medians, limits: of each sign; a limit is the 99 % quantile.
    """

    mode: str
    images: int
    medians: Mapping[str, float]
    limits: Mapping[str, float]

    @classmethod
    def of(cls, mode: str, rows: Sequence[Mapping[str, float]]) -> SignLimits:
        """The limits by signs of images; those that no image has have none, and numbers that are not finite do not count."""
        medians, limits = {}, {}
        for name in LIMITED_SIGNS:
            values = torch.tensor([row.get(name, math.nan) for row in rows], dtype=torch.float64)
            values = values[values.isfinite()]
            if len(values):
                medians[name] = float(values.median())
                limits[name] = max(float(values.quantile(_QUANTILE)), medians[name] + _LEAST.get(name, _SMALL))
        return cls(mode, len(rows), medians, limits)

    def decision(self, signs: Mapping[str, float], status: str = "") -> str:
        """``"ok"``, ``"review: why"``, or ``"no result: why"`` where the energy is far outside. A sign that is not known counts
        for nothing, an infinite energy is far outside."""
        high = [name for name, limit in self.limits.items() if signs.get(name, limit) > limit]
        reasons = [f"{LIMITED_SIGNS[name]} ({signs[name]:.3g}, limit {self.limits[name]:.3g})" for name in high]
        reasons += [status] if status.startswith(REJECTED) else []
        typical = self.medians.get("energy", 0.0)
        far = "energy" in high and signs["energy"] - typical > _FAR * (self.limits["energy"] - typical)
        return f"{NO_RESULT if far else REVIEW}: {'; '.join(reasons)}" if reasons else OK

    def save(self, folder: str | Path, further: bool = False) -> None:
        """Write ``limits.json`` into the folder of the canonicaliser; in a bundle, its SHA-256 goes into the metadata.

        Of a ``further`` mode, not the default one, the file is ``limits_`` and its name.
        """
        name = _further(self.mode) if further else _FILE
        record_sha256(write_atomically(Path(folder) / name, f"{json.dumps(asdict(self), indent=2)}\n".encode()))


def _further(mode: str) -> str:
    return f"limits_{mode}.json"


def load_limits(folder: str | Path, mode: str) -> SignLimits | None:
    """What :meth:`SignLimits.save` wrote; None where there is no file of this mode.

    Raises:
        WeightsError: if the file cannot be read or holds anything else.
    """
    found = (_read(Path(folder) / name) for name in (_FILE, _further(mode)))
    return next((limits for limits in found if limits is not None and limits.mode == mode), None)


def _read(path: Path) -> SignLimits | None:
    if not path.is_file():
        return None
    try:
        found = SignLimits(**json.loads(path.read_bytes()))
        numbers = [*found.medians.values(), *found.limits.values()]
        if not (set(found.medians) == set(found.limits) <= set(LIMITED_SIGNS) and all(map(math.isfinite, numbers))):
            raise ValueError(f"expected finite medians and limits of {list(LIMITED_SIGNS)}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"load_canonicalizer(): cannot read {path.name} in {path.parent}: {error}. Fit it anew.") from error
    return found
