"""What each part of the method is worth: one change a row, on `val`, where settings are chosen, with seconds a film."""

import hashlib
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docs.experiments.film_data import Films, deform, load_films, segmentation_network
from docs.experiments.measures import Answer, Method, answer, dice_of, plain, with_bootstrap, wrapped
from docs.experiments.pages import Experiment, note, scatter_plot, section
from docs.experiments.training import kept, trained
from monai_diffeo.canonicalize import Canonicalizer, load_canonicalizer
from monai_diffeo.energies import ResidualDeformationEnergy, StandardizedEnergy, VAEEnergy, WeightedEnergy
from monai_diffeo.families import ControlGrid
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import DeformationPredictor, EnergyVAE, load_weights
from monai_diffeo.training import PredictorStep

TURNED, DEFAULT, TERMS = "turned 90°", "single pass", ("vae", "critic", "motion")
QUARTERS = "four quarter-turn starts, lowest energy"
NAMED = ("baseline", DEFAULT, "refine", "all three", "vae", "critic")  # in the figure
Build = Callable[[], Method]


def match_grey_values(image: Tensor, quantiles: Tensor, share: float) -> Tensor:
    """Move the grey values of images ``(B, 1, H, W)`` by a ``share`` of the way to given quantiles ``(Q,)``, in their order."""
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
        masks, results = [], []
        for turn in range(4):
            inferer = DiffeoInferer(canonicalizer, on_result=results.append)
            with torch.no_grad():
                found = (torch.sigmoid(inferer(torch.rot90(images, turn, (2, 3)), network)) > 0.5).float()
            masks.append(torch.rot90(found, -turn, (2, 3)))
        best, rows = torch.stack([r.energy_after for r in results]).argmin(0), torch.arange(len(images))
        folding, moved = ([getattr(r, name).float() for r in results] for name in ("folding_fraction", "moved"))
        return Answer(*(torch.stack(values)[best, rows] for values in (masks, folding, moved)))

    return run


REFINE: dict[str, Any] = {"search": None, "search_family": None, "steps": 30, "level": 0.0}
REFINE["regularizer"] = {"smooth": 100.0, "orientation": 10.0}  # the rows vary this search; the bundle's is another one today


class Ablation:
    """The rows by group: functions that build methods. Small predictors are kept in ``weights_dir``; None keeps nothing."""

    def __init__(self, bundle: str | Path, train: Films, weights_dir: str | None, iterations: int) -> None:
        self.folder, self.train = Path(bundle) / "models" / "energy", train
        self.weights_dir, self.iterations = weights_dir, iterations
        self.network = segmentation_network(Path(bundle) / "models" / "baselines" / "baseline.pt")

    def rows(self) -> dict[str, dict[str, Build]]:
        """Builders by group and name; the first row is what the others are compared with."""
        single, refine = partial(self._loaded, "single_pass"), partial(self._loaded, "refine", **REFINE)
        alone = {"predictor": None, "orientation": None, "max_energy_increase": None}
        search = partial(refine, **{**alone, "steps": 50, "tta_samples": 1})
        siren = {"search_family": "siren", "learning_rate": 0.0039}
        energies = {
            **{name: search(energies={name: 1.0}) for name in TERMS},
            "all three": search(),
            "all three, plain minimisation (no hinge)": search(level=None),
            "all three, 20 steps": search(steps=20),
            "all three, 20 steps, SIREN": search(steps=20, **siren),
            "VAE on grey values, not intensity-augmented": lambda: wrapped(self.network, self._grey_vae(alone), 1),
        }
        smooth = {f"{w:g}": search(regularizer={"smooth": w, "orientation": 10.0}) for w in (1.0, 10.0, 1000.0)}
        short = {"without": partial(self._short, 0.0), "with": partial(self._short, 1.0)}
        grey = {
            "gamma 0.8": self._grey(lambda x: x.clamp(0, 1) ** 0.8),
            "gamma 1.25": self._grey(lambda x: x.clamp(0, 1) ** 1.25),
            "half way to the training films' histogram": self._grey(self._matched),
        }
        iterations = {f"{n} iterations, 1 TTA sample": single(iterations=n, tta_samples=1) for n in (1, 2, 3, 5)}
        return {
            "modes": {DEFAULT: single(), "refine": refine(), "baseline": lambda: plain(self.network)},
            "iterations of the predictor": iterations,
            "TTA samples": {f"{n} TTA samples": single(tta_samples=n) for n in (2, 4, 16)},
            "energies alone, from the identity": energies,
            "regularisation, from the identity": {f"smoothness {weight}": build for weight, build in smooth.items()},
            "steps after the predictor": {f"{n} steps": refine(steps=n) for n in (10, 60)},
            "energies after the predictor": {f"refine, {name} only": refine(energies={name: 1.0}) for name in TERMS},
            "hinge after the predictor": {"refine, plain minimisation": refine(level=None)},
            "short predictor, intensity augmentation": {f"{k}, {self.iterations} iterations": b for k, b in short.items()},
            "grey values of the canonical film": grey,
            "gross orientation": {"no orientation network": single(orientation=None), QUARTERS: self._restarts},
        }

    def _loaded(self, mode: str, **changes: object) -> Build:
        return lambda: wrapped(self.network, load_canonicalizer(self.folder, mode, **changes))

    def _grey(self, change: Callable[[Tensor], Tensor]) -> Build:
        """The network behind a map of grey values."""
        behind = nn.Module()
        behind.forward = lambda image: self.network(change(image))
        return lambda: wrapped(behind, load_canonicalizer(self.folder, "single_pass"))

    def _restarts(self) -> Method:
        return restarts(self.network, load_canonicalizer(self.folder, "single_pass", orientation=None))

    def _matched(self, image: Tensor) -> Tensor:
        levels = torch.linspace(0, 1, 65)
        return match_grey_values(image, torch.quantile(self.train.images.flatten(1), levels, dim=1).mean(1), 0.5)

    def _grey_vae(self, alone: Mapping[str, object]) -> Canonicalizer:
        energy = VAEEnergy(load_weights(EnergyVAE(image_size=(128, 128)), self.folder / "published_vae.pt"), standardize=False)
        with torch.no_grad():
            values = torch.cat([energy(part) for part in self.train.images.split(32)])
        middle = values.median()
        spread = 1.4826 * (values - middle).abs().median()
        searched = load_canonicalizer(self.folder, "refine", **{**REFINE, **alone, "steps": 50})
        searched.energy = WeightedEnergy({"vae": StandardizedEnergy(energy, middle.item(), spread.item())}, level=0.0)
        return searched

    def _short(self, intensity: float) -> Method:
        with torch.no_grad():
            answers = torch.cat([torch.sigmoid(self.network(part)) for part in self.train.images.split(32)])
        given = {"image": self.train.images, "answer": answers}
        data = {name: F.interpolate(values, (64, 64), mode="area") for name, values in given.items()}
        family = ControlGrid(controls=10, steps=5)
        keep = self.weights_dir and f"{self.weights_dir}/ablation_intensity{intensity:g}_{self.iterations}.pt"
        build = partial(DeformationPredictor, family.num_parameters, image_size=(64, 64), channels=(32, 64, 128))
        predictor = trained(keep, build, PredictorStep(family, intensity=intensity), data, self.iterations)
        energy = WeightedEnergy({"motion": ResidualDeformationEnergy(predictor, family)})
        settings = {"predictor": predictor, "iterations": 3, "tta_samples": 8, "max_energy_increase": None}
        return wrapped(self.network, Canonicalizer(energy, family, **settings))


