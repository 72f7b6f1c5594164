"""The lung bundle's networks bare and wrapped, on films as they come in: deformed, framed, turned, faulty; outlines in mm."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from docs.experiments.film_conditions import FAULTS, FRAMES, show
from docs.experiments.film_data import Films, load_films, segmentation_network
from docs.experiments.lungs import SOURCES
from docs.experiments.measures import dice_of, with_bootstrap
from docs.experiments.outlines import outline_distances, spacing_of
from docs.experiments.pages import Experiment, judged, note, section
from docs.experiments.training import code_digest, kept
from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.cli.bundle import run_bundle
from monai_diffeo.files import sha256_below, sha256_of
from monai_diffeo.inferers import DiffeoInferer, PartsInPlace
from monai_diffeo.networks import load_weights
from monai_diffeo.transforms import ResizeFilmd, ScaleFilmIntensity
from monai_diffeo.transforms.shapes import largest_parts

SIZE = (256, 256)  # at which films are deformed and masks are compared
WORK = (128, 128)  # at which the bundle works
TURNS = ("turned 90°", "turned 180°", "turned 270°")
EVERY = ("plain", "TPS", "TPS 45°/0.18")
GROSS = (*FRAMES, *TURNS)
NETWORKS = ("baseline", "augmented", "product")
LIMITS = {"baseline": {"energy": 50.0, "disagreement": 0.7}, "augmented": {"energy": 30.0, "disagreement": 0.5}}  # of motion
Rows = list[dict[str, str]]


def wrappers(bundle: Path) -> dict[str, DiffeoInferer]:
    """For each network the inferer around it."""
    energy, parser = bundle / "models" / "energy", configuration(bundle)
    canonicalizer, limits = load_canonicalizer(energy), parser["motion_limits"]
    atlas = load_weights(parser.get_parsed_content("inferer#parts#atlas#network"), energy / "label_atlas.pt")

    def wrapper(name: str) -> DiffeoInferer:
        parts = PartsInPlace(atlas, parser["inferer#parts#num_components"], threshold_of(bundle, name))
        return DiffeoInferer(canonicalizer, motion_limits=LIMITS.get(name, limits), tta_batch_size=8, parts=parts)

    return {name: wrapper(name) for name in NETWORKS}


def configuration(bundle: Path) -> ConfigParser:
    """How the bundle segments."""
    return ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))


def networks(bundle: Path) -> dict[str, nn.Module]:
    """The three networks of the bundle, in eval mode."""
    models, parser = bundle / "models", configuration(bundle)
    product = load_weights(parser.get_parsed_content("network_def"), models / "model.pt").eval()
    return {**{name: segmentation_network(models / "baselines" / f"{name}.pt") for name in NETWORKS[:2]}, "product": product}


def as_the_bundle_sees(films: Tensor, size: Sequence[int]) -> Tensor:
    """Films ``(N, 1, H, W)`` after the bundle's own grey scale and resizing."""
    scale, resize = ScaleFilmIntensity(), ResizeFilmd("film", size)
    return torch.stack([convert_to_tensor(resize({"film": scale(film)})["film"], track_meta=False) for film in films])


def masks_of(logits: Tensor, size: Sequence[int], threshold: float = 0.5) -> Tensor:
    """The bundle's postprocessing: resized probabilities above a threshold, two largest parts, no holes."""
    inside = F.interpolate(torch.sigmoid(logits), tuple(size), mode="bilinear") > threshold
    return torch.stack([torch.from_numpy(largest_parts(film[0].numpy(), 2)).float()[None] for film in inside])


def threshold_of(bundle: Path, name: str = "product") -> float:
    """The probability above which a network's answer is lung: the bundle's for the product, one half for the baselines."""
    return configuration(bundle)["mask_threshold"] if name == "product" else 0.5


def answers(network: nn.Module, inferer: Inferer, films: Tensor, threshold: float) -> Tensor:
    """Masks ``(N, 1, H, W)`` of films of this frame."""
    seen = as_the_bundle_sees(films, WORK)
    with torch.no_grad():
        return torch.cat([masks_of(inferer(image, network), films.shape[2:], threshold) for image in seen.split(8)])


