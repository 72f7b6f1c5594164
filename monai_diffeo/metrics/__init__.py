"""Metrics that MONAI lacks: the topology of masks."""

from monai_diffeo.metrics.topology import (
    BettiNumberMetric,
    betti_numbers,
    components_in_place,
    connected_components,
    euler_characteristic,
    largest_components,
    shape_topology,
    shapes_intact,
)

__all__ = [
    "BettiNumberMetric", "betti_numbers", "components_in_place", "connected_components", "euler_characteristic",
    "largest_components", "shape_topology", "shapes_intact",
]  # fmt: skip
