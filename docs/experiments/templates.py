"""Template transformers on real lungs: tables 2, 3 and 4 of the paper, training included.

``python -m docs.experiments.templates --dataset_dir DIR`` trains what is not in ``--weights_dir`` yet (about an hour and a half of one CPU
core), takes the bundles' weights for the rest, and writes the page.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import Dataset
from monai.metrics import compute_hausdorff_distance
from scipy.stats import spearmanr
from torch import Tensor, nn

from docs.experiments.figures import segmentation_network
from docs.experiments.films import Films, deform, load_films, prepare_films
from docs.experiments.measures import bootstrap_interval, dice_of, with_interval
from docs.experiments.tables import command_text, markdown_table, write_page
from docs.experiments.template_recipes import (
    ABLATION,
    BUNDLE,
    COMPARED,
    SHORT,
    VARIED,
    at_size,
    bundle_backbone,
    trained_direct,
    trained_template,
)
from monai_diffeo.metrics import betti_numbers, connected_components
from monai_diffeo.networks import ShapePrior, TemplateTransformer, load_weights
from monai_diffeo.networks.template.backbone import add_uncertainty_bias
from monai_diffeo.radiograph.manifest import read_manifest
from monai_diffeo.transforms import SeparateLungsd

__all__ = ["Found", "bundle_template", "measure_found", "plain_masks", "template_masks", "timing"]

SOURCES = ("shenzhen", "montgomery", "paediatric_gz", "covid_gb")
PROTOCOLS = ("plain", "TPS/2", "TPS")
DIRECT, VARIED_FILMS, OURS = "U-Net, deformed films", "U-Net, varied films", "template, deformed films (the bundle)"
DIRECT_LARGEST, LARGEST, BIASED = (
    f"{DIRECT}, two largest parts",
    f"{VARIED_FILMS}, two largest parts",
    f"{VARIED_FILMS}, leaning",
)
BASELINES = (DIRECT, DIRECT_LARGEST, VARIED_FILMS, LARGEST)
JUDGED = (*BASELINES, BIASED, OURS)  # see all films
UNCERTAINTY_BIAS = 4.0  # of the U-Net: of 4, 8 and 12 the one that kept Dice within 0.01 of DIRECT's on every set of val
PARTS = " and ".join(str(epochs) for epochs, _ in VARIED)  # of the U-Net on varied films
NOTE = """Each film has two lungs; `components` counts the parts of the thresholded answer, with neighbours across an edge of a pixel; *exactly 2* is
the share of films in which they are two, counted with neighbours across corners too. `Hausdorff` is MONAI's, of the largest distance, in
pixels of the frame of 128x128. `folds` is the share of pixels with a Jacobian determinant of at most 0, in percent, and the share of
films that have such a pixel or a triangle turned over; for guarded networks after the guard. `guard` is the share of films in which it
had to read another level or to calm the velocities. Brackets are 95 % bootstrap intervals of the mean. Masks of paediatric_gz include the
lung behind heart and diaphragm, those of shenzhen and montgomery do not; every row's Dice is bounded by that gap."""


@dataclass
class Found:
    """Answers of a method: masks ``(N, 1, *S)``; of a template also the folded share, whether any cell is not proved fold-free, and
    whether the guard acted, each ``(N,)``, else None; and the agreement with the direct answer where there is one."""

    masks: Tensor
    folding_fraction: Tensor | None = None
    broken: Tensor | None = None
    acted: Tensor | None = None
    agreement: Tensor | None = None


Masker = Callable[[Tensor], Found]


def plain_masks(network: nn.Module, largest: int | None = None, uncertainty_bias: float = 0.0) -> Masker:
    """Masks of a network with one logit; ``largest`` keeps that many largest components; ``uncertainty_bias`` as in :func:`add_uncertainty_bias`."""

    def run(images: Tensor) -> Found:
        with torch.no_grad():
            masks = add_uncertainty_bias(network(images), uncertainty_bias) > 0
        return Found(masks if largest is None else torch.stack([_keep_largest(m, largest) for m in masks]))

    return run


