"""Engines for films in bulk (needs the extra ``bundle``)."""

from monai_diffeo.engines.films import FilmEvaluator

__all__ = ["FilmEvaluator"]