def measure(bundle: Path, films: Films, condition: str, seed: int, name: str) -> dict[str, list[float]]:
    """Dice of each film under a condition by a network, bare and wrapped."""
    shown, network = show(films, condition, seed), networks(bundle)[name]
    both = {"bare": SimpleInferer(), "wrapped": wrappers(bundle)[name]}
    masks = {how: answers(network, one, shown.images, threshold_of(bundle, name)) for how, one in both.items()}
    return {how: dice_of(mask, shown.labels).tolist() for how, mask in masks.items()}


def measure_outlines(bundle: Path, films: Films, source: str) -> dict[str, list[float]]:
    """Dice and distances of the wrapped product's outlines on films of this frame."""
    masks = answers(networks(bundle)["product"], wrappers(bundle)["product"], films.images, threshold_of(bundle))
    spacing, _ = spacing_of(source, films.images.shape[2:])
    mean, reach = outline_distances(masks, films.labels, [spacing] * len(masks))
    return {"Dice": dice_of(masks, films.labels).tolist(), "mean distance": mean.tolist(), "HD95": reach.tolist()}


def whole_network(bundle: Path, further: Path | None = None) -> nn.Module:
    """The product that was trained further to find the whole lung, by the bundle's weights or those of ``further``."""
    models, network = bundle / "models", configuration(bundle).get_parsed_content("network_def")
    return load_weights(network, models / "model.pt", further or models / "whole_lungs.pt")


def measure_whole(bundle: Path, films: Films, source: str, further: Path | None = None) -> dict[str, list[float]]:
    """Dice of each film by the wrapped :func:`whole_network`."""
    network, inferer = whole_network(bundle, further), wrappers(bundle)["product"]
    return {"Dice": dice_of(answers(network, inferer, films.images, threshold_of(bundle)), films.labels).tolist()}


def row_of(source: str, condition: str, found: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, str]:
    """A line of a table: each network bare and wrapped, and the films that wrapping made worse by more than 0.05."""
    row = {"films": f"{source}, {condition}, {len(found['product']['bare'])}"}
    for name, both in found.items():
        bare, wrapped = (torch.tensor(both[how]) for how in ("bare", "wrapped"))
        row |= {name: f"{bare.mean():.4f}", f"{name} wrapped": with_bootstrap(wrapped, ".4f", ".3f")}
        row[f"worse, {name}"] = str(int((wrapped < bare - 0.05).sum()))
    return row