def digest_of(bundle: str | Path) -> str:
    """Of the bundle's weights and settings, so that rows measured with others are not taken up."""
    digest = hashlib.sha256()
    for path in sorted((Path(bundle) / "models").rglob("*")):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def measured(name: str, build: Build, shown: Mapping[str, Films], stamp: str, weights_dir: str | None) -> dict:
    """Dice of each film by set, and seconds a film; from ``weights_dir`` if the row was measured there before."""

    def run() -> dict:
        method, seconds, dice = build(), 0.0, {}
        for key, films in shown.items():
            got = answer(method, films.images)
            dice[key] = dice_of(got.masks, films.labels).tolist()
            seconds += got.seconds / len(shown)
        return {"dice": dice, "seconds": seconds}

    return kept(weights_dir, {"experiment": "ablation", "row": name, "stamp": stamp}, run)


def _row(name: str, found: Mapping[str, dict]) -> dict[str, str]:
    dice, default = ({key: torch.tensor(v) for key, v in found[row]["dice"].items()} for row in (name, DEFAULT))
    upright = [key for key in dice if TURNED not in key]
    sources = dict.fromkeys(key.split()[0] for key in dice)  # a film's columns are averaged first: they are not independent
    pairs = ([dice[k] - default[k] for k in upright if k.split()[0] == source] for source in sources)
    difference = torch.cat([torch.stack(some).mean(0) for some in pairs])
    out = {"row": name, **{key: f"{values.mean():.4f}" for key, values in dice.items()}}
    out["mean"] = f"{sum(dice[key].mean().item() for key in upright) / len(upright):.4f}"
    out["- default"] = "" if name == DEFAULT else with_bootstrap(difference)
    return out | {"s/film": f"{found[name]['seconds']:.3f}"}


def main(argv: list[str] | None = None) -> None:
    """Measure every row and write table and figure. ``--iterations``: of the short predictors."""
    defaults = {"bundle": "bundles/cxr_lung_segmentation", "films": 6, "iterations": 900, "seed": 0}
    experiment = Experiment("ablation", __doc__, argv, dataset_dir=str, weights_dir=str, **defaults)
    options = experiment.options
    torch.manual_seed(options.seed)
    shown = {}
    for source in ("shenzhen", "montgomery"):
        films = load_films(options.dataset_dir, source, "val", limit=options.films)
        shown |= {f"{source} {name}": deform(films, name, options.seed)[0] for name in ("plain", "TPS", TURNED)}
    train = load_films(options.dataset_dir, "shenzhen", "train")
    groups = Ablation(options.bundle, train, options.weights_dir, options.iterations).rows()
    stamp = f"{options.films}/{options.iterations}/{options.seed}/{digest_of(options.bundle)}"
    found: dict[str, dict] = {}
    parts, points = note("ablation", options=options), {}
    for group, rows in groups.items():
        sets = {key: films for key, films in shown.items() if TURNED not in key or group in ("modes", "gross orientation")}
        found |= {name: measured(name, build, sets, stamp, options.weights_dir) for name, build in rows.items()}
        names = list(rows) if group == "modes" else [DEFAULT, *rows]
        parts.append(section(f"## {group[0].upper()}{group[1:]}", [_row(name, found) for name in names]))
        dice = {name: [statistics.fmean(found[name]["dice"][key]) for key in shown if key.endswith("TPS")] for name in rows}
        points[group] = {name: (found[name]["seconds"], statistics.fmean(values)) for name, values in dice.items()}
    figure = Path(options.output).with_suffix(".png")
    scatter_plot(figure, points, "processor seconds a film", "mean Dice under TPS, val", NAMED)
    parts.insert(1, f"![Seconds against Dice]({figure.name})")
    experiment.write("Ablation", parts, options.seed)


if __name__ == "__main__":
    main()
