"""Small networks that read distorted digits: one table of recipes for three pages, training, measures, comparison."""

import copy
import hashlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bundles.mnist_genus.scripts.digits import Digits, read_digits
from docs.experiments.measures import student_interval, with_interval
from docs.experiments.pages import Experiment
from docs.experiments.training import kept, train
from monai_diffeo.errors import NumericalError
from monai_diffeo.families import CPAB, AffineMatrix, CoarseSampling, DiffeomorphicAffine, Family, ThinPlateSpline, Whitened
from monai_diffeo.families.base import half_frame
from monai_diffeo.flow import Deformation, exp, folding_fraction, warp
from monai_diffeo.networks import FCNLocalizer, SpatialTransformerChain, SpatialTransformerLayer, zero_init_last_layer_

BATCH = 64
DISTORTION_VERSION = 3  # of the distortions, so that images kept from others are not taken up


def _rigid(angle: Tensor, scale: Tensor, shift: Tensor, spatial_size: Sequence[int]) -> Deformation:
    """Maps that show an image turned by ``angle`` (B,), enlarged by ``scale`` (B,) and moved by ``shift`` (B, 2) voxels."""
    cos, sin = angle.cos() / scale, angle.sin() / scale
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    matrix = torch.cat([linear, -(linear @ shift[..., None])], 2)
    return Deformation(matrix, matrix.new_zeros(len(matrix), 2, *spatial_size))


def _uniform(count: int, low: float, high: float, draw: torch.Generator) -> Tensor:
    return torch.rand(count, generator=draw) * (high - low) + low


def _shifts(count: int, most: float, draw: torch.Generator) -> Tensor:
    return torch.stack([_uniform(count, -most, most, draw) for _ in range(2)], 1)


def _rotated(count: int, spatial_size: Sequence[int], draw: torch.Generator) -> Deformation:
    """Turned by up to 90 degrees either way."""
    return _rigid(_uniform(count, -math.pi / 2, math.pi / 2, draw), torch.ones(count), torch.zeros(count, 2), spatial_size)


def _rts(count: int, spatial_size: Sequence[int], draw: torch.Generator) -> Deformation:
    """Turned by up to 45 degrees, 0.7 to 1.2 times as large, moved by up to 7 voxels along each axis."""
    angle, scale = _uniform(count, -math.pi / 4, math.pi / 4, draw), _uniform(count, 0.7, 1.2, draw)
    return _rigid(angle, scale, _shifts(count, 7.0, draw), spatial_size)


def _cpab(count: int, spatial_size: Sequence[int], draw: torch.Generator) -> Deformation:
    """Random flows of velocities on 4 x 4 rectangles, moved by up to 4 voxels along each axis."""
    family = CPAB((4, 4), length_scale=0.2)
    flow = family(family.sample(count, 0.25, draw), spatial_size)
    return flow.after(_rigid(torch.zeros(count), torch.ones(count), _shifts(count, 4.0, draw), spatial_size))


DISTORTIONS: dict[str, Callable[..., Deformation]] = {"rotated": _rotated, "RTS": _rts, "CPAB": _cpab}


def distort(digits: Digits, distortion: str, side: int, seed: int = 0, keep: str | Path | None = None) -> dict[str, Tensor]:
    """Digits in the middle of a square of ``side`` voxels, distorted, each interpolated once; kept in a folder ``keep``.

    Gives ``image`` (N, 1, side, side), bytes, and ``label`` (N,), the digit.
    """
    chosen = hashlib.sha256(" ".join(digits.ids).encode()).hexdigest()[:8]
    path = keep and Path(keep) / f"digits_{distortion}_{DISTORTION_VERSION}_{side}_{chosen}_{len(digits.ids)}_{seed}.pt"
    if path and path.is_file():
        return {"image": torch.load(path, weights_only=True), "label": digits.digits}
    draw, margin, parts = torch.Generator().manual_seed(seed), (side - digits.images.shape[-1]) // 2, []
    for images in digits.images.split(500):
        moved = DISTORTIONS[distortion](len(images), (side, side), draw).ddf()
        parts.append((warp(F.pad(images, (margin,) * 4), moved, padding_mode="zeros") * 255).round().byte())
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.cat(parts), path)
    return {"image": torch.cat(parts), "label": digits.digits}


