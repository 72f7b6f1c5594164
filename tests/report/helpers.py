"""A canonicalisation with known numbers, made by hand."""

import torch

from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.flow import Deformation, folding_fraction, warp

STATUS = ("canonicalized", "left alone: looks like the training images")


def known_result(status=STATUS, size=(8, 11), shift=3.0, energy=2.5):
    """The first image is moved by ``shift`` voxels along axis 1, the others not at all."""
    batch = len(status)
    ddf = torch.zeros(batch, 2, *size)
    ddf[0, 1] = shift
    inverse_ddf = -ddf
    inverse_ddf[0, 0] = 0.125  # the error of the inverse
    unit = torch.eye(2, 3).repeat(batch, 1, 1)
    image = torch.arange(float(batch * size[0] * size[1])).view(batch, 1, *size)
    return Canonicalization(
        image=warp(image, ddf),
        velocity=ddf[:, None],
        ddf=ddf,
        inverse_ddf=inverse_ddf,
        energy_before=torch.full((batch,), energy),
        energy_after=torch.full((batch,), 1.25),
        folding_fraction=folding_fraction(ddf),
        steps=torch.arange(batch),
        status=status,
        seconds=4.0,
        terms={"vae": torch.full((batch,), 0.5), "critic": torch.arange(float(batch))},
        notes=("",) * batch,
        forward=Deformation(unit, ddf),
        inverse=Deformation(unit, inverse_ddf),
    )
