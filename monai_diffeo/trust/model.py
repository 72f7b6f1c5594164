"""How signs become scores: few numbers, fitted on films with known answers, stored in a JSON file beside the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from monai_diffeo.errors import WeightsError
from monai_diffeo.files import check_sha256, record_sha256, write_atomically
from monai_diffeo.trust.signs import SIGNS, References

__all__ = ["Score", "TrustModel", "load_trust", "save_trust"]

_AT_LIMIT = math.log(2)  # what an unknown sign counts as


@dataclass(frozen=True)
class Score:
    """A linear score of signs; its weights are at least 0, so that no worse sign ever lowers it.

    Attributes:
        bias: of the score.
        weights: by sign.
        threshold: from which on the score counts as high.
    """

    bias: float
    weights: Mapping[str, float]
    threshold: float


@dataclass(frozen=True)
class TrustModel:
    """What was fitted.

    Attributes:
        limits: by sign, what 99 of 100 good films have at most; above 0. A sign without one is not asked.
        error: logarithm of the expected ``1 - Dice``; from its threshold on, the film is to be reviewed.
        spread: what the logarithm of the error lay below and above the expected one in 95 of 100 films; None if unknown.
        foreign: log-odds that the image is no chest film; from its threshold on, it has no result.
        unusual: value of ``foreign`` above which a film is to be reviewed.
        references: what training films look like.
        sha256: of what gave the answers, see :func:`fitted_to`.
        fitted_on: a sentence.
    """

    limits: Mapping[str, float]
    error: Score
    spread: tuple[float, float] | None
    foreign: Score
    unusual: float
    references: References
    sha256: str
    fitted_on: str

    def scaled(self, signs: Mapping[str, float]) -> dict[str, float]:
        """Signs between 0 and log 2 up to their limits, and slowly more beyond; an unknown one counts as at its limit."""
        known = {name: float(signs.get(name, math.nan)) for name in self.limits}
        known = {name: self.limits[name] if math.isnan(value) else value for name, value in known.items()}
        return {name: math.log1p(max(value, 0.0) / self.limits[name]) for name, value in known.items()}

    def value(self, score: Score, signs: Mapping[str, float]) -> float:
        """A score of the signs of one film."""
        scaled = self.scaled(signs)
        return score.bias + sum(weight * scaled.get(name, _AT_LIMIT) for name, weight in score.weights.items())

    def weighs(self, sign: str) -> bool:
        """Whether a sign counts in a score."""
        return sign in self.limits and any(score.weights.get(sign, 0.0) > 0 for score in (self.error, self.foreign))

    def interval(self, signs: Mapping[str, float]) -> tuple[float, float] | None:
        """Between which two values the Dice of a film lies, of 95 in 100 films like those calibrated on; None if unknown."""
        if self.spread is None:
            return None
        expected = self.value(self.error, signs)
        low, high = (1 - math.exp(min(expected + shift, 0.0)) for shift in (self.spread[1], -self.spread[0]))
        return low, high


def save_trust(path: str | Path, model: TrustModel) -> None:
    """Write a model; in a bundle, its SHA-256 goes into the metadata."""
    content = asdict(model)
    content["references"] = {name: [round(x, 4) for x in t.flatten().tolist()] for name, t in content["references"].items()}
    record_sha256(write_atomically(path, f"{json.dumps(content)}\n".encode()))


def load_trust(path: str | Path) -> TrustModel:
    """Read what :func:`save_trust` wrote.

    Raises:
        WeightsError: if the file cannot be read, lacks something or has something else, if a number is not finite, a weight
            below 0 or a limit not above 0, or if it is not the file that its bundle names.
    """
    check_sha256(path)
    try:
        content = json.loads(Path(path).read_bytes())
        parts = dict(_exactly(content, TrustModel))
        for name in ("error", "foreign"):
            score = Score(**_exactly(parts[name], Score))
            _numbers({"bias": score.bias, "threshold": score.threshold})
            parts[name] = Score(score.bias, _numbers(score.weights, 0.0), score.threshold)
            if not set(score.weights) <= set(SIGNS):
                raise ValueError(f"unknown signs {sorted(set(score.weights) - set(SIGNS))}")
        parts["limits"] = _numbers(parts["limits"], 1e-12)
        _numbers({"unusual": parts["unusual"]})
        if not set(parts["limits"]) <= set(SIGNS):
            raise ValueError(f"unknown signs {sorted(set(parts['limits']) - set(SIGNS))}")
        if parts["spread"] is not None:
            parts["spread"] = tuple(_numbers(dict(zip("lh", parts["spread"], strict=True))).values())
        arrays = {n: torch.tensor(v, dtype=torch.float64) for n, v in _exactly(parts["references"], References).items()}
        if not all(bool(array.isfinite().all()) for array in arrays.values()):
            raise ValueError("references must be finite")
        side, count = math.isqrt(len(arrays["film"])), len(arrays["shape_mean"])
        film, precision = arrays["film"].view(side, side), arrays["shape_precision"].view(count, count)
        return TrustModel(**{**parts, "references": References(film, arrays["shape_mean"], precision)})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        remedy = "Copy the file again, or write a new one with `monai-diffeo calibrate`."
        raise WeightsError(f"load_trust(): cannot read {Path(path).name}: {error}. {remedy}") from error


def _exactly(content: Any, kind: type) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    if not isinstance(content, dict) or set(content) != names:
        raise ValueError(f"expected {sorted(names)}, got {sorted(content) if isinstance(content, dict) else content!r}")
    return content


def _numbers(values: Mapping[str, Any], least: float = -math.inf) -> dict[str, float]:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
            raise ValueError(f"{name!r} must be a finite number of at least {least}, got {value!r}")
    return dict(values)
