"""Dice against the number of training films: networks and canonicalisers trained anew on 20, 50, 100 and on all films.

``python -m docs.experiments.data_efficiency --dataset_dir DIR --weights_dir KEEP`` trains on a CPU what does not lie in
``KEEP`` yet, and writes table and figure.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from docs.experiments.figures import lung_unet
from docs.experiments.films import DEFORMATIONS, Films, load_films
from docs.experiments.lungs import interval_points, table_rows
from docs.experiments.measures import Method, plain, wrapped
from docs.experiments.plots import line_plot
from docs.experiments.tables import command_text, markdown_table, write_page
from docs.experiments.training import fit_canonicalizers, fit_published, trained
from monai_diffeo.training import SegmentationStep

__all__ = ["fit_methods"]

NOTE = (
    "Every number of films has the same, short training: baseline {0} iterations of 16 films, augmented {1}, predictor {2}, VAE {3}; a canonicaliser sees "
    "only the films that its network saw, and no label. Fewer films are evenly spaced over the list, which is sorted by finding. s/film is processor time. The bundle's own weights ([lungs.md](lungs.md)) were trained longer on the 354 films."
)


def fit_methods(
    films: Films, iterations: int, seed: int = 0, keep: str | None = None, faithful: bool = False
) -> dict[str, Method]:
    """Train networks and canonicalisers on films and give the rows of a table.

    Args:
        films: training films, labels for the networks alone.
        iterations: of the predictor; the networks take a third and two thirds.
        seed: of all random numbers.
        keep: beginning of the path of the weights' files; None keeps nothing.
        faithful: with the published method, which is slow.
    """
    data = {"image": films.images, "label": films.labels}
    third = max(iterations // 3, 1)
    baseline = trained(keep and f"{keep}_naive.pt", lung_unet, SegmentationStep(seed=seed), data, third, seed)
    augmented = trained(keep and f"{keep}_augmented.pt", lung_unet, SegmentationStep(1.0, seed), data, 2 * third, seed)
    with torch.no_grad():
        answers = torch.cat([torch.sigmoid(baseline(part)) for part in films.images.split(16)])
    fitted = fit_canonicalizers(films.images, answers, iterations, controls=10, channels=(32, 64, 128), seed=seed, keep=keep)
    rows = {"baseline": plain(baseline), "augmented": plain(augmented)}
    if faithful:
        rows["DiffeoNN faithful"] = wrapped(baseline, fit_published(films.images, iterations // 2, seed, keep))
    rows["DiffeoNN refine"] = wrapped(baseline, fitted["refine"])
    rows["DiffeoNN single pass"] = wrapped(baseline, fitted["single pass"])
    rows["augmented + DiffeoNN"] = wrapped(augmented, fitted["single pass"])
    return rows


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_dir", required=True, help="folder with manifest.csv")
    parser.add_argument("--weights_dir", default=None, help="keep the weights here, and take up those that are here")
    parser.add_argument("--counts", nargs="+", type=int, default=[20, 50, 100, 354])
    parser.add_argument("--iterations", type=int, default=900)
    parser.add_argument("--sources", nargs="+", default=["shenzhen", "montgomery"])
    parser.add_argument("--protocols", nargs="+", default=["plain", "TPS"], choices=list(DEFORMATIONS))
    parser.add_argument("--films", type=int, default=None, help="so many test films of each source, evenly spaced")
    parser.add_argument(
        "--slow_films", type=int, default=16, help="films of each source for the rows refine and faithful; 0 leaves them out"
    )
    parser.add_argument("--faithful", action="store_true", help="with the published method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="docs/results/data_efficiency.md")
    options = parser.parse_args(argv)
    third = options.iterations // 3
    parts = [NOTE.format(third, 2 * third, options.iterations, options.iterations // 2)]
    panels: dict[str, dict[str, dict]] = {}
    tests = {source: load_films(options.dataset_dir, source, "test", limit=options.films) for source in options.sources}
    train = load_films(options.dataset_dir, "shenzhen", "train")
    for count in options.counts:
        chosen = train.spread(count)
        stamp = hashlib.sha256(" ".join(chosen.ids).encode()).hexdigest()[:8]
        keep = options.weights_dir and f"{options.weights_dir}/films{count}_{stamp}_{options.iterations}_seed{options.seed}"
        methods = fit_methods(chosen, options.iterations, options.seed, keep, options.faithful)
        quick = {name: method for name, method in methods.items() if name not in ("DiffeoNN refine", "DiffeoNN faithful")}
        for source, films in tests.items():
            for rows, shown, remark in (
                (quick, films, ""),
                (methods, films.spread(options.slow_films), ", with the slow rows"),
            ):
                if not shown.ids:
                    continue
                undeformed: dict[str, Tensor] = {}
                for protocol in options.protocols:
                    measured = table_rows(shown, protocol, rows, undeformed, options.seed)
                    parts.append(
                        f"## {len(chosen.ids)} training films: {source} `test`, {protocol}, {len(shown.ids)} films{remark}\n\n"
                        + markdown_table(measured.text)
                    )
                    print(parts[-1], flush=True)
                    if not remark:
                        for name, point in interval_points(measured).items():
                            panels.setdefault(f"{source}, {protocol}", {}).setdefault(name, {})[count] = point
    figure = Path(options.output).with_suffix(".png")
    line_plot(figure, panels, "training films", log_x=True)
    parts.insert(1, f"![Dice against the number of training films]({figure.name})")
    write_page(options.output, "Data efficiency", command_text("data_efficiency", parser, options), parts, options.seed)


if __name__ == "__main__":
    main()