def fcn(outputs: int, width: int, side: int) -> nn.Module:
    """Two hidden layers of ``width`` on the pixels."""
    layers = nn.Linear(side**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    return nn.Sequential(nn.Flatten(), *layers)


def cnn(outputs: int, width: int, side: int, channels=(16, 32), kernels=(5, 3), pool_first: bool = True) -> nn.Module:
    """Two convolutions, the first with stride 2, and a hidden layer. ``pool_first``: a maximum after the first one, too."""
    (first, second), (a, b) = channels, kernels
    rest = ((side - a) // 2 + 1) // (2 if pool_first else 1)
    pool = nn.MaxPool2d(2) if pool_first else nn.Identity()
    start = nn.Conv2d(1, first, a, stride=2), nn.ReLU(), pool, nn.Conv2d(first, second, b), nn.ReLU(), nn.MaxPool2d(2)
    hidden = nn.Linear(second * ((rest - b + 1) // 2) ** 2, width)
    return nn.Sequential(*start, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(width, outputs))


class DenseField(Family):
    """A vector a voxel, in halves of the frame: the velocity of a flow of ``steps`` squarings; with 0 the displacement."""

    def __init__(self, spatial_size: Sequence[int], steps: int = 6) -> None:
        super().__init__()
        self.spatial_size, self.steps, self.spatial_dims = tuple(spatial_size), steps, len(spatial_size)
        self.num_parameters = self.spatial_dims * torch.Size(spatial_size).numel()

    def forward(self, theta: Tensor, spatial_size: Sequence[int]) -> Deformation:
        half = half_frame(spatial_size, theta)
        field = theta.view(-1, self.spatial_dims, *spatial_size) * half.view(-1, *[1] * len(half))
        unit = torch.eye(self.spatial_dims, self.spatial_dims + 1).to(field)
        return Deformation(unit.repeat(len(field), 1, 1), exp(field, self.steps))


class DenseLocalizer(nn.Module):
    """Fields ``(B, 2 side^2)`` of images ``(B, 1, side, side)``: 5 x 5 vectors, interpolated and corrected."""

    def __init__(self, side: int, width: int = 11) -> None:
        super().__init__()
        self.side, self.coarse = side, zero_init_last_layer_(_paper_cnn(50))
        fine = nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 3, padding=1)
        self.fine = zero_init_last_layer_(nn.Sequential(*fine))

    def forward(self, image: Tensor) -> Tensor:
        field = F.interpolate(self.coarse(image).view(-1, 2, 5, 5), (self.side // 2,) * 2, mode="bicubic", align_corners=True)
        return F.interpolate(field + self.fine(field), (self.side,) * 2, mode="bilinear", align_corners=True).flatten(1)


_localizer = partial(cnn, width=32, side=42, channels=(8, 16))
_small_cnn = partial(cnn, width=32, side=28, channels=(8, 16), kernels=(5, 5), pool_first=False)
_paper_cnn = partial(cnn, width=50, side=28, channels=(20, 20), kernels=(5, 5), pool_first=False)  # of the paper's size


_layer = partial(SpatialTransformerLayer, padding_mode="zeros")


def _cnn_layer(family: Family, build: Callable[[int], nn.Module] = _localizer) -> nn.Module:
    return _layer(zero_init_last_layer_(build(family.num_parameters)), family)


def _fcn_layer(family: Family) -> nn.Module:
    return _layer(nn.Sequential(nn.AvgPool2d(2), FCNLocalizer(family.num_parameters, (21, 21), hidden=(32, 32))), family)


def _prior_cpab() -> Family:
    return CoarseSampling(Whitened(CPAB((4, 4), length_scale=0.25), spread=0.6), 3)


class Page(NamedTuple):
    """What the networks of a page are, and how they are trained and measured."""

    rows: Mapping[str, Callable[[], nn.Module | None]]  # what builds the transformer of each network
    side: int  # of the images
    classifier: Callable[..., nn.Module]  # from outputs; from width and side too, where networks have ``parameters`` in all
    version: int  # of what a run is, so that those kept from another are not taken up
    parameters: int | None = None  # of a whole network: the classifier is as wide as the transformer leaves room for
    cycle: bool = True  # of train()
    unfolded: int | None = None  # folds are counted on so many of the digits that are shown; None on all
    chance: float | None = None  # accuracy of a training that ends in numbers out of bounds; None raises


_DISTORTED = {
    "FCN": lambda: None,
    "CNN": lambda: None,
    "ST-Affine FCN": lambda: _fcn_layer(AffineMatrix()),
    "ST-Affine CNN": lambda: _cnn_layer(AffineMatrix()),
    "ST-DiffeomorphicAffine CNN": lambda: _cnn_layer(DiffeomorphicAffine()),
    "ST-CPAB FCN": lambda: _fcn_layer(_prior_cpab()),
    "ST-CPAB CNN": lambda: _cnn_layer(_prior_cpab()),
    "ST-Affine+CPAB CNN": lambda: SpatialTransformerChain(_cnn_layer(DiffeomorphicAffine()), _cnn_layer(_prior_cpab())),
}
_ROTATED = {
    "CNN": lambda: None,
    **{f"TPS-STN, {k} x {k}": lambda k=k: _cnn_layer(ThinPlateSpline(2, k), _paper_cnn) for k in (2, 3, 5, 12, 16)},
    "dense field, not diffeomorphic": lambda: _layer(DenseLocalizer(28), DenseField((28, 28), 0)),
    "dense field, diffeomorphic": lambda: _layer(DenseLocalizer(28), DenseField((28, 28), 6)),
    "dense field, diffeomorphic, gradient penalty": lambda: _layer(DenseLocalizer(28), DenseField((28, 28), 6)),
}
_RATES = {
    "no transformer": lambda: None,
    "affine": lambda: _cnn_layer(AffineMatrix(), _small_cnn),
    "TPS, 16 points": lambda: _cnn_layer(ThinPlateSpline(2, 4), _small_cnn),
    "diffeomorphic affine": lambda: _cnn_layer(DiffeomorphicAffine(), _small_cnn),
    "CPAB, 4 x 4": lambda: _cnn_layer(CoarseSampling(Whitened(CPAB((4, 4))), 2), _small_cnn),
}
PAGES = {
    "distorted_mnist": Page(_DISTORTED, 42, cnn, version=7, parameters=60_000, unfolded=1000),
    "rotated_mnist": Page(_ROTATED, 28, _paper_cnn, version=1),
    "learning_rates": Page(_RATES, 28, _small_cnn, version=1, cycle=False, unfolded=1000, chance=0.1),
}


def digit_network(name: str, row: str, seed: int = 0) -> nn.Module:
    """The network of a row of a page: a classifier, with the row's transformer in front."""
    torch.manual_seed(seed)
    page = PAGES[name]
    if page.parameters is None:
        classifier, transformer = page.classifier(10), page.rows[row]()
    else:
        transformer, kind = page.rows[row](), fcn if row == "FCN" else page.classifier
        room = page.parameters - (0 if transformer is None else parameter_count(transformer))
        classifier = narrowed(lambda width: kind(10, width, page.side), room)
    return classifier if transformer is None else nn.Sequential(transformer, classifier)


def parameter_count(network: nn.Module) -> int:
    """Trained numbers of a network."""
    return sum(p.numel() for p in network.parameters())


def narrowed(build: Callable[[int], nn.Module], parameters: int, widest: int = 1024) -> nn.Module:
    """``build(width)`` with the width that comes nearest to a number of parameters, which grows with it."""
    low, high = 1, widest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if parameter_count(build(middle)) > parameters else (middle, high)
    return min((build(low), build(high)), key=lambda network: abs(parameter_count(network) - parameters))


def digit_step(network: nn.Module, batch: Mapping[str, Tensor], penalty: float = 0.0) -> dict[str, Tensor]:
    """Cross entropy, plus ``penalty`` times the mean squared difference of the displacement between neighbours."""
    image = batch["image"].float() / 255
    if not penalty:
        return {"cross_entropy": F.cross_entropy(network(image), batch["label"])}
    transformer, classifier = network
    ddf = transformer.deformation(image).ddf()
    slopes = sum(ddf.diff(dim=d).square().mean() for d in range(2, ddf.ndim))
    moved = warp(image, ddf, padding_mode=transformer.padding_mode)
    return {"cross_entropy": F.cross_entropy(classifier(moved), batch["label"]), "smoothness": penalty * slopes}


def measure_digits(network: nn.Module, data: Mapping[str, Tensor], unfolded: int | None = None) -> dict[str, float]:
    """``accuracy``, and how the deformations of the first ``unfolded`` digits (None: all) fold, computed on every voxel.

    ``folded`` is the share of voxels, ``folded_samples`` the number of digits with such a voxel, of so many ``samples``.
    """
    images, labels = (data[key].split(500) for key in ("image", "label"))
    with torch.no_grad():
        right = [network(image.float() / 255).argmax(1) == label for image, label in zip(images, labels)]
        found = {"accuracy": torch.cat(right).double().mean().item()}
        layers = (SpatialTransformerLayer, SpatialTransformerChain)
        if not isinstance(network, nn.Sequential) or not isinstance(network[0], layers):
            return found
        exact = copy.deepcopy(network[0])
        for module in exact.modules():
            if isinstance(module, CoarseSampling):
                module.factor = 1
        maps = (exact.deformation(image.float() / 255) for image in data["image"][:unfolded].split(500))
        shares = torch.cat([folding_fraction(deformation.ddf()) for deformation in maps])
    counts = {"folded_samples": int((shares > 0).sum()), "samples": len(shares)}
    return found | {"folded": shares.double().mean().item(), **counts}


def fit(
    page: Page, network: nn.Module, step: Callable, data: dict, shown: dict, iterations: int, seed: int, rate: float
) -> dict:
    """Train a network, measure it on what is ``shown``, and give its ``parameters`` and processor ``seconds`` an iteration."""
    began = time.process_time()
    try:
        train(network, step, data, iterations, seed, BATCH, rate, page.cycle)
        seconds = (time.process_time() - began) / max(iterations, 1)
        found = {**measure_digits(network, shown, page.unfolded), "parameters": parameter_count(network), "seconds": seconds}
    except NumericalError as error:
        if page.chance is None:
            raise
        return {"accuracy": page.chance, "failed": str(error)}
    finite = page.chance is None or all(p.isfinite().all() for p in network.parameters())
    return found if finite else {"accuracy": page.chance, "failed": "parameters are not finite"}


class DigitExperiment(Experiment):
    """An experiment on digits: options, images, and runs, each kept in ``--weights_dir`` under what it depends on."""

    def __init__(self, name: str, description: str | None, argv: Sequence[str] | None, **defaults: object) -> None:
        self.page = PAGES[name]
        shared = {"dataset_dir": str, "weights_dir": str, "rows": list(self.page.rows), "digits": 50000, "split": "test"}
        super().__init__(name, description, argv, **shared, **defaults)
        self.digits = lru_cache(None)(partial(read_digits, self.options.dataset_dir))
        self.images = lru_cache(None)(self._images)
        torch.set_num_threads(1)

    def _images(self, distortion: str, split: str, draws: int) -> dict[str, Tensor]:
        digits, seed = self.digits(split), 1 if split == "train" else 2
        digits = digits.spread(self.options.digits) if split == "train" else digits.repeated(draws)
        return distort(digits, distortion, self.page.side, seed, self.options.weights_dir)

    def run(self, row: str, seed: int, rate: float, split: str | None = None, longer: int = 1, draws: int = 1, **more) -> dict:
        """What a row gives on a ``split`` (None: the options'), trained ``longer`` times as long, each digit in ``draws``.

        ``more``: the ``distortion``, if not "rotated".
        """
        options, split = self.options, split or self.options.split
        penalty, iterations = 10.0 if row.endswith("penalty") else 0.0, longer * options.iterations
        settings = {"row": row, "seed": seed, "iterations": iterations, "rate": rate, "digits": options.digits, "split": split}
        settings |= {"experiment": self.name, "version": self.page.version, **more, **({"draws": draws} if draws > 1 else {})}

        def found() -> dict:
            network, distortion = digit_network(self.name, row, seed), more.get("distortion", "rotated")
            data, shown = self.images(distortion, "train", 1), self.images(distortion, split, draws)
            return fit(self.page, network, partial(digit_step, penalty=penalty), data, shown, iterations, seed, rate)

        got = kept(options.weights_dir, settings, found)
        print(*more.values(), row, seed, f"{rate:g}", split, got, flush=True)
        return got


def compared(what: str, first: Sequence[float], second: Sequence[float]) -> dict[str, str]:
    """A row that says whether the runs of ``first`` are more accurate; undecided if the interval has both signs."""
    differences = [a - b for a, b in zip(first, second)]
    mean, (low, high) = statistics.fmean(differences), student_interval(differences)
    trend = "behind" if mean < 0 else "ahead" if mean > 0 else "equal"
    undecided = f"undecided, {trend} in {'one run' if len(differences) < 2 else 'the mean'}"
    verdict = "yes" if low > 0 else "**no**" if high < 0 else undecided
    return {"asked": what, "difference": with_interval(differences, "+.4f"), "holds": verdict}
