"""Distorted digits by networks of equal size, with and without transformers: table 2 of Detlefsen et al. (2018)."""

import statistics
from collections.abc import Mapping

from docs.experiments.digits import BATCH, PAGES, DigitExperiment, compared
from docs.experiments.measures import with_interval
from docs.experiments.pages import markdown_table, note, section

CHOOSING = (1000, 1001)  # seeds that choose rates on val


# by distortion: rates, rising, of which each row gets the last that on val is better than the one before it; so many times
# as many iterations in the table as in the trainings that choose rates; distortions of every digit that is shown for the table
PLANS = {"RTS": ([0.004], 1, 1), "CPAB": ([0.002, 0.004, 0.008], 2, 4)}
PAPER_ROWS = ("FCN", "CNN", "ST-Affine FCN", "ST-Affine CNN", "ST-CPAB FCN", "ST-CPAB CNN", "ST-Affine+CPAB CNN")
PAPER = {
    "RTS": dict(zip(PAPER_ROWS, (0.945, 0.974, 0.986, 0.992, 0.980, 0.982, 0.996))),
    "CPAB": dict(zip(PAPER_ROWS, (0.918, 0.952, 0.964, 0.974, 0.980, 0.989, 0.993))),
}


def _write(experiment: DigitExperiment, found: Mapping[str, Mapping[str, list[dict]]], rates: Mapping, seeds: int) -> None:
    """Write table and comparisons of the runs that there are."""
    options, lines = experiment.options, []
    accuracy = {row: {name: [r["accuracy"] for r in runs] for name, runs in by.items()} for row, by in found.items()}
    for row, by in found.items():
        runs = [r for some in by.values() for r in some]
        line: dict[str, object] = {"network": row, "parameters": runs[0]["parameters"]}
        for name in by:
            line[f"rate, {name}"] = f"{rates[row, name]:g}"
            line[name] = with_interval(accuracy[row][name])
            line[f"paper, {name}"] = PAPER[name].get(row, "")
        if "folded" in runs[0]:
            line["folded samples"] = f"{sum(r['folded_samples'] for r in runs)} of {sum(r['samples'] for r in runs)}"
        lines.append({**line, "ms an iteration": f"{1e3 * statistics.median(r['seconds'] for r in runs):.0f}"})
    asked = [
        compared(f"{name}: {first} before {other}", accuracy[first][name], accuracy[other][name])
        for name in options.distortions
        for first, others in _claims(name).items()
        for other in others
        if {first, other} <= set(accuracy)
    ]
    shown = len(experiment.digits(options.split).ids)
    text, ranks, chosen = note("distorted_mnist", options=options, plans="PLANS", seeds=seeds, shown=shown, choosing=CHOOSING)
    text = text.replace("PLANS", _plans(options, chosen))
    experiment.write("Distorted MNIST", [text, markdown_table(lines), section(ranks, asked)], seeds=seeds)


def _plans(options, chosen: str) -> str:
    """How long the networks of each distortion are trained, at which rates, and on what they are measured."""
    lines = []
    for name in options.distortions:
        rates, longer, draws = PLANS[name]
        rates = [f"{rate:g}" for rate in options.rates or rates]
        rate = chosen.replace("RATES", ", ".join(rates)) if len(rates) > 1 else f"{rates[0]} for all rows"
        trained = f"{longer * options.iterations} iterations of {BATCH}; rate: {rate}"
        times = "once" if draws == 1 else f"{draws} times"
        lines.append(f"- {name}: {trained}; each digit of `{options.split}` distorted {times}.")
    return "\n".join(lines)


def _claims(distortion: str) -> dict[str, list[str]]:
    """What the paper's table says: which row is at least as accurate as which others."""
    first, second = "ST-Affine+CPAB CNN", "ST-CPAB CNN" if distortion == "CPAB" else "ST-Affine CNN"
    rows = list(PAGES["distorted_mnist"].rows)
    singles = [row for row in rows if row.startswith("ST-") and row not in (first, second)]
    return {first: [row for row in rows if row != first], second: singles}


def main(argv: list[str] | None = None) -> None:
    defaults = {"iterations": 4000, "distortions": list(PLANS), "rates": [float]}
    experiment = DigitExperiment("distorted_mnist", __doc__, argv, seeds=3, **defaults)
    options = experiment.options

    def right(row: str, name: str, rate: float) -> float:
        return sum(experiment.run(row, seed, rate, "val", distortion=name)["accuracy"] for seed in CHOOSING)

    def best_rate(row: str, name: str) -> float:
        """The last of the rates that still was better on val than the one before it."""
        best, *larger = options.rates or PLANS[name][0]
        before = right(row, name, best) if larger else 0.0
        for rate in larger:
            if (now := right(row, name, rate)) <= before:
                break
            best, before = rate, now
        return best

    rates = {(row, name): best_rate(row, name) for name in options.distortions for row in options.rows}
    found: dict[str, dict[str, list[dict]]] = {row: {name: [] for name in options.distortions} for row in options.rows}
    for seed in range(options.seeds):
        for name in options.distortions:
            for row in options.rows:
                run = experiment.run(row, seed, rates[row, name], None, *PLANS[name][1:], distortion=name)
                found[row][name].append(run)
        _write(experiment, found, rates, seed + 1)


if __name__ == "__main__":
    main()
