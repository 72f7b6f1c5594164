"""Speed and accuracy of CPAB against libcpab (``pip install libcpab``), in one run, on one machine, with the same fields."""

import math
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from docs.experiments.pages import Experiment, note, section
from monai_diffeo.families import CPAB
from monai_diffeo.families.cpab import cpa_displacement
from monai_diffeo.families.cpab.flow import Start

CELLS = (4, 4)
STEPS = 50  # of libcpab's solver, its default


def rotation_from_libcpab(theirs, ours: CPAB) -> Tensor:
    """Orthogonal ``R``: ``theta @ R`` are our coefficients of the field whose coefficients in libcpab are ``theta``.

    libcpab puts x first and counts cells in another order; cells are matched by their centres. For ``theirs`` with cells
    ``cells[::-1]``, ``ours`` has ``cells``; ``boundary="slide"`` is their ``zero_boundary=True``, ``"linear"`` the other.
    """
    dims, basis = ours.spatial_dims, torch.from_numpy(theirs.params.basis)
    matrices = basis.T.reshape(basis.shape[1], -1, dims, dims + 1)
    matrices = torch.cat([matrices[..., :dims].flip(-1), matrices[..., dims:]], -1).flip(-2)
    number, _ = ours.space.tessellation.locate(torch.from_numpy(theirs.tesselation.get_cell_centers()).flip(-1))
    return ours.space.coefficients(torch.empty_like(matrices).index_copy_(1, number, matrices))


def seconds(forward: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """Least seconds, of the processor's time, of a forward pass and of the backward pass after it."""
    forward()
    best = [math.inf] * 2
    for _ in range(repeats):
        began = time.process_time()
        moved = forward()
        middle = time.process_time()
        moved.sum().backward()
        best = [min(best[0], middle - began), min(best[1], time.process_time() - middle)]
    return best[0], best[1]


class Contest:
    """Both implementations on one field; ``theta`` in libcpab's coefficients, ``(B, P)``."""

    def __init__(self, theirs, theta: Tensor, side: int) -> None:
        self.theirs, self.theta, self.ours = theirs, theta, CPAB(CELLS, "slide")
        self.rotation = rotation_from_libcpab(theirs, self.ours).to(theta)
        self.grid = theirs.uniform_meshgrid([side, side])
        self.points = self.grid.flip(0).T.contiguous()
        began = time.process_time()
        cell, coordinates = self.ours.space.tessellation.locate(self.points.double())
        self.seconds_to_locate = time.process_time() - began
        self.start = Start(cell, coordinates.to(self.points))

    def run_theirs(self) -> Tensor:
        return self.theirs.transform_grid(self.grid, self.theta.clone().requires_grad_())

    def run_ours(self) -> Tensor:
        space, theta = self.ours.space, (self.theta @ self.rotation).requires_grad_()
        return cpa_displacement(space.tessellation, space.velocities(theta), self.points, self.start)

    def row(self, repeats: int) -> dict[str, str]:
        """Milliseconds of both, and their ratio."""
        (a, b), (c, d) = seconds(self.run_theirs, repeats), seconds(self.run_ours, repeats)
        self.both = c + d
        times = {"libcpab forward": a, "backward": b, "both": a + b, "ours forward": c, "ours backward": d, "ours both": c + d}
        return {name: f"{1e3 * value:.1f}" for name, value in times.items()} | {"times faster": f"{(a + b) / (c + d):.1f}"}

    def errors(self) -> dict[str, str]:
        """Largest displacement, and errors of both in single precision against ours in double precision, in frames."""
        space, theta = self.ours.space, self.theta.double() @ self.rotation.double()
        exact = cpa_displacement(space.tessellation, space.velocities(theta), self.points.double())
        exact = self.points + exact.transpose(1, 2)
        with torch.no_grad():
            moved = self.run_ours()
            ours, theirs = self.points + moved.transpose(1, 2), self.run_theirs().flip(1).transpose(1, 2)
        found = {"libcpab's error": theirs - exact, "our error": ours - exact}
        largest = {"largest displacement": f"{moved.abs().max().item():.2f}"}
        return largest | {name: f"{error.abs().max().item():.0e}" for name, error in found.items()}


def main(argv: list[str] | None = None) -> None:
    experiment = Experiment("cpab_speed", __doc__, argv, seed=0, repeats=6)
    options = experiment.options
    from libcpab import Cpab

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    theirs = Cpab(list(CELLS[::-1]), zero_boundary=True)
    theirs.set_solver_params(nstepsolver=STEPS)
    compiled = sys.modules["libcpab.transformer"]._cpu_succes
    theta = theirs.sample_transformation_with_prior(64, length_scale=0.5, output_variance=0.3)
    rows, scaling, times, fewer = [], [], [], max(options.repeats // 2, 2)
    for name, factor in (("weak", 0.5), ("usual", 1.0), ("strong", 4.0)):
        contest = Contest(theirs, factor * theta[:1], 256)
        errors = contest.errors()
        largest = errors.pop("largest displacement")
        rows.append({"field": name, "largest displacement": largest, **contest.row(options.repeats), **errors})
    for side in (64, 128, 256, 512, 1024):
        contest = Contest(theirs, theta[:1], side)
        row = {"points": side * side, **contest.row(fewer)}
        times.append((side * side, contest.both))
        row["ours, nanoseconds a point"] = f"{1e9 * contest.both / side**2:.0f}"
        scaling.append(row | {"cells found, once": f"{1e3 * contest.seconds_to_locate:.1f}"})
    batch = {"fields": 64, "points each": 42 * 42, **Contest(theirs, theta, 42).row(fewer)}
    (few, short), (many, long) = times[-3], times[-1]
    kind = "compiled" if compiled else "in plain PyTorch, for the package on PyPI has no C++ or CUDA sources to compile"
    values = {"kind": kind, "steps": STEPS, "cells": f"{CELLS[0]} x {CELLS[1]}", "parameters": theirs.params.d}
    values |= {"repeats": options.repeats, "few": few, "many": many, "power": math.log(long / short) / math.log(many / few)}
    text, one, grows, power, small = note("cpab_speed", **values)
    parts = [text, section(one, rows), section(grows, scaling), power, section(small, [batch])]
    experiment.write("CPAB against libcpab", parts, options.seed)


if __name__ == "__main__":
    main()
