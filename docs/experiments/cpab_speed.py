"""Speed and accuracy of CPAB against libcpab, in one run, on one machine, with the same fields.

``python -m docs.experiments.cpab_speed`` needs ``pip install libcpab`` (in the ``test`` extra) and writes the page.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from docs.experiments.tables import command_text, markdown_table, write_page
from monai_diffeo.families import CPAB
from monai_diffeo.families.cpab import cpa_displacement
from monai_diffeo.families.cpab.flow import Start

__all__ = ["rotation_from_libcpab", "seconds"]

CELLS = (4, 4)
STEPS = 50  # of libcpab's solver, its default


def rotation_from_libcpab(theirs, ours: CPAB) -> Tensor:
    """Matrix ``R`` with which ``theta @ R`` are our coefficients of the field whose coefficients in libcpab are ``theta``; orthogonal.

    libcpab puts x first and counts cells in another order; the cells are matched by their centres.

    Args:
        theirs: a ``libcpab.Cpab`` with cells ``cells[::-1]``.
        ours: a family on ``cells``, ``boundary="slide"`` for their ``zero_boundary=True``, else ``"linear"``.
    """
    dims, basis = ours.spatial_dims, torch.from_numpy(theirs.params.basis)
    matrices = basis.T.reshape(basis.shape[1], -1, dims, dims + 1)
    matrices = torch.cat([matrices[..., :dims].flip(-1), matrices[..., dims:]], -1).flip(-2)
    number, _ = ours.space.tessellation.locate(torch.from_numpy(theirs.tesselation.get_cell_centers()).flip(-1))
    return ours.space.coefficients(torch.empty_like(matrices).index_copy_(1, number, matrices))


def seconds(forward: Callable[[], Tensor], repeats: int) -> tuple[float, float]:
    """Least seconds of a forward pass and of the backward pass after it, over ``repeats``; of the processor's time on a CPU, so that other
    work on the machine does not count, of the clock's on a GPU."""
    cuda = forward().is_cuda

    def now() -> float:
        if cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    best = [float("inf")] * 2
    for _ in range(repeats):
        began = now()
        moved = forward()
        middle = now()
        moved.sum().backward()
        best = [min(best[0], middle - began), min(best[1], now() - middle)]
    return best[0], best[1]


class Contest:
    """Both implementations on one field; ``theta`` in their coefficients, ``(B, P)``."""

    def __init__(self, theirs, theta: Tensor, side: int, device: str) -> None:
        self.theirs, self.theta, self.ours = theirs, theta.to(device), CPAB(CELLS, "slide")
        self.rotation = rotation_from_libcpab(theirs, self.ours).to(self.theta)
        self.grid = theirs.uniform_meshgrid([side, side]).to(device)
        self.points = self.grid.flip(0).T.contiguous()
        began = time.process_time()
        cell, coordinates = self.ours.space.tessellation.locate(self.points.double().cpu())
        self.seconds_to_locate = time.process_time() - began
        self.start = Start(cell.to(device), coordinates.to(self.points))

    def run_theirs(self) -> Tensor:
        return self.theirs.transform_grid(self.grid, self.theta.clone().requires_grad_())

    def run_ours(self) -> Tensor:
        space, theta = self.ours.space, (self.theta @ self.rotation).requires_grad_()
        return cpa_displacement(space.tessellation, space.velocities(theta), self.points, self.start)

    def row(self, repeats: int) -> dict[str, float]:
        """Milliseconds of both, and the ratios."""
        (a, b), (c, d) = seconds(self.run_theirs, repeats), seconds(self.run_ours, repeats)
        return {
            "libcpab forward": a,
            "backward": b,
            "both": a + b,
            "ours forward": c,
            "ours backward": d,
            "ours both": c + d,
            "times faster": (a + b) / (c + d),
        }

    def errors(self) -> tuple[float, float]:
        """Largest errors of libcpab and of ours in single precision against ours in double precision, in frames."""
        space, theta = self.ours.space, self.theta.double() @ self.rotation.double()
        exact = self.points + cpa_displacement(space.tessellation, space.velocities(theta), self.points.double()).transpose(
            1, 2
        )
        with torch.no_grad():
            ours, theirs = self.points + self.run_ours().transpose(1, 2), self.run_theirs().flip(1).transpose(1, 2)
        return (theirs - exact).abs().max().item(), (ours - exact).abs().max().item()


