"""Dice against the number of training films: networks and canonicalisers trained anew on 20, 50, 100 and on all films."""

import hashlib
from pathlib import Path

from docs.experiments.film_data import load_films, lung_unet
from docs.experiments.measures import interval_points, measure_set, table_rows
from docs.experiments.pages import Experiment, line_plot, note, section
from docs.experiments.training import fit_methods


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, measure, write the page. ``--slow_films``: so many of each source for the slow rows."""
    defaults = {"counts": (20, 50, 100, 354), "iterations": 900, "sources": ("shenzhen", "montgomery")}
    defaults |= {"protocols": ("plain", "TPS"), "films": int, "slow_films": 16, "seed": 0}
    experiment = Experiment("data_efficiency", __doc__, argv, dataset_dir=str, weights_dir=str, **defaults)
    options = experiment.options
    third, panels = options.iterations // 3, {}
    parts = note("data_efficiency", options=options, third=third, two_thirds=2 * third, half=options.iterations // 2)
    tests = {source: load_films(options.dataset_dir, source, "test", limit=options.films) for source in options.sources}
    train = load_films(options.dataset_dir, "shenzhen", "train")
    for count in options.counts:
        chosen = train.spread(count)
        stamp = hashlib.sha256(" ".join(chosen.ids).encode()).hexdigest()[:8]
        keep = options.weights_dir and f"{options.weights_dir}/films{count}_{stamp}_{options.iterations}_seed{options.seed}"
        data, iterations = {"image": chosen.images, "label": chosen.labels}, (options.iterations, max(third, 1))
        methods, _ = fit_methods(data, lung_unet, iterations, options.seed, keep, controls=10, channels=(32, 64, 128))
        quick = {name: method for name, method in methods.items() if name != "DiffeoNN refine"}
        for source, films in tests.items():
            few = films.spread(options.slow_films)
            for rows, shown, remark in ((quick, films, ""), (methods, few, ", with the slow rows")):
                undeformed: dict = {}
                for protocol in options.protocols if shown.ids else ():
                    measured = measure_set(shown, protocol, rows, undeformed, options.seed)
                    what = f"{len(chosen.ids)} training films: {source} `test`, {protocol}, {len(shown.ids)} films{remark}"
                    parts.append(section(f"## {what}", table_rows(measured)))
                    for name, point in interval_points(measured).items() if not remark else ():
                        panels.setdefault(f"{source}, {protocol}", {}).setdefault(name, {})[count] = point
    figure = Path(options.output).with_suffix(".png")
    line_plot(figure, panels, "training films", log_x=True)
    parts.insert(1, f"![Dice against the number of training films]({figure.name})")
    experiment.write("Data efficiency", parts, options.seed)


if __name__ == "__main__":
    main()
