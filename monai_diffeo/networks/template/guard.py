"""How the guard of a template transformer tests the topology of shapes on a lattice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from monai_diffeo.metrics import shape_topology, shapes_intact
from monai_diffeo.networks.template.prior import TemplatePrior

__all__ = ["intact_level", "topology_of"]

_LEVELS = (0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.0, -2.0)
_FINE = {2: (256, 1024), 3: (64, 128)}  # least and most points along an axis of the lattice on which the prior is sampled


def intact_level(log_odds: Tensor, whole: Callable[[np.ndarray], bool] = shapes_intact) -> float | None:
    """The level nearest to 0 above which the shapes of one image ``(K, *S)`` pass a test; None if there is none."""
    values = log_odds.detach().cpu().numpy()
    return next((level for level in _LEVELS if whole(values > level)), None)


def topology_of(prior: TemplatePrior, spatial_size: Sequence[int]) -> Callable[[np.ndarray], bool]:
    """A test whether masks ``(K, *S)`` have the topology of a prior, which is sampled more finely than ``spatial_size``."""
    least, most = _FINE[len(spatial_size)]
    with torch.no_grad():
        right = (prior([min(max(2 * n, least), most) for n in spatial_size])[0] > 0.5).cpu().numpy()
    return shapes_intact if shapes_intact(right) else partial(_has_topology, shape_topology(right))


def _has_topology(topology: tuple, masks: np.ndarray) -> bool:
    return shape_topology(masks) == topology