def _text(row: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.1f}" if name == "times faster" else f"{1e3 * value:.1f}" for name, value in row.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="docs/results/cpab_speed.md")
    options = parser.parse_args(argv)
    from libcpab import Cpab

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    theirs = Cpab(list(CELLS[::-1]), zero_boundary=True)
    theirs.set_solver_params(nstepsolver=STEPS)
    compiled = getattr(sys.modules["libcpab.transformer"], "_cpu_succes" if options.device == "cpu" else "_gpu_succes")
    theta = theirs.sample_transformation_with_prior(64, length_scale=0.5, output_variance=0.3)

    rows = []
    for name, factor in (("weak", 0.5), ("usual", 1.0), ("strong", 4.0)):
        contest = Contest(theirs, factor * theta[:1], 256, options.device)
        error, own = contest.errors()
        largest = contest.run_ours().abs().max().item()
        rows.append(
            {
                "field": name,
                "largest displacement": f"{largest:.2f}",
                **_text(contest.row(options.repeats)),
                "libcpab's error": f"{error:.0e}",
                "our error": f"{own:.0e}",
            }
        )
        print(rows[-1], flush=True)
    parts = [
        "## One field, 65 536 points\n\nMilliseconds; displacement and errors in frames, errors against double precision.\n\n"
        + markdown_table(rows)
    ]

    scaling, times = [], []
    for side in (64, 128, 256, 512, 1024):
        contest = Contest(theirs, theta[:1], side, options.device)
        row = contest.row(max(options.repeats // 2, 2))
        times.append((side * side, row["ours both"]))
        scaling.append(
            {
                "points": side * side,
                **_text(row),
                "ours, nanoseconds a point": f"{1e9 * row['ours both'] / side**2:.0f}",
                "cells found, once": f"{1e3 * contest.seconds_to_locate:.1f}",
            }
        )
        print(scaling[-1], flush=True)
    (few, short), (many, long) = times[-3], times[-1]
    power = math.log(long / short) / math.log(many / few)
    parts.append(
        f"## How it grows with the points\n\n{markdown_table(scaling)}\n\nFrom {few} points to {many} our time grows as their number to "
        f"the power {power:.2f}; below, the fixed cost of some hundred small tensor operations shows. The cells "
        "in which the points of a frame begin are found once for all fields and kept; that time is not in the other columns."
    )

    batch = {
        "fields": 64,
        "points each": 42 * 42,
        **_text(Contest(theirs, theta, 42, options.device).row(max(options.repeats // 2, 2))),
    }
    print(batch, flush=True)
    parts.append(
        "## A batch of small images\n\nAs a layer of a network for distorted MNIST sees it.\n\n" + markdown_table([batch])
    )
    kind = "compiled" if compiled else "in plain PyTorch, for the package on PyPI has no C++ or CUDA sources to compile"
    device = torch.cuda.get_device_name() if options.device != "cpu" else "one CPU core, processor time"
    head = (
        f"libcpab 0.1.3, {kind}, {STEPS} steps; ours to rounding. {CELLS[0]} x {CELLS[1]} rectangles of four triangles, no velocity across "
        f"the border, {theirs.params.d} parameters. Measured: {device}, least of {options.repeats} runs of each (half as "
        "many in the later tables)."
    )
    write_page(
        options.output, "CPAB against libcpab", command_text("cpab_speed", parser, options), [head, *parts], options.seed
    )


if __name__ == "__main__":
    main()