def _keep_largest(mask: Tensor, count: int) -> Tensor:
    labels, _ = connected_components(mask[0].numpy())
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = np.argsort(-sizes, kind="stable")[:count]
    return torch.from_numpy(np.isin(labels, kept[sizes[kept] > 0]))[None]


def template_masks(network: TemplateTransformer, guard: bool | None = None, size: int | None = None) -> Masker:
    """Masks of a template transformer, all shapes in one; ``guard`` overrides the network's own; ``size`` is the frame it works on if that
    is not the images'."""

    def run(images: Tensor) -> Found:
        before = network.guard
        network.guard = before if guard is None else guard
        try:
            with torch.no_grad():
                shown = images if size is None else at_size({"image": images, "label": images}, size)["image"]
                result = network.segment(shown)
                odds = result.log_odds
                if size is not None:  # the same level set, asked on the larger frame
                    level = result.level.view(-1, *[1] * (odds.ndim - 1))
                    odds = network.warp_prior(result.ddf, images.shape[2:]) - level
        finally:
            network.guard = before
        acted = None if result.intact is None else (result.factor != 1) | (result.level != 0)
        return Found(
            (odds > 0).any(1, keepdim=True),
            result.folding_fraction,
            result.nonpositive_cell_fraction > 0,
            acted,
            result.agreement,
        )

    return run


def bundle_template(weights: str | Path) -> TemplateTransformer:
    """The bundle's template transformer with weights, in eval mode."""
    prior = ShapePrior([[-0.1, -0.4], [-0.1, 0.4]], [[0.65, 0.3], [0.65, 0.3]], 4.0, "full")
    network = TemplateTransformer(bundle_backbone(), prior, **BUNDLE)
    return load_weights(network, weights)


def measure_found(found: Found, labels: Tensor, shapes: int = 2) -> dict[str, Tensor]:
    """All measures by image, each ``(N,)``: dice, hausdorff, components, exact (are they ``shapes``?), holes (tunnels), in space cavities,
    and folding, broken, acted, agreement of templates."""
    masks = found.masks.float()
    farthest = float(np.linalg.norm([n - 1 for n in masks.shape[2:]]))
    distance = compute_hausdorff_distance(masks, labels, include_background=True).flatten()
    numbers = [betti_numbers(m[0].numpy()) for m in masks]
    loose = [connected_components(m[0].numpy(), "full")[1] for m in masks]
    parts = torch.tensor([n[0] for n in numbers])
    row = {
        "dice": dice_of(masks, labels),
        "hausdorff": torch.nan_to_num(distance, nan=farthest, posinf=farthest).float(),
        "components": parts.float(),
        "exact": ((parts == shapes) & (torch.tensor(loose) == shapes)).float(),
        "holes": torch.tensor([float(n[1]) for n in numbers]),
    }
    if masks.ndim == 5:
        row["cavities"] = torch.tensor([float(n[2]) for n in numbers])
    for name in ("folding_fraction", "broken", "acted", "agreement"):
        if (value := getattr(found, name)) is not None:
            row[name] = value.float()
    return row


