"""Engines (need the extra ``bundle``)."""

from monai_diffeo.engines.evaluators import DiffeoEvaluator, FilmEvaluator

__all__ = ["DiffeoEvaluator", "FilmEvaluator"]
