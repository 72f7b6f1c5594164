"""The trust model of one site: limits and thresholds from its own films, whose true masks nobody knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from monai_diffeo.errors import ConfigError
from monai_diffeo.trust.decision import NO_RESULT, verdict
from monai_diffeo.trust.judge import Observation
from monai_diffeo.trust.model import TrustModel

__all__ = ["LEAST_FILMS", "check_films", "recalibrated"]

LEAST_FILMS = 50
_STRANGE = 0.5  # share of images without a result from which on a folder is taken for one of something else
_LEAST_LIMIT = 1e-3


def check_films(count: int, share: float) -> None:
    """ConfigError unless so many films tell what a share of them is; two films must be in it."""
    if not 0 < share <= 0.5:
        raise ConfigError(f"calibrate: the share must be above 0 and at most 50 %, got {share:.3g}. Give --share 3 for 3 %.")
    least = max(LEAST_FILMS, math.ceil(2 / share - 1e-9))
    if count < least:
        remedy = "Give more films of the same kind" + (
            f", or --share {math.ceil(2000 / count) / 10}." if count >= LEAST_FILMS else "."
        )
        raise ConfigError(f"calibrate: there must be {least} films that can be used, or more, got {count}. {remedy}")


def recalibrated(model: TrustModel, films: Sequence[Observation], share: float = 0.03) -> TrustModel:
    """A model for the films of one site.

    Films without known masks tell how the signs are distributed there. So each limit becomes the 99 % quantile of the films,
    without the worst ``share`` by the scores of ``model``. The thresholds then are such that at most this share is flagged.
    Weights stay. A sign that no film was asked for, as of a network that is missing, gets no limit. Which Dice to expect cannot
    be learned without masks, so the new model gives no interval for it.

    Args:
        model: fitted on films with known answers.
        films: of the site; what order they have does not matter.
        share: of the films whose scores may be high; it should be larger than that of bad films among them.

    Raises:
        ConfigError: for another share than between 0 and 0.5, for too few films, or if most of them are no chest films.
    """
    check_films(len(films), share)
    alien = sum(verdict(model, film.signs).kind == NO_RESULT for film in films)
    if alien > _STRANGE * len(films):
        raise ConfigError(
            f"calibrate: most images must be chest films, but {alien} of {len(films)} are none by the bundle's own model. "
            "Give a folder of frontal chest films, or a network that segments them."
        )
    most = int(share * len(films) + 1e-9)
    cuts = _cuts(model, films, most)
    usual = [film for film in films if all(value < cut for value, cut in zip(_values(model, film), cuts))]
    told = (
        f"{len(films)} unlabelled films of one site, of which at most {share:.1%} were to be flagged; before, {model.fitted_on}"
    )
    asked = {name for film in films for name in film.signs}
    columns = {name: [film.signs.get(name, math.nan) for film in usual] for name in model.limits if name in asked}
    limits = {name: _limit(values, model.limits[name]) for name, values in columns.items()}
    new = replace(model, limits=limits, spread=None, fitted_on=told)
    error, unusual = _cuts(new, films, most)
    foreign = replace(new.foreign, threshold=max(new.foreign.threshold, unusual))
    return replace(new, error=replace(new.error, threshold=error), foreign=foreign, unusual=unusual)


def _values(model: TrustModel, film: Observation) -> tuple[float, float]:
    return model.value(model.error, film.signs), model.value(model.foreign, film.signs)


def _cuts(model: TrustModel, films: Sequence[Observation], most: int) -> tuple[float, float]:
    """Thresholds of the two scores that at most ``most`` films reach, in the one or the other: as many in each as can be."""
    scores = [_values(model, film) for film in films]
    error, foreign = (sorted(column, reverse=True) for column in zip(*scores))
    cuts = math.inf, math.inf
    for count in range(most, 0, -1):
        cuts = _between(error, count), _between(foreign, count)
        if sum(one >= cuts[0] or other >= cuts[1] for one, other in scores) <= most:
            break
    return cuts


def _between(falling: Sequence[float], count: int) -> float:
    """A number that ``count`` of these numbers reach, or fewer where equal ones cannot be parted."""
    last, first = falling[count - 1], falling[count]
    return (last + first) / 2 if last > first else math.nextafter(last, math.inf)


def _limit(values: Sequence[float], old: float) -> float:
    """The limit of a sign; the old one where no film has it."""
    known = torch.tensor(values, dtype=torch.float64)
    known = known[known.isfinite()]
    return max(float(known.quantile(0.99)), _LEAST_LIMIT) if len(known) else old
