"""Rotated digits: thin-plate splines against dense fields, integrated or not: table 1 of the template transformer paper."""

import statistics

from docs.experiments.digits import DigitExperiment, compared
from docs.experiments.measures import with_interval
from docs.experiments.pages import markdown_table, note, section

RATES, CHOOSING = (1e-3, 3e-3, 8e-3), 1000
OURS = "dense field, diffeomorphic"
PAPER = (0.9621, 0.9660, 0.9592, 0.9663, 0.9649, 0.9612, 0.9730, 0.9734, 0.9645)  # accuracy of every row,
PAPER_SPREAD = (0.0039, 0.0046, 0.0040, 0.0032, 0.0029, 0.0043, 0.0052, 0.0055, 0.0048)  # its standard deviation,
PAPER_FOLDED = ("", "0.03", "0.03", "0.04", "0.05", "0.07", "0.28", "0.22", "0.11")  # negative Jacobians, per cent


def _write(experiment: DigitExperiment, found: dict[str, list[dict]], rates: dict[str, float], seeds: int) -> None:
    """Write table and comparisons of the runs that there are."""
    options, lines, accuracy = experiment.options, [], {row: [r["accuracy"] for r in runs] for row, runs in found.items()}
    paper = dict(zip(experiment.page.rows, zip(PAPER, PAPER_SPREAD, PAPER_FOLDED)))
    for row, runs in found.items():
        line = {"network": row, "parameters": runs[0]["parameters"], "rate": f"{rates[row]:g}"}
        line |= {"accuracy": with_interval(accuracy[row]), "paper": f"{paper[row][0]:.4f} ± {paper[row][1]:.4f}"}
        if "folded" in runs[0]:
            line["negative Jacobians"] = f"{100 * statistics.fmean(r['folded'] for r in runs):.4f} %"
            line["paper "] = paper[row][2]
            line["digits with one"] = f"{100 * sum(r['folded_samples'] for r in runs) / sum(r['samples'] for r in runs):.2f} %"
        lines.append({**line, "ms an iteration": f"{1e3 * statistics.median(r['seconds'] for r in runs):.0f}"})
    asked = [compared(f"{OURS}, before {row}", accuracy[OURS], accuracy[row]) for row in found if row != OURS and OURS in found]
    given, shown = ", ".join(f"{rate:g}" for rate in options.rates), len(experiment.digits(options.split).ids)
    text, ranks = note("rotated_mnist", options=options, rates=given, seeds=seeds, shown=shown, choosing=CHOOSING)
    experiment.write("Rotated MNIST", [text, markdown_table(lines), section(ranks, asked)], seeds=seeds)


def main(argv: list[str] | None = None) -> None:
    experiment = DigitExperiment("rotated_mnist", __doc__, argv, seeds=5, iterations=400, rates=RATES)
    options = experiment.options

    rates = {
        row: max(options.rates, key=lambda rate: experiment.run(row, CHOOSING, rate, "val")["accuracy"]) for row in options.rows
    }
    found: dict[str, list[dict]] = {row: [] for row in options.rows}
    for seed in range(options.seeds):
        for row in options.rows:
            found[row].append(experiment.run(row, seed, rates[row]))
        _write(experiment, found, rates, seed + 1)


if __name__ == "__main__":
    main()
