"""What each part of the method is worth: one change a row, on `val`, where settings are chosen, with seconds a film.

``python -m docs.experiments.ablation --dataset_dir DIR --weights_dir KEEP`` trains the two small predictors that it compares, and
takes up the rows that ``KEEP`` already holds.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docs.experiments.figures import segmentation_network
from docs.experiments.films import Films, deform, load_films
from docs.experiments.measures import Answer, Method, answer, bootstrap_interval, dice_of, plain, wrapped
from docs.experiments.plots import scatter_plot
from docs.experiments.tables import command_text, markdown_table, write_page
from docs.experiments.training import kept, trained
from monai_diffeo.canonicalize import Canonicalizer, load_canonicalizer
from monai_diffeo.energies import ResidualDeformationEnergy, StandardizedEnergy, VAEEnergy, WeightedEnergy
from monai_diffeo.families import ControlGrid
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import DeformationPredictor, EnergyVAE, load_weights
from monai_diffeo.training import PredictorStep

__all__ = ["Ablation", "match_grey_values", "restarts"]

NOTE = """One change a row against "single pass" (three passes of the predictor, eight views) or "refine" (the same, then at most 30 steps of Adam on
three standardised energies that count only above the training films' own level). "From the identity" rows have no predictor, no
orientation network and one view, and search for at most 50 steps. Mean Dice of {0} films of each source, evenly spaced over its list; `mean` is over the
four columns of upright films; `- default` is the paired difference to single pass, averaged over a film's two columns, with its 95 % bootstrap interval
over the films. So few films show what matters, not the third digit. s/film is processor time. `val` only: this is where settings are chosen."""
TURNED = "turned 90°"
NAMED = {
    "baseline": (12, 0),
    "single pass": (-30, 16),
    "refine": (0, 16),
    "1 passes, one view": (-60, -18),
    "all three": (-10, 14),
    "all three, 20 steps, SIREN": (-120, -18),
    "vae": (12, -4),
    "critic": (12, -4),
    "motion": (-50, 4),
}

TERMS = ("vae", "critic", "motion")


def match_grey_values(image: Tensor, quantiles: Tensor, share: float) -> Tensor:
    """Move the grey values of each image ``(B, 1, H, W)`` towards given quantiles ``(Q,)``, monotonically, by a share of the way."""
    levels = torch.linspace(0, 1, len(quantiles))
    ramp = 1e-6 * torch.arange(len(quantiles))  # no two equal
    moved = []
    for film in image:
        own = torch.quantile(film.flatten(), levels) + ramp
        wanted = (1 - share) * own + share * quantiles
        upper = torch.searchsorted(own, film.flatten()).clamp(1, len(own) - 1)
        weight = ((film.flatten() - own[upper - 1]) / (own[upper] - own[upper - 1])).clamp(0, 1)
        moved.append(torch.lerp(wanted[upper - 1], wanted[upper], weight).view_as(film))
    return torch.stack(moved)


def restarts(network: nn.Module, canonicalizer: Canonicalizer) -> Method:
    """Canonicalise from all four quarter turns and keep, film by film, the one whose energy ends lowest."""

    def run(images: Tensor) -> Answer:
        masks, energies, results = [], [], []
        for turn in range(4):
            inferer = DiffeoInferer(canonicalizer, on_result=results.append)
            with torch.no_grad():
                found = (torch.sigmoid(inferer(torch.rot90(images, turn, (2, 3)), network)) > 0.5).float()
            masks.append(torch.rot90(found, -turn, (2, 3)))
            energies.append(results[-1].energy_after)
        best = torch.stack(energies).argmin(0)
        rows = torch.arange(len(images))
        folding, moved = (
            torch.stack([getattr(r, name).float() for r in results])[best, rows] for name in ("folding_fraction", "moved")
        )
        return Answer(torch.stack(masks)[best, rows], folding, moved)

    return run


class _GreyValues(nn.Module):
    """A network behind a map of grey values."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, image: Tensor) -> Tensor:
        return self.network(self.change(image))


class Ablation:
    """The rows: each name gives a function that builds its method.

    Args:
        bundle: folder of the lung bundle.
        train: its training films.
        weights_dir: where the small predictors of this experiment are kept; None keeps nothing.
        iterations: of the small predictors.
    """

    def __init__(self, bundle: str | Path, train: Films, weights_dir: str | None, iterations: int) -> None:
        self.folder, self.train, self.weights_dir, self.iterations = (
            Path(bundle) / "models" / "energy",
            train,
            weights_dir,
            iterations,
        )
        self.network = segmentation_network(Path(bundle) / "models" / "model.pt")

    def rows(self) -> dict[str, dict[str, Callable[[], Method]]]:
        """Builders by group and name; the first row is what the others are compared with."""
        search, refine, single = self._search, self._refine, self._single
        groups: dict[str, dict[str, Callable[[], Method]]] = {
            "modes": {"single pass": single(), "refine": refine(), "baseline": lambda: plain(self.network)},
            "passes of the predictor": {f"{n} passes, one view": single(iterations=n, tta_samples=1) for n in (1, 2, 3, 5)},
            "tta_samples": {f"{n} views": single(tta_samples=n) for n in (2, 4, 16)},
            "energies alone, from the identity": {
                **{name: search(energies={name: 1.0}) for name in TERMS},
                "all three": search(),
                "all three, plain minimisation (no hinge)": search(level=None),
                "all three, 20 steps": search(steps=20),
                "all three, 20 steps, SIREN": search(steps=20, search_family="siren", learning_rate=0.0039),
                "VAE on grey values, not intensity-augmented": lambda: wrapped(self.network, self._grey_vae(), 1),
            },
            "regularisation, from the identity": {
                f"smoothness {weight:g}": search(regularizer={"smooth": weight, "orientation": 10.0})
                for weight in (1.0, 10.0, 1000.0)
            },
            "steps after the predictor": {f"{n} steps": refine(steps=n) for n in (10, 60)},
            "energies after the predictor": {f"refine, {name} only": refine(energies={name: 1.0}) for name in TERMS},
            "hinge after the predictor": {"refine, plain minimisation": refine(level=None)},
            "short predictor, intensity augmentation": {
                f"{words}, {self.iterations} iterations": self._short(strength)
                for words, strength in (("without", 0.0), ("with", 1.0))
            },
            "grey values of the canonical film": {
                "gamma 0.8": self._grey(lambda x: x.clamp(0, 1) ** 0.8),
                "gamma 1.25": self._grey(lambda x: x.clamp(0, 1) ** 1.25),
                "half way to the training films' histogram": self._grey(self._matched),
            },
            "gross orientation": {
                "no orientation network": single(orientation=None),
                "four quarter-turn starts, lowest energy": lambda: restarts(
                    self.network, self._load("single_pass", orientation=None)
                ),
            },
        }
        if self.weights_dir and (Path(self.weights_dir) / "predictor_answers.pt").is_file():
            groups["predictor fine-tuned through the network's answers"] = {"fine-tuned, 60 epochs": self._answers}
        return groups

    def _load(self, mode: str, **changes) -> Canonicalizer:
        return load_canonicalizer(self.folder, mode, **changes)

    def _single(self, **changes) -> Callable[[], Method]:
        return lambda: wrapped(self.network, self._load("single_pass", **changes))

    def _refine(self, **changes) -> Callable[[], Method]:
        return lambda: wrapped(self.network, self._load("refine", **changes))

    def _search(self, **changes) -> Callable[[], Method]:
        settings = {
            "predictor": None,
            "orientation": None,
            "steps": 50,
            "tta_samples": 1,
            "max_energy_increase": None,
            **changes,
        }
        return lambda: wrapped(self.network, self._load("refine", **settings))

    def _grey(self, change: Callable[[Tensor], Tensor]) -> Callable[[], Method]:
        return lambda: wrapped(_GreyValues(self.network, change), self._load("single_pass"))

    def _matched(self, image: Tensor) -> Tensor:
        levels = torch.linspace(0, 1, 65)
        return match_grey_values(image, torch.quantile(self.train.images.flatten(1), levels, dim=1).mean(1), 0.5)

    def _grey_vae(self) -> Canonicalizer:
        energy = VAEEnergy(load_weights(EnergyVAE(image_size=(128, 128)), self.folder / "published_vae.pt"), standardize=False)
        with torch.no_grad():
            values = torch.cat([energy(part) for part in self.train.images.split(32)])
        spread = 1.4826 * (values - values.median()).abs().median()
        searched = self._load("refine", predictor=None, orientation=None, steps=50, max_energy_increase=None)
        searched.energy = WeightedEnergy({"vae": StandardizedEnergy(energy, values.median().item(), spread.item())}, level=0.0)
        return searched

    def _short(self, intensity: float) -> Callable[[], Method]:
        def build() -> Method:
            with torch.no_grad():
                answers = torch.cat([torch.sigmoid(self.network(part)) for part in self.train.images.split(32)])
            data = {
                name: F.interpolate(values, (64, 64), mode="area")
                for name, values in (("image", self.train.images), ("answer", answers))
            }
            family = ControlGrid(controls=10, steps=5)
            keep = self.weights_dir and f"{self.weights_dir}/ablation_intensity{intensity:g}_{self.iterations}.pt"
            build = partial(DeformationPredictor, family.num_parameters, image_size=(64, 64), channels=(32, 64, 128))
            predictor = trained(keep, build, PredictorStep(family, intensity=intensity), data, self.iterations)
            return wrapped(self.network, _motion_only(predictor, family))

        return build

    def _answers(self) -> Method:
        family = ControlGrid(controls=10)
        predictor = DeformationPredictor(family.num_parameters, image_size=(64, 64), channels=(32, 64, 128))
        return wrapped(
            self.network, _motion_only(load_weights(predictor, Path(self.weights_dir) / "predictor_answers.pt"), family)
        )


def _motion_only(predictor: nn.Module, family: ControlGrid) -> Canonicalizer:
    predictor = predictor.double()
    return Canonicalizer(
        WeightedEnergy({"motion": ResidualDeformationEnergy(predictor, family)}),
        family,
        predictor=predictor,
        iterations=3,
        tta_samples=8,
        max_energy_increase=None,
    )


def main(argv: list[str] | None = None) -> None:
    """Measure every row and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_dir", required=True, help="folder with manifest.csv")
    parser.add_argument(
        "--weights_dir", default=None, help="keep weights and measured rows here, and take up those that are here"
    )
    parser.add_argument("--bundle", default="bundles/cxr_lung_segmentation")
    parser.add_argument("--films", type=int, default=6, help="so many films of each source, evenly spaced")
    parser.add_argument("--iterations", type=int, default=900, help="of the short predictors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="docs/results/ablation.md")
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    films = {
        source: load_films(options.dataset_dir, source, "val", limit=options.films) for source in ("shenzhen", "montgomery")
    }
    shown = {
        f"{source} {protocol}": deform(films[source], protocol, options.seed)[0]
        for source in films
        for protocol in ("plain", "TPS", TURNED)
    }
    ablation = Ablation(
        options.bundle, load_films(options.dataset_dir, "shenzhen", "train"), options.weights_dir, options.iterations
    )
    found: dict[str, dict] = {}
    groups = ablation.rows()
    stamp = f"{options.films}/{options.iterations}/{options.seed}/{_digest(options.bundle)}"
    for group, rows in groups.items():
        sets = {key: films for key, films in shown.items() if TURNED not in key or group in ("modes", "gross orientation")}
        for name, build in rows.items():
            found[name] = _measured(name, build, sets, stamp, options.weights_dir)
            print(
                name,
                {k: f"{torch.tensor(v).mean():.4f}" for k, v in found[name]["dice"].items()},
                f"{found[name]['seconds']:.3f} s",
                flush=True,
            )
    parts = [NOTE.format(options.films)]
    for group, rows in groups.items():
        first = [] if group == "modes" else [_row("single pass", found, "single pass")]
        parts.append(
            f"## {group[0].upper()}{group[1:]}\n\n"
            + markdown_table(first + [_row(name, found, "single pass") for name in rows])
        )
    figure = Path(options.output).with_suffix(".png")
    deformed = [k for k in shown if k.endswith("TPS")]
    points = {
        group: {
            name: (
                found[name]["seconds"],
                sum(torch.tensor(found[name]["dice"][k]).mean().item() for k in deformed) / len(deformed),
            )
            for name in rows
        }
        for group, rows in groups.items()
    }
    scatter_plot(figure, points, "processor seconds a film", "mean Dice under TPS, val", NAMED)
    parts.insert(1, f"![Seconds against Dice]({figure.name})")
    write_page(options.output, "Ablation", command_text("ablation", parser, options), parts, options.seed)


def _digest(bundle: str | Path) -> str:
    """Of the bundle's weights and settings, so that rows measured with others are not taken up."""
    digest = hashlib.sha256()
    for path in sorted((Path(bundle) / "models").rglob("*")):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _measured(name: str, build: Callable[[], Method], shown: dict[str, Films], stamp: str, weights_dir: str | None) -> dict:
    """Dice of each film by set, and seconds a film; from ``weights_dir`` if the row was measured there before."""

    def run() -> dict:
        method, seconds, dice = build(), 0.0, {}
        for key, films in shown.items():
            got = answer(method, films.images)
            dice[key] = dice_of(got.masks, films.labels).tolist()
            seconds += got.seconds / len(shown)
        return {"dice": dice, "seconds": seconds}

    return kept(weights_dir, {"experiment": "ablation", "row": name, "stamp": stamp}, run)


def _row(name: str, found: dict[str, dict], default: str) -> dict[str, str]:
    dice = {key: torch.tensor(values) for key, values in found[name]["dice"].items()}
    sources = dict.fromkeys(key.split()[0] for key in dice)  # a film's columns are averaged first: they are not independent
    difference = torch.cat(
        [
            torch.stack(
                [dice[k] - torch.tensor(found[default]["dice"][k]) for k in dice if k.split()[0] == source and TURNED not in k]
            ).mean(0)
            for source in sources
        ]
    )
    low, high = bootstrap_interval(difference)
    out = {"row": name, **{key: f"{values.mean():.4f}" for key, values in dice.items()}}
    upright = [values.mean().item() for key, values in dice.items() if TURNED not in key]
    out["mean"] = f"{sum(upright) / len(upright):.4f}"
    out["- default"] = "" if name == default else f"{difference.mean():+.4f} [{low:+.3f}, {high:+.3f}]"
    out["s/film"] = f"{found[name]['seconds']:.3f}"
    return out


if __name__ == "__main__":
    main()