def asked(
    found: Mapping[tuple[str, str], Mapping[str, Any]],
    outlines: Mapping[str, Any],
    whole: Mapping[str, Sequence[float]],
    packaged: Mapping[str, float],
) -> Rows:
    """What was asked beside what was measured."""
    mean = {
        key: {n: {h: float(torch.tensor(v).mean()) for h, v in both.items()} for n, both in some.items()}
        for key, some in found.items()
    }
    rows = []

    def goal(what: str, least: float, value: float) -> None:
        rows.append(judged(what, f"at least {least}", f"{value:.4f}", value >= least))

    for condition, least in (("plain", 0.962), ("TPS", 0.960), ("TPS 45°/0.18", 0.956)):
        if ("shenzhen", condition) in mean:
            goal(f"product wrapped, shenzhen, {condition}", least, mean["shenzhen", condition]["product"]["wrapped"])
    if "montgomery" in outlines:
        got = {name: torch.tensor(values) for name, values in outlines["montgomery"].items()}
        goal("product wrapped, montgomery plain at 512", 0.965, float(got["Dice"].mean()))
        for name, most in (("mean distance", 1.9), ("HD95", 6.5)):
            value = float(got[name].mean())
            rows.append(judged(f"{name} of outlines, montgomery, mm", f"at most {most}", f"{value:.2f}", value <= most))
    for source, least in (("paediatric_gz", 0.94), ("covid_gb", 0.87)):
        goal(f"whole lung from 100 children, {source}", least, float(torch.tensor(whole[source]).mean()))
    goal(
        "whole lung from 100 children, paediatric_gz, worst tenth",
        0.88,
        float(torch.tensor(whole["paediatric_gz"]).quantile(0.1)),
    )
    if "paediatric_gz, 20" in whole:
        goal("whole lung from 20 children, paediatric_gz", 0.92, float(torch.tensor(whole["paediatric_gz, 20"]).mean()))
    text = f"{packaged['all']:.4f}; {packaged['below']:.4f} without the film's upper fifth"
    rows.append(judged("packaged film: Dice with the template's outline", "at least 0.97", text, packaged["all"] >= 0.97))
    for condition, least in (("one lung white", 0.85), ("over-exposed", 0.93)):
        for source in ("shenzhen", "montgomery"):
            goal(f"product wrapped, {source}, {condition}", least, mean[source, condition]["product"]["wrapped"])
    for name in NETWORKS:
        change = {key: some[name]["wrapped"] - some[name]["bare"] for key, some in mean.items()}
        below = [f"{source}, {condition} ({value:+.4f})" for (source, condition), value in change.items() if value < -0.001]
        text = f"below on {len(below)} of {len(change)}" + (": " + "; ".join(below) if below else "")
        rows.append(judged(f"{name}: wrapped against bare", "below by more than 0.001 on no set", text, not below))
        pairs = [(b, w) for some in found.values() for b, w in zip(some[name]["bare"], some[name]["wrapped"])]
        worse = sum(w < b - 0.05 for b, w in pairs)
        rows.append(
            judged(
                f"{name}: films worse by more than 0.05",
                "at most 1 in 500",
                f"{worse} of {len(pairs)}",
                worse * 500 <= len(pairs),
            )
        )
    for (source, condition), some in mean.items():
        if condition in GROSS and (source, "upright") in mean:
            share = some["product"]["wrapped"] / mean[source, "upright"]["product"]["wrapped"]
            goal(f"product wrapped, {source}, {condition}: share of upright", 0.99, share)
    return rows


def conventions(source: str, visible: Sequence[float], whole: Sequence[float], margin: float = 0.02) -> Rows:
    """How many films' masks are of the whole lung, of the visible one, or fit both answers alike: by Dice, with a margin."""
    pairs = list(zip(visible, whole))
    kinds = {
        "the whole lung": [p for p in pairs if p[1] > p[0] + margin],
        "the visible lung": [p for p in pairs if p[0] > p[1] + margin],
        "both alike": [p for p in pairs if abs(p[0] - p[1]) <= margin],
    }
    rows = []
    for kind, some in kinds.items():
        means = [f"{sum(column) / len(some):.4f}" for column in zip(*some)] or ["", ""]
        rows.append({"masks": f"{source}, {kind}", "films": len(some), "Dice, visible": means[0], "Dice, whole": means[1]})
    return rows


