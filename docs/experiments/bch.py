"""Where the Baker-Campbell-Hausdorff series helps, and where it stops, against flows of formulas that need no lattice."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from docs.experiments.pages import Experiment, note, section
from monai_diffeo.flow import bch, bch_sequence, compose, exp, exp_sequence, jacobian
from monai_diffeo.flow.bch import series
from monai_diffeo.flow.grid import voxel_grid
from monai_diffeo.flow.warp import sample
from tests.flow.exact_flows import Formula, SmoothVelocity, exact_bracket, exact_flow, slope

SIZE, MARGIN, ORDERS = (128, 128), 8, (1, 2, 3, 4)


def exact_growth(sizes: Sequence[float], seeds: int, orders: Sequence[int] = ORDERS) -> dict[int, float]:
    """Power with which the error of each order grows with the size of the fields; brackets and flows are exact."""
    points = voxel_grid([n // 16 for n in SIZE], dtype=torch.float64) * 16 + 7.5
    errors: dict[int, list[float]] = {order: [] for order in orders}
    for size in sizes:
        pairs = [_fields(2, size, seed) for seed in range(seeds)]
        exact = [exact_flow(pair, points, 8) for pair in pairs]
        for order, means in errors.items():
            flows = (exact_flow([series(v, w, order, exact_bracket)], points, 8) for v, w in pairs)
            means.append(_mean([(flow - right).norm(dim=0).mean().item() for flow, right in zip(flows, exact)]))
    return {order: slope(sizes, means) for order, means in errors.items()}


def two_fields(sizes: Sequence[float], seeds: int) -> list[dict[str, str]]:
    """Errors of the series of each order, a row for each size of the two fields; means over pairs of fields."""
    grid, rows = voxel_grid(SIZE, dtype=torch.float64), []
    for size in sizes:
        errors, slopes, swapped = defaultdict(list), [], []
        for seed in range(seeds):
            v, w = _fields(2, size, seed)
            exact = exact_flow([v, w], grid)[None]
            a, b = v(grid)[None], w(grid)[None]
            slopes.append(torch.linalg.matrix_norm(jacobian(a).movedim((1, 2), (-2, -1)), 2).max().item())
            swapped.append(_error(exact_flow([w, v], grid)[None], exact))
            errors["composed flows"].append(_error(compose(exp(a, 10), exp(b, 10)), exact))
            for order in ORDERS:
                z = bch(a, b, order)
                errors[f"order {order}"].append(_error(exact_flow([_interpolated(z)], grid)[None], exact))
            errors["order 4 by exp()"].append(_error(exp(z, 10), exact))
        row = {"largest speed": f"{size:g}", "largest slope": f"{_mean(slopes):.2f}", "swapped": f"{_mean(swapped):.4f}"}
        best = min(ORDERS, key=lambda order: _mean(errors[f"order {order}"]))
        rows.append({**row, **{name: f"{_mean(values):.2g}" for name, values in errors.items()}, "best order": str(best)})
    return rows


def many_fields(total: float, counts: Sequence[int], seeds: int) -> list[dict[str, str]]:
    """T pieces whose largest speeds add up to ``total``: chain and tree, composed and summed."""
    grid, rows = voxel_grid(SIZE, dtype=torch.float64), []
    for count in counts:
        errors = defaultdict(list)
        for seed in range(seeds):
            velocities = _fields(count, total / count, seed)
            exact = exact_flow(velocities, grid)[None]
            fields = torch.stack([v(grid) for v in velocities])[None]
            for scheme in ("chain", "tree"):
                errors[f"composed, {scheme}"].append(_error(exp_sequence(fields, 10, scheme), exact))
            for order in ORDERS:
                for scheme in ("chain", "tree"):
                    ddf = exp(bch_sequence(fields, order, scheme), 10)
                    errors[f"order {order}, {scheme}"].append(_error(ddf, exact))
        rows.append({"pieces T": str(count), **{name: f"{_mean(values):.2g}" for name, values in errors.items()}})
    return rows


def _fields(count: int, size: float, seed: int) -> list[Formula]:
    draw = torch.Generator().manual_seed(seed)
    return [SmoothVelocity.random(SIZE, draw) * size for _ in range(count)]


def _interpolated(field: Tensor, finer: int = 4) -> Callable[[Tensor], Tensor]:
    """A sampled velocity anywhere, by splines of order 5 on a finer lattice: what is left is the series' error."""
    zoom = [(finer * (n - 1) + 1) / n for n in field.shape[2:]]
    fine = torch.from_numpy(np.stack([ndimage.zoom(f, zoom, order=5, mode="nearest") for f in field[0].numpy()]))[None]
    return lambda points: sample(fine, finer * points[None])[0]


def _error(ddf: Tensor, exact: Tensor) -> float:
    """Mean distance in the interior, voxels."""
    inside = (slice(None), *[slice(MARGIN, n - MARGIN) for n in SIZE])
    return (ddf - exact).norm(dim=1)[inside].mean().item()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(argv: list[str] | None = None) -> None:
    """Measure everything and write the page. ``--fields``: pairs of fields a row."""
    experiment = Experiment("bch", __doc__, argv, fields=8)
    count = experiment.options.fields
    two = two_fields([0.5, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64], count)
    small = [row for row in two if 2 <= float(row["largest speed"]) <= 12]
    speeds = [float(row["largest speed"]) for row in small]
    exact = exact_growth([1.0, 2.0, 4.0], min(count, 2))
    growth = {
        "of the formulas, speeds 1 to 4, two pairs": {k: f"{power:.2f}" for k, power in exact.items()},
        "of samples, speeds 2 to 12": {k: f"{slope(speeds, [float(row[f'order {k}']) for row in small]):.2f}" for k in ORDERS},
        "theory": {k: str(k + 1) for k in ORDERS},
    }
    powers = [{"brackets": name, **{f"order {k}": text for k, text in row.items()}} for name, row in growth.items()]
    falling = [row for row in two if all(float(row[f"order {k}"]) >= float(row[f"order {k + 1}"]) for k in (1, 2, 3))]
    stop = falling[-1] if falling else two[0]
    beyond = next((row for row in two if float(row["largest speed"]) > float(stop["largest speed"])), stop)
    composed = next((row for row in two if float(row["order 4 by exp()"]) > 1.5 * float(row["composed flows"])), two[-1])
    ends = {"stop": stop, "beyond": beyond, "composed": composed, "least": beyond["order " + beyond["best order"]]}
    text, grows, brackets, stops, tree = note("bch", **ends)
    parts = [text, section(f"## Two fields, {count} pairs a row", two), section(grows, powers), brackets, stops]
    for total in (4.0, 16.0):
        heading = f"## T pieces whose speeds add up to {total:g} voxels, {count} sequences a row"
        parts.append(section(heading, many_fields(total, (2, 4, 8), count)))
    experiment.write("Baker-Campbell-Hausdorff series", [*parts, tree], seed=0)


if __name__ == "__main__":
    main()
