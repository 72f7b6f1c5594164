"""What a CPU computes, a GPU computes too, to rounding. Skipped where there is none.

``MONAI_DIFFEO_TEST_DEVICE=cpu`` runs the tests on a CPU, to see that they run at all.
"""

import copy
import csv
import os

import pytest
import torch
from monai.networks.nets import UNet
from torch.testing import assert_close

from monai_diffeo.canonicalize import Canonicalizer, load_canonicalizer
from monai_diffeo.energies import DeformationRegularizer, VAEEnergy
from monai_diffeo.families import (
    CPAB,
    AffineCPAB,
    AffineMatrix,
    ControlGrid,
    DiffeomorphicAffine,
    Homography,
    ThinPlateSpline,
    Whitened,
)
from monai_diffeo.flow import bch, compose, exp, invert, warp
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import (
    CNNLocalizer,
    DeformationPredictor,
    EnergyCritic,
    EnergyVAE,
    ImageOrientation,
    OutlierDetector,
    ShapePrior,
    SpatialTransformerLayer,
    TemplateTransformer,
)
from monai_diffeo.networks.predictor import resample_image
from monai_diffeo.radiograph.packaged import packaged_film
from monai_diffeo.training import (
    ClassificationStep,
    CriticStep,
    OrientationStep,
    OutlierStep,
    PredictorStep,
    SegmentationStep,
    TemplateStep,
    VAEStep,
)
from monai_diffeo.transforms import LoadImageFilmd, ScaleFilmIntensityd
from tests.bundles.command import ROOT, run_here, workflow
from tests.helpers import blob

DEVICE = os.environ.get("MONAI_DIFFEO_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device")
FAMILIES = [
    AffineMatrix(),
    DiffeomorphicAffine(),
    Homography(),
    ThinPlateSpline(),
    CPAB((4, 4)),
    AffineCPAB((2, 2)),
    ControlGrid(2, 4),
    Whitened(CPAB((4, 4))),
]


def copied(module):
    """The same module on the GPU."""
    return copy.deepcopy(module).to(DEVICE)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_families_and_their_gradients(family):
    theta = family.sample(3, 0.1, torch.Generator().manual_seed(0))
    found = []
    for where, module in (("cpu", family), (DEVICE, copied(family))):
        x = theta.detach().to(where).requires_grad_()
        there, back = module(x, (24, 31)).ddf((24, 31)), module.inverse(x, (24, 31)).ddf((24, 31))
        (there.square().sum() + back.sum()).backward()
        found.append([there.detach().cpu(), back.detach().cpu(), x.grad.cpu()])
        assert there.device.type == where
    for one, other in zip(*found):
        assert_close(one, other, atol=2e-3, rtol=2e-3)


def test_fields():
    draw = torch.Generator().manual_seed(0)
    v, w = (
        torch.nn.functional.interpolate(torch.randn(1, 2, 4, 4, generator=draw), (32, 32), mode="bicubic") for _ in range(2)
    )
    image = blob(1, (32, 32))
    for ask in (
        lambda a, b, i: exp(a, 6),
        lambda a, b, i: compose(exp(a, 6), exp(b, 6)),
        lambda a, b, i: bch(a, b, 4),
        lambda a, b, i: invert(exp(a, 6)),
        lambda a, b, i: warp(i, exp(a, 6)),
    ):
        assert_close(ask(v.to(DEVICE), w.to(DEVICE), image.to(DEVICE)).cpu(), ask(v, w, image), atol=2e-3, rtol=2e-3)


def test_a_transformer_layer_learns_there():
    family = CPAB((2, 2))
    layer = SpatialTransformerLayer(
        CNNLocalizer(family.num_parameters, (20, 20), channels=(4,), kernel_size=3, hidden=(8,)), family
    ).to(DEVICE)
    image = torch.rand(2, 1, 20, 20, device=DEVICE)
    assert_close(layer(image), image, atol=1e-4, rtol=0)
    layer(image).square().sum().backward()
    assert layer.localizer[-1].bias.grad.abs().max() > 0


