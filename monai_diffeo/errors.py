"""The errors that users meet. Each says who, what was expected, what came, what to do, and keeps the values as attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["ConfigError", "DiffeoError", "FilmError", "NumericalError", "OutputError"]
__all__ += ["RejectedError", "ShapeError", "WeightsError"]


class DiffeoError(Exception):
    """Root of all errors raised by monai_diffeo."""


class ConfigError(DiffeoError, ValueError):
    """A configuration names something that does not exist, or that it may not use."""


class ShapeError(DiffeoError, ValueError):
    """A tensor has the wrong shape.

    Args:
        who: the function or class that refuses.
        argument: name of the argument.
        expected: the shape in words, e.g. ``"(B, D, *S)"``.
        actual: the shape that came.
        remedy: what to do, one sentence.
    """

    def __init__(self, who: str, argument: str, expected: str, actual: Sequence[object], remedy: str = "") -> None:
        self.expected, self.actual = expected, tuple(actual)
        super().__init__(f"{who}: '{argument}' must have shape {expected}, got {self.actual}. {remedy}".rstrip())


class NumericalError(DiffeoError, RuntimeError):
    """A number became NaN or infinite, or an iteration did not converge."""


class RejectedError(NumericalError):
    """A deformation was rejected where no other answer was wanted; ``canonicalization`` says what was found, if it is known."""

    def __init__(self, message: str, canonicalization: Any = None) -> None:
        self.canonicalization = canonicalization
        super().__init__(message)


class WeightsError(DiffeoError, RuntimeError):
    """A file of weights is missing, damaged or does not fit its network. Nothing goes on without it."""


class OutputError(DiffeoError, OSError):
    """A result cannot be written; the message is a sentence without the name of a file."""


class FilmError(DiffeoError, ValueError):
    """A file is not a readable single-frame grey film.

    Args:
        code: stable class of the problem in CamelCase, e.g. ``"MultiFrame"``; one word for logs and reports.
        sentence: what was expected, what came and what to do, without the file's path and without patient data.
    """

    def __init__(self, code: str, sentence: str) -> None:
        self.code, self.sentence = code, sentence
        super().__init__(f"{code}: {sentence}")

    def __reduce__(self):
        return type(self), (self.code, self.sentence)
