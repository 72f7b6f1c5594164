"""Which part of a lung mask is which lung, for reports: the display convention, not anatomy, decides the side."""

from __future__ import annotations

import numpy as np

__all__ = ["lung_areas", "split_lungs"]

_SECOND_LUNG = 0.1  # a part smaller than this share of the largest is an island, not a lung
_LONGEST = 512  # areas are measured on at most this many rows or columns


def split_lungs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The patient's right lung, left lung, and the rest of a mask, all ``(H, W)`` bool.

    The two largest connected parts are the lungs when the smaller has at least a tenth of the larger one's area; the
    one nearer to the image's left is the patient's right lung, as films are displayed. Otherwise everything is rest.

    Args:
        mask: shape ``(H, W)``, foreground > 0.5.
    """
    mask = np.asarray(mask) > 0.5
    labels, sizes = _components(mask)
    nothing = np.zeros_like(mask)
    largest = np.argsort(-sizes, kind="stable")[:2]
    if len(largest) < 2 or sizes[largest[1]] < _SECOND_LUNG * sizes[largest[0]]:
        return nothing, nothing, mask
    parts = sorted((labels == k + 1 for k in largest), key=lambda part: part.nonzero()[1].mean())
    return parts[0], parts[1], mask & ~parts[0] & ~parts[1]


def lung_areas(mask: np.ndarray) -> dict[str, float | None]:
    """Share of the frame that is lung: ``total``; ``right`` and ``left`` where :func:`split_lungs` tells them apart.

    Example:
        >>> mask = np.zeros((4, 8)); mask[:, 1:3] = mask[:, 5:6] = 1
        >>> lung_areas(mask)
        {'total': 0.375, 'right': 0.25, 'left': 0.125}
    """
    mask = np.asarray(mask) > 0.5
    step = -(-max(mask.shape) // _LONGEST)
    right, left, _ = (float(part.mean()) for part in split_lungs(mask[::step, ::step]))
    return {"total": float(mask.mean()), "right": right or None, "left": left or None}


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parts connected along rows and columns: labels from 1, 0 outside; and their sizes. Joins runs row by row."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = (indices.tolist() for indices in (edges == 1).nonzero())
    stops = (edges == -1).nonzero()[1].tolist()
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    above = 0  # first run of the row above that may still touch
    for i in range(len(rows)):
        while rows[above] < rows[i] - 1 or (rows[above] == rows[i] - 1 and stops[above] <= starts[i]):
            above += 1
        k = above
        while rows[k] == rows[i] - 1 and starts[k] < stops[i]:
            parent[root(k)] = root(i)
            k += 1
    roots, run_labels = np.unique([root(i) for i in range(len(rows))], return_inverse=True)
    labels = np.zeros(mask.shape, dtype=np.int64)
    for row, start, stop, label in zip(rows, starts, stops, run_labels):
        labels[row, start:stop] = label + 1
    return labels, np.bincount(run_labels, weights=np.subtract(stops, starts), minlength=len(roots)).astype(np.int64)
