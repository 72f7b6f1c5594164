"""Mistakes that users make, and what the package answers: who, what was expected, what came, what to do.

``CASES`` is their one home: the test of user errors runs them, and the page on networks of one's own lists them by ``rows()``.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from monai_diffeo import errors
from monai_diffeo.canonicalize import Canonicalizer, load_canonicalizer
from monai_diffeo.energies import CriticEnergy, DeformationRegularizer, WeightedEnergy
from monai_diffeo.families import CPAB, ControlGrid
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import DeformationPredictor, EnergyCritic

IMAGES = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
FAMILY = ControlGrid(2, controls=4)


@dataclass(frozen=True)
class UserError:
    """A mistake, and four fragments of the message that it must meet.

    Attributes:
        mistake: in words, as a row of the page.
        make: makes it.
        kind: class of the error.
        fragments: of who, what was expected, what came, and what to do.
    """

    mistake: str
    make: Callable[[], Any]
    kind: type[Exception]
    fragments: tuple[str, str, str, str]

    def message(self) -> str:
        """What the user reads."""
        try:
            self.make()
        except self.kind as error:
            return str(error)
        return "no error"


def mean_brightness(image: Tensor) -> Tensor:
    """An energy as a plain function."""
    return image.flatten(1).mean(1)


def predictor(num_parameters: int = FAMILY.num_parameters, in_channels: int = 1) -> nn.Module:
    """A small predictor that moves nothing."""
    return DeformationPredictor(num_parameters, 2, in_channels, (32, 32), (8, 8))


def canonicalizer(energy: Any = mean_brightness, **settings: Any) -> Canonicalizer:
    """One look of the small predictor; nothing is rejected."""
    parts = {"family": FAMILY, "predictor": predictor(), "max_energy_increase": None}
    return Canonicalizer(energy, **{**parts, **settings})


def inferer(**settings: Any) -> DiffeoInferer:
    """The small canonicaliser around any network."""
    return DiffeoInferer(canonicalizer(), **settings)


def steps(**settings: Any) -> Any:
    """Two steps of optimisation."""
    return canonicalizer(**{"steps": 2, "regularizer": DeformationRegularizer(), **settings})(IMAGES)


def folder(mode: str = "single_pass", call: Callable = load_canonicalizer, changes: Mapping[str, Any] | None = None) -> Any:
    """Load a small folder whose JSON has ``changes`` in its mode."""
    with tempfile.TemporaryDirectory() as place:
        network = predictor()
        torch.save(network.state_dict(), Path(place) / "predictor.pt")
        target = {"_target_": "monai_diffeo.networks.DeformationPredictor", "num_parameters": FAMILY.num_parameters}
        grid = {"_target_": "monai_diffeo.families.ControlGrid", "spatial_dims": 2, "controls": 4}
        moved = {
            "_target_": "monai_diffeo.energies.ResidualDeformationEnergy",
            "predictor": "@networks::predictor",
            "family": "@families::grid",
        }
        single = {"family": "@families::grid", "predictor": "@networks::predictor", "energies": {"moved": 1.0}}
        settings = {
            "default_mode": "single_pass",
            "families": {"grid": grid},
            "networks": {"predictor": {**target, "image_size": [32, 32], "channels": [8, 8]}},
            "weights": {"predictor": "predictor.pt"},
            "energies": {"moved": moved},
            "modes": {"single_pass": {**single, **(changes or {})}},
        }
        (Path(place) / "canonicalizer.json").write_text(json.dumps(settings))
        (Path(place) / "statistics.json").write_text(json.dumps({"moved": {"mean": 0.0, "std": 1.0}}))
        return call(place, mode)


POINTS = torch.rand(2, 7, 2)
CASES = (
    UserError(
        "a numpy image",
        lambda: canonicalizer()(IMAGES.numpy()),
        TypeError,
        (
            "canonicalize()",
            "torch.Tensor of shape (B, C, H, W)",
            "got ndarray of shape (2, 1, 32, 32)",
            "torch.as_tensor(image)",
        ),
    ),
    UserError(
        "an image without batch and channel",
        lambda: canonicalizer()(IMAGES[0, 0]),
        errors.ShapeError,
        ("canonicalize()", "(B, C, H, W)", "got (32, 32)", "image[None, None]"),
    ),
    UserError(
        "a 3D volume on a 2D canonicaliser",
        lambda: canonicalizer()(torch.rand(1, 1, 8, 32, 32)),
        errors.ShapeError,
        ("canonicalize()", "(B, C, H, W)", "got (1, 1, 8, 32, 32)", "for images with 2 axes: give slices one by one"),
    ),
    UserError(
        "an empty batch",
        lambda: canonicalizer()(IMAGES[:0]),
        errors.ShapeError,
        ("canonicalize()", "no axis of length 0", "got (0, 1, 32, 32)", "Leave out empty batches"),
    ),
    UserError(
        "a three-channel image on a one-channel predictor",
        lambda: canonicalizer()(IMAGES.repeat(1, 3, 1, 1)),
        errors.ShapeError,
        ("DeformationPredictor", "(B, 1, H, W)", "got (2, 3, 32, 32)", "Build the network for such images"),
    ),
    UserError(
        "a three-channel image on a one-channel energy",
        lambda: canonicalizer(CriticEnergy(EnergyCritic(channels=4, layers=2)))(IMAGES.repeat(1, 3, 1, 1)),
        errors.ShapeError,
        ("EnergyCritic", "(B, 1, H, W)", "got (2, 3, 32, 32)", "Build the network for such images"),
    ),
    UserError(
        "an energy that returns a scalar",
        lambda: canonicalizer(lambda image: image.mean())(IMAGES),
        errors.ShapeError,
        ("<lambda>()", "(2,), one number for each image", "got ()", ".flatten(1).mean(1)"),
    ),
    UserError(
        "a term of a weighted energy that returns a scalar",
        lambda: canonicalizer(WeightedEnergy({"mean": lambda image: image.mean(), "own": mean_brightness}))(IMAGES),
        errors.ShapeError,
        ("<lambda>()", "(2,), one number for each image", "got ()", ".flatten(1).mean(1)"),
    ),
    UserError(
        "the class of an energy in place of an energy",
        lambda: canonicalizer(WeightedEnergy),
        TypeError,
        ("Canonicalizer", "'energy' must be of class Energy, or a function", "got <class", "call its class"),
    ),
    UserError(
        "an energy without a gradient, lowered by steps",
        lambda: steps(energy=lambda image: image.detach().flatten(1).mean(1)),
        ValueError,
        ("<lambda>()", "must be differentiable", "got no gradient", "torch operations"),
    ),
    UserError(
        "a regularizer that returns a scalar",
        lambda: steps(regularizer=lambda velocity, ddf: velocity.square().mean()),
        errors.ShapeError,
        ("Canonicalizer", "'regularizer' must have shape (1,)", "got ()", "one number for each image"),
    ),
    UserError(
        "a predictor of the wrong length",
        lambda: canonicalizer(predictor=predictor(FAMILY.num_parameters + 1))(IMAGES),
        errors.ShapeError,
        (
            "predict()",
            "as ControlGrid has it",
            f"got (2, {FAMILY.num_parameters + 1})",
            f"num_parameters={FAMILY.num_parameters}",
        ),
    ),
    UserError(
        "theta of the wrong length",
        lambda: FAMILY(torch.zeros(1, 5), (32, 32)),
        errors.ShapeError,
        ("ControlGrid", f"(B, {FAMILY.num_parameters})", "got (1, 5)", "one row alone is theta[None]"),
    ),
    UserError(
        "CPAB(4)",
        lambda: CPAB(4),
        TypeError,
        ("CPAB", "one number an axis or a Tessellation", "got 4", "write (4, 4)"),
    ),
    UserError(
        "a number as text, tta_samples='8'",
        lambda: inferer(tta_samples="8"),
        ValueError,
        ("DiffeoInferer", "'tta_samples' must be a whole number", "got '8', a text", "write it without quotes"),
    ),
    UserError(
        "a number as text, steps='3'",
        lambda: canonicalizer(steps="3"),
        ValueError,
        ("Canonicalizer", "'steps' must be a whole number", "got '3', a text", "write it without quotes"),
    ),
    UserError(
        "a path in place of a canonicaliser",
        lambda: DiffeoInferer("models/energy"),
        TypeError,
        ("DiffeoInferer", "'canonicalizer' must be a Canonicalizer", "got str 'models/energy'", "load_canonicalizer(folder)"),
    ),
    UserError(
        "the class of an inferer in place of an inferer",
        lambda: inferer(inferer=SlidingWindowInferer),
        TypeError,
        ("DiffeoInferer", "'inferer' must be an inferer", "got the class SlidingWindowInferer", "Create it first"),
    ),
    UserError(
        "images in place of the network",
        lambda: inferer()(IMAGES, IMAGES),
        TypeError,
        ("DiffeoInferer", "'network' must be a network", "got Tensor", "the images first, then the network"),
    ),
    UserError(
        "a canonicaliser that gives an image",
        lambda: DiffeoInferer(lambda image: image)(IMAGES, nn.Identity()),
        TypeError,
        ("DiffeoInferer", "must return a Canonicalization", "got Tensor", "Give a Canonicalizer"),
    ),
    UserError(
        "landmarks that are not declared",
        lambda: inferer()(IMAGES, lambda x: {"landmarks": POINTS}),
        errors.ShapeError,
        ("DiffeoInferer", "one kind of answer", "got (2, 7, 2)", "outputs='map', 'labels', 'scores', 'points', 'boxes'"),
    ),
    UserError(
        "an unknown kind of output",
        lambda: inferer(outputs="mask"),
        errors.ConfigError,
        ("DiffeoInferer", "'outputs' must be 'map', 'labels'", "got 'mask'", "outputs={'seg': 'map', 'landmarks': 'points'}"),
    ),
    UserError(
        "a key that the network does not answer",
        lambda: inferer(outputs={"segmentation": "map"})(IMAGES, lambda x: {"seg": x}),
        errors.ConfigError,
        ("DiffeoInferer", "must name keys of 'prediction'", "got ['segmentation'] for the keys ['seg']", "Correct 'outputs'"),
    ),
    UserError(
        "a map that does not cover the image",
        lambda: inferer(outputs="map")(IMAGES, lambda x: x[..., 3:-3, 3:-3]),
        errors.ShapeError,
        (
            "DiffeoInferer",
            "(2, ..., 32, 32), or whole fractions of its axes",
            "got (2, 1, 26, 26)",
            "pad what the network crops",
        ),
    ),
    UserError(
        "boxes given as points",
        lambda: inferer(outputs="points")(IMAGES, lambda x: torch.rand(2, 7, 4)),
        errors.ShapeError,
        ("DiffeoInferer", "(2, N, 2) as 'points'", "got (2, 7, 4)", "Coordinates are voxels"),
    ),
    UserError(
        "an unknown family in JSON",
        lambda: folder(changes={"family": "@families::siren"}),
        errors.ConfigError,
        ("load_canonicalizer()", "among the families", "no 'siren'", "there are ['grid']. Use one of these"),
    ),
    UserError(
        "a class in JSON that does not exist",
        lambda: folder(changes={"family": {"_target_": "monai_diffeo.families.ControlGird"}}),
        errors.ConfigError,
        ("load_canonicalizer()", "_target_ must be", "ControlGird", "trusted=True"),
    ),
    UserError(
        "an unknown mode",
        lambda: folder("fast"),
        errors.ConfigError,
        ("load_canonicalizer()", "among the modes", "no 'fast'", "there are ['single_pass']"),
    ),
    UserError(
        "an unknown setting in JSON",
        lambda: folder(changes={"stepz": 3}),
        errors.ConfigError,
        ("load_canonicalizer()", "must have 'family', 'energies' and any of", "stepz", "Remove or rename"),
    ),
    UserError(
        "a folder that is not there",
        lambda: load_canonicalizer("no/such/folder"),
        errors.WeightsError,
        ("load_canonicalizer()", "a folder or the name of a bundle", "got 'no/such/folder'", "Check the path or the name"),
    ),
    UserError(
        "device='cuda' on a machine without it",
        lambda: load_canonicalizer("no/such/folder", device="cuda:99"),
        ValueError,
        ("load_canonicalizer()", "'device' must be one of this machine", "got 'cuda:99'", "device='cpu'"),
    ),
    UserError(
        "a search that returns nothing",
        lambda: canonicalizer(search=lambda objective: None)(IMAGES),
        TypeError,
        ("Canonicalizer", "'theta' must be a torch.Tensor", "got NoneType", "Let 'search' return one"),
    ),
)


def rows() -> list[dict[str, str]]:
    """The mistakes and the messages, as rows of a table."""
    return [
        {"mistake": case.mistake, "error": case.kind.__name__, "message": case.message().replace("|", "\\|")} for case in CASES
    ]
