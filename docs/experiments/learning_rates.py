"""How far the learning rate may be off: affine maps and thin-plate splines against diffeomorphic affine maps and CPAB."""

import statistics
from pathlib import Path

from docs.experiments.digits import DigitExperiment, compared
from docs.experiments.pages import line_plot, markdown_table, note, section

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def _write(experiment: DigitExperiment, found: dict[str, dict[float, list[dict]]], seeds: int) -> None:
    """Write figure and table of the runs that there are."""
    options, lines, curves, means = experiment.options, [], {}, {}
    for row, by_rate in found.items():
        accuracy = {rate: [r["accuracy"] for r in runs] for rate, runs in by_rate.items()}
        curves[row] = {rate: (statistics.fmean(values), min(values), max(values)) for rate, values in accuracy.items()}
        means[row] = [statistics.fmean(values) for values in zip(*accuracy.values())]
        runs = [r for some in by_rate.values() for r in some]
        folded, samples = (sum(r.get(key, 0) for r in runs) for key in ("folded_samples", "samples"))
        spread = " ({1:.3f}, {2:.3f})" if seeds > 1 else ""
        line = {"network": row, **{f"{rate:g}": ("{0:.3f}" + spread).format(*point) for rate, point in curves[row].items()}}
        line["mean"] = f"{statistics.fmean(value for value, _, _ in curves[row].values()):.3f}"
        line["failed"] = f"{sum('failed' in r for r in runs)} of {len(runs)}"
        lines.append(line | {"folded samples": f"{folded} of {samples}" if row != "no transformer" else ""})
    figure = Path(options.output).with_suffix(".png")
    title = f"rotated digits, {options.iterations} iterations"
    line_plot(figure, {title: curves}, "learning rate (Adam, constant)", "accuracy", log_x=True)
    asked = [
        compared(f"{ours}, before {other}", means[ours], means[other])
        for ours in ("diffeomorphic affine", "CPAB, 4 x 4")
        for other in ("affine", "TPS, 16 points")
        if {ours, other} <= set(means)
    ]
    texts = note("learning_rates", options=options, seeds=seeds, shown=len(experiment.digits(options.split).ids))
    parts = [texts[0], f"![Accuracy against learning rate]({figure.name})", markdown_table(lines)]
    experiment.write("Learning rates", parts + ([section(texts[1], asked)] if asked else []), seeds=seeds)


def main(argv: list[str] | None = None) -> None:
    experiment = DigitExperiment("learning_rates", __doc__, argv, seeds=3, iterations=200, rates=RATES)
    options = experiment.options
    found: dict[str, dict[float, list[dict]]] = {row: {rate: [] for rate in options.rates} for row in options.rows}
    for seed in range(options.seeds):
        for row in options.rows:
            for rate in options.rates:
                found[row][rate].append(experiment.run(row, seed, rate))
        _write(experiment, found, seed + 1)


if __name__ == "__main__":
    main()
