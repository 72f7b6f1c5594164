"""Which way the patient's left lies on a film."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monai_diffeo.canonicalize.result import CANONICALIZED, LEFT_ALONE, Canonicalization

__all__ = ["PatientSides", "patient_sides"]

Step = tuple[int, int]
_CANONICAL_TOO = f"{LEFT_ALONE}: looks like the training images"
_EXIF_MIRRORED = {2: "R\\F", 4: "L\\H", 5: "F\\L", 7: "H\\R"}  # the same in the words of PatientOrientation
_FINE = 256  # rows and columns of a map of places
_SAME_POSE = 0.5  # cosine between two directions towards the feet


@dataclass(frozen=True)
class PatientSides:
    """Where the patient's left is.

    Attributes:
        film: step along (rows, columns) of the film that leads most directly to the patient's left; ``(0, 1)`` as usual.
        canonical: the same on the canonical film.
        leftward: how far towards the patient's left each place of the film lies, shape ``(H, W)`` of any size.
    """

    film: Step
    canonical: Step
    leftward: np.ndarray

    @classmethod
    def along(cls, left: Step) -> PatientSides:
        """Sides of a film, canonical or not, whose step to the patient's left is known, and nothing else."""
        rows, columns = np.linspace((0, 0), left, _FINE).T
        return cls(left, left, rows[:, None] + columns)

    def leftness(self, part: np.ndarray) -> float:
        """How far towards the patient's left the centre of a part of the film lies; ``part`` is a mask ``(H, W)``."""
        inside = np.count_nonzero(part, 1), np.count_nonzero(part, 0)  # of each row, of each column
        centre = [np.average(np.arange(n), weights=count) / max(n - 1, 1) for count, n in zip(inside, part.shape)]
        row, column = (round(float(c) * (n - 1)) for c, n in zip(centre, self.leftward.shape))
        return float(self.leftward[row, column])


def patient_sides(result: Canonicalization | None, index: int = 0, orientation: str = "", exif: int = 0) -> PatientSides | None:
    r"""The patient's sides, from the canonical pose and from what the file states; None where they are unknown or contradict.

    The canonical pose is upright, the patient's right at the image's left. It is known for a film that was canonicalised, or
    left alone because it looks like the training images. A deformation never mirrors, so only the file can say that a film is
    mirrored. A film that looks mirrored and whose file does not say so has unknown sides.

    Args:
        result: of the batch the film was in; None if canonicalisation was switched off.
        index: row of the film in ``result``.
        orientation: DICOM PatientOrientation, where rows and columns lead, ``"L\\F"`` as usual; it needs no known pose.
        exif: EXIF orientation, 0 if it is not stated. Its mirror codes 2, 4, 5 and 7 count; turns are seen in the pose.
    """
    pose = _canonical_place(result, index)
    looks_mirrored = result is not None and "mirrored" in result.notes[index]
    stated = orientation or ("" if pose is None else _EXIF_MIRRORED.get(exif, ""))
    if not stated:
        return None if pose is None or looks_mirrored else PatientSides(_step(_rise(pose[1])), (0, 1), pose[1])
    directions = _directions(stated)
    if directions is None:
        return None
    left, feet = directions
    mirrored = left != (-feet[1], feet[0])
    if looks_mirrored and not mirrored:
        return None
    if pose is None:
        return PatientSides.along(left)
    down = _rise(pose[0])
    if np.dot(down, feet) < _SAME_POSE * np.linalg.norm(down):
        return None
    sign = -1 if mirrored else 1
    return PatientSides(left, (0, sign), sign * pose[1])


def _directions(orientation: str) -> tuple[Step, Step] | None:
    """Steps to the patient's left and to the feet; None unless the film is a frontal one."""
    found: dict[str, Step] = {}
    for step, word in zip(((0, 1), (1, 0)), orientation.split("\\")):
        found[word[:1]] = step
        found[{"L": "R", "R": "L", "F": "H", "H": "F"}.get(word[:1], "")] = (-step[0], -step[1])
    return (found["L"], found["F"]) if {"L", "F"} <= set(found) else None


def _canonical_place(result: Canonicalization | None, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Row and column on the canonical film of each voxel of the film, each ``(H, W)``, shares of the frame."""
    if result is None or result.status[index] not in (CANONICALIZED, _CANONICAL_TOO):
        return None
    inverse_ddf = result.inverse_ddf[index].detach().cpu().numpy()
    place = (np.indices(inverse_ddf.shape[1:]) + inverse_ddf) / (np.reshape(inverse_ddf.shape[1:], (2, 1, 1)) - 1)
    return place[0], place[1]


def _rise(values: np.ndarray) -> tuple[float, float]:
    """Mean rise of values ``(H, W)`` over all rows and over all columns."""
    return float((values[-1] - values[0]).mean()), float((values[:, -1] - values[:, 0]).mean())


def _step(direction: tuple[float, float]) -> Step:
    """The step along one axis that is nearest to a direction."""
    down, right = direction
    return (0, 1 if right > 0 else -1) if abs(right) >= abs(down) else (1 if down > 0 else -1, 0)