def packaged_outlines(bundle: Path) -> dict[str, float]:
    """Dice of the product's mask of the packaged film with the template's: of the whole film, and without its upper fifth."""
    masks = []
    for root in (bundle, bundle.parent / "cxr_lung_template"):
        with TemporaryDirectory() as folder:
            run_bundle(root, {"output_dir": folder, "figures": False})
            film, *_ = map(json.loads, (Path(folder) / "report.jsonl").read_text().splitlines())
            masks.append(torch.from_numpy(nibabel.load(Path(folder) / film["mask"]).get_fdata() > 0))
    below = [mask[:, mask.shape[1] // 5 :] for mask in masks]  # columns x rows
    return {name: dice_of(*(m[None, None].float() for m in pair)).item() for name, pair in (("all", masks), ("below", below))}


@cache
def state_of(bundle: Path) -> dict[str, str]:
    """Digests of the code and of the weights on which rows depend."""
    return {
        "code": code_digest(),
        "bundle": sha256_below(bundle / "models"),
        "settings": str([configuration(bundle)[name] for name in ("motion_limits", "mask_threshold")]),
    }


def kept_rows(options: Any, source: str, condition: str, count: int | None, run: Callable[[Films], dict], **more: str) -> dict:
    """What ``run`` measures on ``count`` films of a source, or what it measured before with the same settings, ``more`` too."""
    shared = {"split": options.split, "seed": options.seed, **state_of(Path(options.bundle))}
    settings = {"experiment": "lungs_product", "source": source, "condition": condition, "films": count, **shared, **more}
    finer = ((512, 512), options.films_512) if condition == "outlines" else (SIZE, None)
    films = partial(load_films, options.dataset_dir, source, options.split, count, *finer)
    return kept(options.weights_dir, settings, lambda: run(films()))


def main(argv: list[str] | None = None) -> None:
    """Measure the tables and write the page."""
    defaults = {"bundle": "bundles/cxr_lung_segmentation", "split": "test", "sources": SOURCES, "films": int, "few": 15}
    experiment = Experiment(
        "lungs_product", __doc__, argv, dataset_dir=str, weights_dir=str, films_512=str, whole_20=str, seed=0, **defaults
    )
    options, bundle = experiment.options, Path(experiment.options.bundle)
    parts, found, outlines = note("lungs_product"), {}, {}

    def measured(source: str, condition: str, count: int | None, run: Callable[[Films], dict]) -> dict:
        return kept_rows(options, source, condition, count, run)

    for heading, conditions, count in (
        ("deformed", EVERY, options.films),
        ("framed", ("plain", *GROSS), options.few),
        ("faulty", tuple(FAULTS), options.few),
    ):
        rows = []
        for source in options.sources:
            for condition in conditions:
                run = partial(measure, bundle, condition=condition, seed=options.seed)
                got = {
                    name: kept_rows(options, source, condition, count, partial(run, name=name), network=name)
                    for name in NETWORKS
                }
                found[source, "upright" if (heading, condition) == ("framed", "plain") else condition] = got
                rows.append(row_of(source, condition, got))
        parts.append(section(f"## Films that are {heading}", rows))
    if options.films_512:
        rows = []
        for source in ("shenzhen", "montgomery"):
            outlines[source] = measured(
                source, "outlines", options.films, lambda films, s=source: measure_outlines(bundle, films, s)
            )
            unit, values = spacing_of(source, (512, 512))[1], {n: torch.tensor(v) for n, v in outlines[source].items()}
            rows.append({"films": source, "Dice": with_bootstrap(values["Dice"], ".4f", ".3f"), "unit": unit,
                         **{n: with_bootstrap(values[n], ".2f", ".2f") for n in ("mean distance", "HD95")}})  # fmt: skip
        parts.append(section("## Outlines at 512 x 512", rows))
    rows, whole, kinds = [], {}, []
    for source in ("paediatric_gz", "covid_gb"):
        whole[source] = measured(source, "whole", options.films, lambda films, s=source: measure_whole(bundle, films, s))[
            "Dice"
        ]
        dice = torch.tensor(whole[source])
        visible = torch.tensor(found[source, "plain"]["product"]["wrapped"]).mean()
        row = {
            "films": f"{source}, {len(dice)}",
            "Dice": with_bootstrap(dice, ".4f", ".3f"),
            "p10": f"{dice.quantile(0.1):.4f}",
        }
        rows.append({**row, "Dice of the visible lung's mask": f"{visible:.4f}"})
        kinds += conventions(source, found[source, "plain"]["product"]["wrapped"], whole[source])
        if options.whole_20:
            run = partial(measure_whole, bundle, source=source, further=Path(options.whole_20))
            found_20 = measured(source, f"whole, {sha256_of(options.whole_20)}", options.films, run)["Dice"]
            whole[f"{source}, 20"], dice = found_20, torch.tensor(found_20)
            rows.append({"films": f"{source}, {len(dice)}, learnt from 20", "Dice": with_bootstrap(dice, ".4f", ".3f")})
            rows[-1]["p10"] = f"{dice.quantile(0.1):.4f}"
    parts.append(section("## The whole lung, learnt from 100 children", rows))
    parts.append(section("Which convention the masks follow, by the answer that is better by more than 0.02:", kinds))
    parts.append(section("## Asked and measured", asked(found, outlines, whole, packaged_outlines(bundle))))
    parts += note("lungs_product_tried")
    experiment.write("Lungs: the product", parts, options.seed)


if __name__ == "__main__":
    main()