def test_a_template_transformer():
    torch.manual_seed(0)
    prior = ShapePrior([[0.0, -0.45], [0.0, 0.45]], [[0.6, 0.3], [0.6, 0.3]], 3.0)
    network = TemplateTransformer(UNet(2, 3, 8, (8, 16), (2,)), prior, flow_size=32, control_size=8, gain=1.0).eval()
    image = torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        one, other = network.segment(image), copied(network).segment(image.to(DEVICE))
    assert other.log_odds.device.type == DEVICE and other.intact.all()
    assert ((one.log_odds > 0) == (other.log_odds.cpu() > 0)).float().mean() > 0.995


def test_a_canonicaliser_and_its_inferer():
    torch.manual_seed(0)
    canonicalizer = Canonicalizer(
        VAEEnergy(EnergyVAE(in_channels=1, image_size=(32, 32), channels=(8, 16))),
        ControlGrid(2, 4),
        DeformationRegularizer(),
        steps=5,
    )
    image, network = blob(2, (32, 32)), UNet(2, 1, 1, (8, 16), (2,)).eval()
    with torch.no_grad():
        one = DiffeoInferer(canonicalizer)(image, network)
        other = DiffeoInferer(copied(canonicalizer))(image.to(DEVICE), copied(network))
    assert other.device.type == DEVICE and other.shape == one.shape and torch.isfinite(other).all()


@pytest.mark.parametrize("quarters", [0, 1, 2])
def test_a_film_that_is_rotated_and_mirrored(quarters):
    """The energies decide on the rotation, for the network may be in doubt; the mirrored film is looked at once more."""
    pytest.importorskip("data_store")
    read = LoadImageFilmd("film")({"film": str(packaged_film())})
    film = ScaleFilmIntensityd("film")(read)["film"].as_tensor()[None].float()
    film = torch.nn.functional.interpolate(film, (128, 128), mode="bilinear", antialias=True)
    images = torch.rot90(torch.cat([film, film.flip(3)]), quarters, (2, 3))
    canonicalizer = load_canonicalizer("cxr")
    one, other = canonicalizer(images), copied(canonicalizer)(images.to(DEVICE))
    assert other.rotations.tolist() == one.rotations.tolist() == [quarters, quarters]
    assert [note.startswith("looks mirrored") for note in other.notes] == [False, True]
    assert_close(other.ddf.cpu(), one.ddf, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "mode, count, settings",
    [
        ("single_pass", 40, {}),
        ("refine", 3, {}),
        ("refine", 3, {"search": None, "steps": 12}),
        ("refine", 3, {"search": None, "steps": 12, "cuda_graph": True}),
        ("faithful", 3, {"steps": 12}),
    ],
)
def test_a_batch_gives_what_its_films_give(mode, count, settings):
    """Each film of another deformation; predictors to the last bit of their parameters."""
    canonicalizer = load_canonicalizer("cxr", mode, DEVICE, **settings)
    v = torch.nn.functional.interpolate(torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0)), (128, 128))
    film = resample_image(load_canonicalizer("cxr", "refine").search.energy.atlas(), (128, 128))
    images = warp(film.expand(count, -1, -1, -1), exp(2 * v)).to(DEVICE)
    some = [0, 1, count - 1]
    if predictor := canonicalizer.predictor:
        assert torch.equal(predictor(images)[some], torch.cat([predictor(images[i : i + 1]) for i in some]))
    together, alone = canonicalizer(images), [canonicalizer(images[i : i + 1]) for i in some]
    assert_close(together.ddf[some], torch.cat([one.ddf for one in alone]), atol=1e-4, rtol=0)
    assert [together.status[i] for i in some] == [one.status[0] for one in alone] and together.moved.any()


def test_volumes_that_move_towards_an_atlas_together_move_as_they_do_alone():
    canonicalizer = load_canonicalizer("brain_3d", "refine", DEVICE, orientation=None)
    assert canonicalizer._computes_double()
    volume = resample_image(canonicalizer.search.energy.atlas(), canonicalizer.working_size)
    v = 2 * torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    v = torch.nn.functional.interpolate(v, canonicalizer.working_size, mode="trilinear").to(DEVICE)
    images = warp(volume.expand(2, -1, -1, -1, -1), exp(v))
    together, alone = canonicalizer(images), [canonicalizer(image[None]) for image in images]
    assert_close(together.ddf, torch.cat([one.ddf for one in alone]), atol=1e-3, rtol=0)
    assert together.steps.tolist() == [40, 40] and together.moved.all()


