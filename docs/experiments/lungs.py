"""The lung tables: every row on every set, with intervals and paired differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from docs.experiments.film_data import load_films, segmentation_network
from docs.experiments.measures import bootstrap_interval, interval_points, measure_set, plain, table_rows, tta_only, wrapped
from docs.experiments.pages import Experiment, judged, line_plot, note, section
from monai_diffeo.canonicalize import load_canonicalizer

SOURCES = ("shenzhen", "montgomery", "paediatric_gz", "covid_gb")
GROWING = {"plain": 0, "TPS 15°/0.06": 15, "TPS": 30, "TPS 45°/0.18": 45, "TPS 60°/0.25": 60}  # largest rotation, degrees
BASELINE, AUGMENTED, SINGLE, BOTH = "baseline", "augmented baseline", "DiffeoNN single pass", "augmented baseline + DiffeoNN"
ROWS = (BASELINE, f"{BASELINE}, 8 TTA samples", AUGMENTED, f"{AUGMENTED}, 8 TTA samples", SINGLE, BOTH)


def methods(bundle: str | Path, rows: Sequence[str]) -> dict:
    """The methods that a table compares, by the name of its row."""
    models = Path(bundle) / "models"
    files = {BASELINE: models / "baselines" / "baseline.pt", AUGMENTED: models / "baselines" / "augmented.pt"}
    networks = {name: segmentation_network(file) for name, file in files.items()}
    found = {}
    for row in rows:
        network = networks[AUGMENTED if row.startswith(AUGMENTED) else BASELINE]
        if "DiffeoNN" in row:
            mode = "single_pass" if row == BOTH else row.removeprefix("DiffeoNN ").replace(" ", "_")
            found[row] = wrapped(network, load_canonicalizer(models / "energy", mode))
        else:
            found[row] = tta_only(network) if row.endswith("8 TTA samples") else plain(network)
    return found


def asked(dice: Mapping[tuple[str, str], Mapping[str, Tensor]]) -> list[dict[str, str]]:
    """The figures that were asked for beside those that were measured: ``dice`` of each film, by (source, protocol) and row."""
    rows = []
    for (source, protocol), found in dice.items():
        if not {BASELINE, AUGMENTED, SINGLE, BOTH} <= set(found):
            continue
        mean = {row: values.mean().item() for row, values in found.items()}
        base, augmented, seen = mean[BASELINE], mean[AUGMENTED], source in ("shenzhen", "montgomery")
        single = {
            ("shenzhen", "TPS/2"): (f"{AUGMENTED} - 0.005", augmented - 0.005),
            ("montgomery", "TPS/2"): (f"{AUGMENTED} + 0.015", augmented + 0.015),
            ("shenzhen", "TPS"): (f"{BASELINE} + 0.85 ({AUGMENTED} - {BASELINE})", base + 0.85 * (augmented - base)),
            ("montgomery", "TPS"): (AUGMENTED, augmented),
        }
        better = f"the better of {BASELINE} and {AUGMENTED}, interval above {BASELINE}", max(base, augmented)
        single[source, "plain"] = (f"{BASELINE} - 0.003", base - 0.003) if seen else better
        clear = protocol != "plain" or seen or bootstrap_interval(found[SINGLE] - found[BASELINE])[0] > 0
        above = protocol == "TPS" or (protocol == "plain" and not seen)
        both = (AUGMENTED, augmented) if above else (f"{AUGMENTED} - 0.002", augmented - 0.002)
        goals = [(SINGLE, *single[source, protocol], clear)] if (source, protocol) in single else []
        for row, words, value, met in [*goals, (BOTH, *both, True)]:
            text = f"{words} = {value:.4f} or better"
            rows.append(judged(f"{row}, {source}, {protocol}", text, f"{mean[row]:.4f}", met and mean[row] >= value))
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure the tables and write the page."""
    defaults = {"bundle": "bundles/cxr_lung_segmentation", "split": "test", "sources": SOURCES, "rows": ROWS, "films": int}
    protocols = ("plain", "TPS/2", "TPS")
    experiment = Experiment("lungs", __doc__, argv, dataset_dir=str, protocols=protocols, title="Lungs", seed=0, **defaults)
    options = experiment.options
    torch.manual_seed(options.seed)
    rows = methods(options.bundle, options.rows)
    parts, curves, dice = note("lungs")[: 2 if "DiffeoNN faithful" in rows else 1], {}, {}
    for source in options.sources:
        films, undeformed = load_films(options.dataset_dir, source, options.split, limit=options.films), {}
        for protocol in options.protocols:
            measured = measure_set(films, protocol, rows, undeformed, options.seed)
            heading = f"## {source} `{options.split}`, {protocol}, {len(films.ids)} films"
            parts.append(section(heading, table_rows(measured)))
            dice[source, protocol] = {name: row["dice"] for name, row in measured.items()}
            for name, point in interval_points(measured).items() if protocol in GROWING else ():
                curves.setdefault(source, {}).setdefault(name, {})[GROWING[protocol]] = point
    if goals := asked(dice):
        parts.append(section("## Asked and measured", goals))
    if set(GROWING) <= set(options.protocols):
        figure = Path(options.output).with_suffix(".png")
        line_plot(figure, curves, "largest rotation of the TPS protocol, degrees (jitter grows with it, 0 to 0.25)")
        parts.insert(1, f"![Dice under growing deformation]({figure.name})")
    experiment.write(options.title, parts, options.seed)


if __name__ == "__main__":
    main()
