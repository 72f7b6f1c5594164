"""What the settings of a canonicaliser may be, alone and together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_diffeo.canonicalize.checks import check_callable, check_number
from monai_diffeo.families import Family

__all__ = ["check_settings"]

_OPTIONAL = {"patience": 1, "min_motion": 0.0, "rotation_temperature": 0.0, "enlarge_below": 0.0}
_OPTIONAL |= dict.fromkeys(("skip_below", "max_energy_increase", "ood_threshold"), float("-inf"))
_LEAST = {"steps": 0, "iterations": 1, "final_steps": 0, "max_halvings": 0, "tta_samples": 1, **_OPTIONAL}
_LEAST |= {"min_polarity_ratio": 0.0}
_OF_STEPS = {"steps": 0, "learning_rate": 0.01, "patience": 10, "cuda_graph": False}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise an error for a part of another kind, for a number that no search can use, and for what does not go together.

    Raises:
        TypeError: for a part of another kind.
        ValueError: for a setting without a meaning.
    """
    for name in ("family", "search_family"):
        if not isinstance(settings[name], Family) and not (name == "search_family" and settings[name] is None):
            remedy = "Create one, for example ControlGrid(spatial_dims=2, controls=8)."
            raise TypeError(f"Canonicalizer: {name!r} must be of class Family, got {settings[name]!r}. {remedy}")
    for name in ("predictor", "regularizer", "search"):
        if settings[name] is not None:
            check_callable("Canonicalizer", name, settings[name], "a module or a function", "Create it first.")
    for name, least in {**_LEAST, "min_confidence": 0.0, "learning_rate": 0.0}.items():
        check_number("Canonicalizer", name, settings[name], least, isinstance(least, int), name in _OPTIONAL)
    if not 0 <= settings["min_confidence"] <= 1:
        raise ValueError(f"Canonicalizer: 'min_confidence' must be a probability, 0 to 1, got {settings['min_confidence']}.")
    if (share := settings["enlarge_below"]) is not None and not 0 < share < 1:
        raise ValueError(f"Canonicalizer: 'enlarge_below' must be a share of an axis, between 0 and 1, got {share}.")
    for name in ("learning_rate", "rotation_temperature"):
        if settings[name] is not None and not 0 < settings[name] < float("inf"):
            raise ValueError(f"Canonicalizer: {name!r} must be positive and finite, got {settings[name]}.")
    dims, size, sampling = settings["family"].spatial_dims, settings["working_size"], settings["sampling"]
    if settings["deform"] and settings["predictor"] is None and settings["steps"] == 0 and settings["search"] is None:
        raise ValueError("Canonicalizer: without a predictor, 'steps' must be larger than 0; got steps=0, predictor=None.")
    if settings["search"] is not None:
        idle = {name: settings[name] for name, default in _OF_STEPS.items() if settings[name] != default}
        if idle:
            remedy = "Give them to the search itself, or search=None."
            raise ValueError(f"Canonicalizer: beside a 'search' nothing reads {', '.join(idle)}, got {idle}. {remedy}")
    if settings["steps"] and settings["regularizer"] is None:
        raise ValueError("Canonicalizer: optimisation needs a 'regularizer', for example DeformationRegularizer().")
    if sampling not in ("bilinear", "bicubic")[: 2 if dims == 2 else 1]:
        raise ValueError(f"Canonicalizer: 'sampling' must be 'bilinear' or, in 2D, 'bicubic', got {sampling!r}.")
    if size is not None and (len(size) != dims or not min(size) >= 2):
        raise ValueError(f"Canonicalizer: 'working_size' must be {dims} numbers of at least 2, or None, got {tuple(size)}.")