MODES = ["single_pass", "refine", "faithful"]
BUNDLES = [*(("cxr_lung_segmentation", mode) for mode in MODES), *(("cxr_lung_template", mode) for mode in (None, *MODES))]


@pytest.mark.parametrize("name, mode", BUNDLES)
def test_a_bundle_of_films(name, mode, tmp_path):
    """The packaged film, from its file to mask, report and picture; without a mode the template bundle as it is."""
    for package in ("ignite", "fire", "pydicom", "nibabel", "matplotlib", "skimage", "data_store"):
        pytest.importorskip(package)
    options = {"device": DEVICE} if mode is None else {"device": DEVICE, "mode": mode, "enabled": True}
    status, report = run_here(ROOT / "bundles" / name, tmp_path, **options)
    (line,) = report.values()
    assert status == 0 and line["device"] == DEVICE and 0.1 < line["areas"]["total"] < 0.5
    assert (tmp_path / line["mask"]).exists() and (tmp_path / line["figure"]).stat().st_size > 50_000
    assert mode is None or line["energy_before"] is not None


@pytest.mark.parametrize("mode", MODES)
def test_the_bundle_of_digits(mode, tmp_path):
    for package in ("ignite", "fire", "matplotlib", "mlxtend", "skimage"):
        pytest.importorskip(package)
    options = {"device": DEVICE, "mode": mode, "digits": 16, "output_dir": str(tmp_path)}
    workflow(ROOT / "bundles" / "mnist_genus", **options).run()
    with open(tmp_path / "genus.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16 and sum(r["answer"] == r["genus"] for r in rows) >= 12 and all(r["agreement"] or 1 for r in rows)


def steps():
    """Each kind of training step, its network, and a batch of four images."""
    family, image = ControlGrid(2, 4), blob(4, (32, 32), shift=torch.tensor([-0.2, 0.0, 0.1, 0.3]))
    batch = {"image": image, "label": (image > 0.4).float()}
    prior = ShapePrior([[0.0, 0.0]], [[0.4, 0.4]], 4.0)
    segmenter = UNet(2, 1, 1, (8, 16), (2,))
    return {
        "segmentation": (SegmentationStep(strength=1.0), segmenter, batch),
        "classification": (
            ClassificationStep(strength=1.0),
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 3)),
            {**batch, "label": torch.tensor([0, 1, 2, 0])},
        ),
        "vae": (VAEStep(), EnergyVAE(image_size=(32, 32), channels=(8, 8), latent=4), batch),
        "critic": (CriticStep(), EnergyCritic(channels=4, layers=2), batch),
        "orientation": (OrientationStep((32, 32)), ImageOrientation(image_size=(32, 32), channels=(8, 16)), batch),
        "outlier": (OutlierStep(), OutlierDetector(image_size=(32, 32), channels=(8, 16)), batch),
        "predictor": (
            PredictorStep(family, copied(segmenter)),
            DeformationPredictor(family.num_parameters, image_size=(32, 32), channels=(8, 16)),
            {**batch, "answer": batch["label"]},
        ),
        "template": (
            TemplateStep(strength=1.0),
            TemplateTransformer(UNet(2, 2, 8, (8, 16), (2,)), prior, flow_size=24, control_size=8),
            batch,
        ),
    }


@pytest.mark.parametrize(
    "kind", ["segmentation", "classification", "vae", "critic", "orientation", "outlier", "predictor", "template"]
)
def test_one_training_step_there(kind):
    torch.manual_seed(0)
    step, network, batch = steps()[kind]
    network, batch = network.to(DEVICE).train(), {name: value.to(DEVICE) for name, value in batch.items()}
    losses = step(network, batch)
    sum(losses.values()).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(value.device.type == DEVICE and torch.isfinite(value) for value in losses.values())
    assert gradients and all(g.device.type == DEVICE and torch.isfinite(g).all() for g in gradients)
    assert max(g.abs().max().item() for g in gradients) > 0