def run_method(method: Masker, films: Films, batch_size: int = 16, shapes: int = 2) -> dict[str, Tensor]:
    """:func:`measure_found` over films in batches."""
    parts = [
        measure_found(method(i), l, shapes) for i, l in zip(films.images.split(batch_size), films.labels.split(batch_size))
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def table_row(name: str, row: Mapping[str, Tensor]) -> dict[str, str]:
    """One line of table 2."""
    low, high = bootstrap_interval(row["dice"])
    out = {
        "method": name,
        "films": str(len(row["dice"])),
        "Dice": f"{row['dice'].mean():.4f} [{low:.3f}, {high:.3f}]",
        "p10": f"{row['dice'].quantile(0.1):.3f}",
        "Hausdorff": f"{row['hausdorff'].mean():.2f} ± {row['hausdorff'].std():.2f}",
        "components": f"{row['components'].mean():.2f} ({row['components'].min():.0f} to {row['components'].max():.0f})",
        "exactly 2": f"{row['exact'].mean():.1%}",
        "holes": f"{row['holes'].mean():.2f}",
        "folds": "",
        "guard": "",
    }
    if "folding_fraction" in row:
        out["folds"] = f"{100 * row['folding_fraction'].mean():.3f} %, {row['broken'].mean():.1%} of films"
        out["guard"] = f"{row['acted'].mean():.1%}" if "acted" in row else ""
    return out


def sureness(row: Mapping[str, Tensor]) -> dict[str, str]:
    """How well the agreement with the direct answer tells good films from bad: its rank correlation with Dice, and the Dice of the fifth that
    agrees least."""
    dice, agreement = row["dice"], row["agreement"]
    least = agreement.argsort()[: max(len(dice) // 5, 1)]
    return {
        "mean agreement": f"{agreement.mean():.3f}",
        "rank correlation with Dice": f"{spearmanr(agreement, dice).statistic:.2f}",
        "Dice of all": f"{dice.mean():.3f}",
        "Dice of the fifth that agrees least": f"{dice[least].mean():.3f}",
    }


def timing(networks: Mapping[str, Callable[[Tensor], object]], images: Tensor, repeats: int = 40) -> dict[str, float]:
    """Median seconds of a batch, one network after another in every round, so that all meet the same machine; CPU time of this thread."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad():
        for turn in range(repeats + 3):
            for name, network in networks.items():
                began = time.thread_time()
                network(images)
                if turn >= 3:
                    seconds[name].append(time.thread_time() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def time_table(direct: nn.Module, template: TemplateTransformer, images: Tensor) -> tuple[list[dict[str, str]], float]:
    """Table 4: milliseconds of a film for one film and for eight at once; and the ratio of the bundle's network to the U-Net, one film."""
    torch.manual_seed(0)
    size, prior = images.shape[-1], template.prior

    def variant(**settings) -> nn.Module:
        settings = {**BUNDLE, **settings}
        return TemplateTransformer(bundle_backbone(settings["pieces"]), prior, **settings).eval()

    unguarded = copy.copy(template)
    unguarded.guard = False
    networks: dict[str, Callable[[Tensor], object]] = {
        "U-Net": direct,
        "template, non-diffeomorphic field": variant(diffeomorphic=False),
        "template, two fields": variant(pieces=2, control_size=16, limit=0.2),
        "template, four fields, guard off": unguarded,
        "template, four fields (the bundle)": template,
    }
    one, eight = timing(networks, images[:1]), timing(networks, images[:8], 12)
    rows = [
        {
            "method": name,
            f"1 film of {size}x{size}": f"{1e3 * one[name]:.2f} ms",
            "ratio": f"{one[name] / one['U-Net']:.2f}",
            "8 films": f"{1e3 * eight[name] / 8:.2f} ms a film",
            "ratio, 8 films": f"{eight[name] / eight['U-Net']:.2f}",
        }
        for name in networks
    ]
    return rows, one["template, four fields (the bundle)"] / one["U-Net"]


def lung_labels(dataset_dir: str | Path, source: str, split: str, films: int | None = None) -> dict[str, Tensor]:
    """Films and labels with one channel a lung, for training."""
    keys = ["image", "label"]
    prepare = prepare_films(keys, before_resizing=[SeparateLungsd("label")])
    items = list(Dataset(read_manifest(dataset_dir, split, [source], limit=films), prepare))
    return {key: torch.stack([item[key] for item in items]) for key in keys}


def figures(measured: Mapping[tuple[str, str], Mapping[str, Mapping[str, Tensor]]], ratio: float) -> list[dict[str, str]]:
    """What was asked of the bundle's network, over all sets, against direct U-Nets: the lung bundle's, and the one on varied films,
    as they answer and with all but their two largest parts removed."""
    ours = {key: rows[OURS] for key, rows in measured.items()}
    every = {name: torch.cat([row[name] for row in ours.values()]) for name in ("folding_fraction", "broken", "exact")}

    def line(what: str, asked: str, found: str, met: bool) -> dict[str, str]:
        return {"what": what, "asked": asked, "measured": found, "met": "yes" if met else "**no**"}

    def distance(baseline: str) -> dict[str, str]:
        means = {
            key: (measured[key][baseline]["hausdorff"].mean().item(), row["hausdorff"].mean().item())
            for key, row in ours.items()
        }
        worse = [f"{s} {p} ({theirs:.1f} to {mine:.1f})" for (s, p), (theirs, mine) in means.items() if mine >= theirs]
        found = f"below on {len(means) - len(worse)} of {len(means)} sets" + ("; above on " + ", ".join(worse) if worse else "")
        return line(f"Hausdorff distance against: {baseline}", "below on every set", found, not worse)

    def overlap(baseline: str) -> dict[str, str]:
        gaps = {key: (row["dice"] - measured[key][baseline]["dice"]).mean().item() for key, row in ours.items()}
        low, lowest = [f"{s} {p} {gap:+.4f}" for (s, p), gap in gaps.items() if gap < -0.01], min(gaps, key=gaps.get)
        found = (
            "further below on " + ", ".join(low) if low else "within on all"
        ) + f"; furthest below {' '.join(lowest)} {gaps[lowest]:+.4f}"
        return line(f"Dice against: {baseline}", "within 0.01 on every set (paper loses 0.024)", found, not low)

    count = len(every["exact"])
    return [
        line(
            "folded pixels and triangles",
            "0 in every film (paper 0.15 %)",
            f"{int(((every['folding_fraction'] > 0) | (every['broken'] > 0)).sum())} of {count} films",
            bool((every["folding_fraction"] == 0).all() and (every["broken"] == 0).all()),
        ),
        line(
            "films with exactly two components",
            "all (paper 4.75 components instead of 1)",
            f"{int(every['exact'].sum())} of {count}",
            bool((every["exact"] == 1).all()),
        ),
        *(distance(baseline) for baseline in BASELINES),
        *(overlap(baseline) for baseline in BASELINES),
        line("inference time", "at most 1.25 of the U-Net's", f"{ratio:.2f}", ratio <= 1.25),
    ]


def differences(
    measured: Mapping[tuple[str, str], Mapping[str, Mapping[str, Tensor]]], name: str, places: int
) -> list[dict[str, str]]:
    """By how much the bundle's network differs from each direct U-Net in a measure, film by film: means with 95 % bootstrap intervals."""

    def difference(ours: Tensor, theirs: Tensor) -> str:
        low, high = bootstrap_interval(ours - theirs)
        return f"{(ours - theirs).mean():+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]"

    return [
        {
            "set": f"{s} {p}",
            **{baseline: difference(rows[OURS][name], rows[baseline][name]) for baseline in (*BASELINES, BIASED)},
        }
        for (s, p), rows in measured.items()
    ]


def ablation_rows(data: Mapping[str, Tensor], films: Films, cache: str | Path, seeds: int) -> list[dict[str, str]]:
    """Table 3, on undeformed films: what the guard gives, and without it Dice, Hausdorff and folds; means over seeds."""
    rows = []
    for name, recipe in ABLATION.items():
        runs = []
        for seed in range(seeds):
            network, seconds = trained_template(name, recipe, data, cache, seed)
            free, kept = (
                {
                    key: values.mean().item()
                    for key, values in run_method(template_masks(network, guard, recipe.size), films).items()
                }
                for guard in (False, network.diffeomorphic)
            )
            runs.append((free, kept, network.prior.beta.tolist(), seconds))
        free, kept = ({key: [run[which][key] for run in runs] for key in runs[0][which]} for which in (0, 1))
        rows.append(
            {
                "trained": name,
                "Dice": with_interval(kept["dice"], ".4f"),
                "Hausdorff": with_interval(kept["hausdorff"], ".2f"),
                "components": f"{statistics.fmean(kept['components']):.2f}",
                "exactly 2": f"{statistics.fmean(kept['exact']):.1%}",
                "guard": f"{statistics.fmean(kept['acted']):.0%}" if "acted" in kept else "",
                "folds": f"{100 * statistics.fmean(kept['folding_fraction']):.3f} %",
                "without guard: Dice": f"{statistics.fmean(free['dice']):.4f}",
                "exactly 2 ": f"{statistics.fmean(free['exact']):.1%}",
                "folds ": f"{100 * statistics.fmean(free['folding_fraction']):.3f} %",
                "beta": ", ".join(f"{statistics.fmean(b):.1f}" for b in zip(*(run[2] for run in runs))),
                "CPU s": f"{statistics.fmean(run[3] for run in runs):.0f}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def compared_methods(options: argparse.Namespace, data: Mapping[str, Tensor]) -> dict[str, Masker]:
    """Rows of table 2, in order."""
    short = trained_direct("U-Net", data, options.weights_dir, options.seed)
    rows = {"U-Net (direct)": plain_masks(short), "U-Net (direct), two largest parts": plain_masks(short, 2)}
    for name, recipe in COMPARED.items():
        network, seconds = trained_template(name, recipe, data, options.weights_dir, options.seed)
        print(f"{name}: {seconds:.0f} CPU s", flush=True)
        rows[name] = template_masks(network)
    augmented, baseline = (
        segmentation_network(Path(options.lungs) / "models" / name) for name in ("baselines/augmented.pt", "model.pt")
    )
    long = trained_direct(VARIED_FILMS, data, options.weights_dir, options.seed, VARIED)
    ours = bundle_template(Path(options.bundle) / "models" / "model.pt")
    return rows | {
        "U-Net, undeformed films": plain_masks(baseline),
        DIRECT: plain_masks(augmented),
        DIRECT_LARGEST: plain_masks(augmented, 2),
        VARIED_FILMS: plain_masks(long),
        LARGEST: plain_masks(long, 2),
        BIASED: plain_masks(long, uncertainty_bias=UNCERTAINTY_BIAS),
        OURS: template_masks(ours),
        f"{OURS}, guard off": template_masks(ours, False),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure and write the page; 0 if every figure is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_dir", required=True, help="folder with manifest.csv")
    parser.add_argument("--lungs", default="bundles/cxr_lung_segmentation")
    parser.add_argument("--bundle", default="bundles/cxr_lung_template")
    parser.add_argument("--split", default="test")
    parser.add_argument("--sources", nargs="+", default=SOURCES)
    parser.add_argument("--protocols", nargs="+", default=PROTOCOLS)
    parser.add_argument(
        "--films",
        type=int,
        default=None,
        help="all rows but those that are judged see so many films of a source, evenly spaced",
    )
    parser.add_argument("--weights_dir", default="runs/templates", help="folder of weights that this experiment trains")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3, help="of table 3, from 0")
    parser.add_argument("--output", default="docs/results/templates.md")
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    data = lung_labels(options.dataset_dir, "shenzhen", "train")
    methods = compared_methods(options, data)
    parts, measured = [], {}
    for source in options.sources:
        films = load_films(options.dataset_dir, source, options.split)
        for protocol in options.protocols:
            shown, _ = deform(films, protocol, options.seed)
            measured[source, protocol] = {
                name: run_method(method, shown.spread(None if name in JUDGED else options.films))
                for name, method in methods.items()
            }
            rows = [table_row(name, row) for name, row in measured[source, protocol].items()]
            parts.append(f"### {source} `{options.split}`, {protocol}, {len(films.ids)} films\n\n{markdown_table(rows)}")
            print(parts[-1], flush=True)
    films = load_films(options.dataset_dir, options.sources[0], options.split)
    ablation = ablation_rows(data, films, options.weights_dir, options.seeds)
    models = Path(options.bundle) / "models" / "model.pt"
    direct = segmentation_network(Path(options.lungs) / "models" / "model.pt")
    times, ratio = time_table(direct, bundle_template(models), films.images)
    checks = figures(measured, ratio)
    page = [
        NOTE,
        f"## Figures of the bundle's network\n\nOver all sets below, against direct U-Nets. *{DIRECT}*: the lung bundle's baseline, 2200 steps of 16 "
        f"films under the TPS protocol. *{VARIED_FILMS}*: the same U-Net, {PARTS} epochs of batches of 8 on films varied as in the second and nearly as in the "
        "third part of the template's training (opacities over the lungs on three quarters of the films, there on all), with Dice and cross entropy, its "
        "optimiser and seed. What differs: the template's training has 305 epochs, 80 of films varied more strongly, 125 and 100; its weights are a mean of "
        "the last two parts; shares, the settings of the last part, and how far the template leans (where much of a lung is in doubt, what is in doubt counts "
        "as inside) were chosen on `val` of all four sources, the U-Net's settings were not. The U-Net has two "
        "cycles up to 0.002 and the weights of the second, no outline of points to put a price on, a longer warm-up (0.3, not 0.1 of the steps), films drawn "
        "with replacement, and twice the template's parameters.\n\n"
        + markdown_table(checks)
        + "\n\nThe template's Hausdorff distance less the U-Nets', pixels:\n\n"
        + markdown_table(differences(measured, "hausdorff", 2))
        + "\n\nDice:\n\n"
        + markdown_table(differences(measured, "dice", 4)),
        f"## Table 2: methods\n\nThe first rows are those of the paper's table, trained equally short: {SHORT} epochs on undeformed films, one seed. *As "
        "published*: velocities at every pixel, tanh at 256 voxels, T = 4, series of order 2, no guard, a prior that starts as two ellipses that nobody "
        "fitted, Dice and cross entropy; with 352 iterations in place of the paper's 40 000 these rows say what a short training gives, not what the "
        "method can do. *Smooth and guarded* has smooth composed velocities from one U-Net, just as short. The last rows are trained long: U-Nets 50 "
        f"epochs on undeformed and 100 on deformed films (the lung bundle's), the U-Net on varied films {PARTS}, the bundle's template as its README says. *Two largest "
        f"parts* is the usual repair. *Leaning*: a U-Net may lean as the bundle's template does, for more loose parts (by {UNCERTAINTY_BIAS:g}; of 4, 8 and 12 "
        "the one that kept its Dice within 0.01 of the U-Net on deformed films on every set of `val`).",
        *parts,
        f"## Table 3: what of the prior is trained\n\n{options.sources[0]} `{options.split}`, undeformed; means over {options.seeds} seeds, in brackets the "
        "95 % interval by Student's t. All rows start from two ellipses that nobody fitted, each half as wide and high as its half of the frame (those "
        "with s² as circles of the same area), beta 1; smooth composed velocities, in the last row the same fields added up as displacements (nothing "
        f"to guard then). Cut short, all alike: {ABLATION['fixed prior'].epochs} epochs on frames of 64x64; the answers are asked on 128x128.\n\n"
        + markdown_table(ablation),
        "## How sure\n\n`agreement` is the Dice of the bundle's answer with the direct answer that its backbone gives on the way; `report.jsonl` has it "
        "for every film.\n\n"
        + markdown_table([{"set": f"{s} {p}", **sureness(rows[OURS])} for (s, p), rows in measured.items()]),
        "## Table 4: inference time\n\nMedians of this thread's CPU time, networks taking turns. The first two templates have no trained "
        "weights; the second is guarded, and its guard may have more to do.\n\n" + markdown_table(times),
    ]
    write_page(options.output, "Template transformers on lungs", command_text("templates", parser, options), page, options.seed)
    print(markdown_table(checks))
    return 0 if all(row["met"] == "yes" for row in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
