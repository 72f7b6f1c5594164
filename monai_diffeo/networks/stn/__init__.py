"""Spatial transformer layers and localisers."""

from monai_diffeo.networks.stn.layers import SpatialTransformerChain, SpatialTransformerLayer
from monai_diffeo.networks.stn.localizers import CNNLocalizer, FCNLocalizer, RegressorLocalizer, zero_init_last_layer_

__all__ = [
    "CNNLocalizer", "FCNLocalizer", "RegressorLocalizer", "SpatialTransformerChain", "SpatialTransformerLayer",
    "zero_init_last_layer_",
]  # fmt: skip
