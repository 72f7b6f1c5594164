"""Tessellations and fields for the tests of piecewise-affine flows."""

import itertools

import scipy.spatial
import torch

from monai_diffeo.families.cpab import Tessellation, cpa_space, grid_tessellation


def delaunay(inner, dims, seed=0):
    """The unit square or cube with random points inside, middles of edges and faces, and simplices between them."""
    corners = torch.tensor(
        [p for p in itertools.product((0.0, 0.5, 1.0), repeat=dims) if p != (0.5,) * dims], dtype=torch.float64
    )
    points = torch.rand(inner, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.8 + 0.1
    vertices = torch.cat([corners, points])
    simplices = torch.from_numpy(scipy.spatial.Delaunay(vertices.numpy()).simplices).long()
    edges = vertices[simplices[:, 1:]] - vertices[simplices[:, :1]]
    return Tessellation(vertices, simplices[torch.linalg.det(edges).abs() > 1e-9])  # without flat ones on the border


def field(cells, boundary="free", speed=0.4, batch=1, seed=0, margins=(1.0, 64.0), dtype=torch.float64):
    """A tessellation and random velocities at its vertices, the largest in the frame being ``speed``."""
    tessellation = cells if isinstance(cells, Tessellation) else grid_tessellation(cells, margins)
    space = cpa_space(tessellation, boundary)
    theta = torch.randn(batch, space.num_parameters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    velocities = space.velocities(theta)
    largest = velocities[:, : tessellation.frame_vertices].abs().amax((1, 2), keepdim=True)
    return tessellation, (velocities * speed / largest).to(dtype)


def points(count, dims, seed=0, dtype=torch.float64):
    return torch.rand(count, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
