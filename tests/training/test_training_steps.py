import csv
import math
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from torch import nn

from monai_diffeo.errors import NumericalError
from monai_diffeo.families import ControlGrid
from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE, OutlierDetector
from monai_diffeo.training import (
    AddAnswerd,
    ClassificationStep,
    CriticStep,
    LossCurve,
    OutlierStep,
    PredictorStep,
    SegmentationStep,
    TrainingIteration,
    VAEStep,
)

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = (32, 32)
FAMILY = ControlGrid(2, controls=3, steps=4)


def films():
    """Eight ellipses on a ramp, and their masks."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    draw = torch.Generator().manual_seed(0)
    radius = 0.35 + 0.2 * torch.rand(8, 2, 1, 1, generator=draw)
    label = ((y / radius[:, 0]) ** 2 + (x / radius[:, 1]) ** 2 < 1).float()[:, None]
    return {"image": 0.2 + 0.1 * (y + 1) + 0.5 * label, "label": label}


def segmenter(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 5, padding=2))


def recipe(kind):
    """Step, network and learning rate of a training that a test can afford."""
    torch.manual_seed(0)
    if kind == "baseline":
        return SegmentationStep(), segmenter(), 1e-2
    if kind == "augmented":
        return SegmentationStep(strength=1.0), segmenter(), 1e-2
    if kind == "vae":
        return VAEStep(beta=0.1), EnergyVAE(image_size=SIZE, channels=(8, 8, 8), latent=8), 5e-3
    if kind == "critic":
        return CriticStep(penalty=1.0), EnergyCritic(channels=4, layers=3, stride=2), 3e-3
    if kind == "outlier":
        return OutlierStep(), OutlierDetector(image_size=SIZE, channels=(8, 8)), 3e-3
    network = DeformationPredictor(FAMILY.num_parameters, image_size=SIZE, channels=(8, 16), hidden=32)
    torch.manual_seed(1)
    return PredictorStep(FAMILY, segmenter() if kind == "predictor" else None), network, 3e-3


KINDS = [
    "baseline",
    "augmented",
    "vae",
    "critic",
    "outlier",
    "predictor",
    "predictor-without-network",
    "predictor-without-answers",
]


def batch_for(kind):
    batch = films()
    return {**batch, "answer": 0.05 + 0.9 * batch["label"]} if kind in ("predictor", "predictor-without-network") else batch


def train(kind, epochs, *handlers, batch=None, seed=0):
    step, network, rate = recipe(kind)
    torch.manual_seed(seed)  # what the VAE draws its latents from
    history = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[batch or batch_for(kind)],
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), rate),
        loss_function=None,
        iteration_update=TrainingIteration(step),
        train_handlers=list(handlers),
    )
    from ignite.engine import Events

    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: history.append(dict(engine.state.output[0])))
    trainer.run()
    return network, history


def loss_on_the_same_draws(kind, network):
    """Paired, since the random deformations move the loss more than a short training does."""
    step = recipe(kind)[0]
    torch.manual_seed(0)
    return sum(float(sum(step(network, batch_for(kind)).values()).detach()) for _ in range(3)) / 3


@pytest.mark.parametrize(
    "kind, share",
    [("baseline", 0.7), ("augmented", 0.8), ("vae", 0.7), ("predictor", 0.99), ("critic", None), ("outlier", 0.95)],
)
def test_training_lowers_the_loss(kind, share):
    before = loss_on_the_same_draws(kind, recipe(kind)[1])
    after = loss_on_the_same_draws(kind, train(kind, 15)[0])
    assert after < (before - 0.1 if share is None else share * before)  # a critic's loss has no zero


@pytest.mark.parametrize("kind", ["augmented", "vae", "critic", "outlier", "predictor"])
def test_two_trainings_of_one_seed_are_identical_bit_by_bit(kind):
    (a, first), (b, second) = train(kind, 2), train(kind, 2)
    assert first == second
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values()):
        assert torch.equal(x, y), name
    assert not all(torch.equal(x, y) for x, y in zip(recipe(kind)[1].state_dict().values(), a.state_dict().values()))


@pytest.mark.parametrize(
    "kind, make",
    [
        ("augmented", lambda seed: SegmentationStep(strength=1.0, seed=seed)),
        ("vae", lambda seed: VAEStep(seed=seed)),
        ("critic", lambda seed: CriticStep(seed=seed)),
        ("outlier", lambda seed: OutlierStep(seed=seed)),
        ("predictor", lambda seed: PredictorStep(FAMILY, segmenter(), seed=seed)),
    ],
)
def test_the_seed_of_a_step_decides_its_random_numbers(kind, make):
    network = recipe(kind)[1].eval()
    loss = lambda seed: float(sum(make(seed)(network, batch_for(kind)).values()))  # noqa: E731
    assert loss(0) == loss(0) != loss(1)


@pytest.mark.parametrize(
    "kind, names",
    [
        ("baseline", {"segmentation"}),
        ("vae", {"reconstruction", "divergence"}),
        ("critic", {"wasserstein", "penalty"}),
        ("outlier", {"outlier"}),
        ("predictor", {"grid", "image", "smooth", "overlap", "answer"}),
        ("predictor-without-network", {"grid", "image", "smooth", "overlap"}),
        ("predictor-without-answers", {"grid", "image", "smooth"}),
    ],
)
def test_losses_have_names_and_add_up(kind, names):
    _, history = train(kind, 1)
    assert set(history[0]) == names | {"loss"}
    assert history[0]["loss"] == pytest.approx(sum(history[0][n] for n in names), rel=1e-5)
    assert all(isinstance(value, float) for value in history[0].values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_a_number_stops_the_training_and_says_where(kind):
    bad = batch_for(kind)
    bad["image"][3] = math.nan
    with pytest.raises(NumericalError, match="iteration 1: loss became .*nan.*learning rate"):
        train(kind, 2, batch=bad)


def test_an_infinite_loss_stops_the_training_before_the_weights_are_touched():
    network = segmenter()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[films()],
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-2),
        loss_function=None,
        iteration_update=TrainingIteration(lambda net, batch: {"huge": net(batch["image"]).sum() * math.inf}),
    )
    with pytest.raises(NumericalError, match="huge"):
        trainer.run()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_the_gradient_is_clipped():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(1, 1), "label": torch.ones(1, 1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 1.0),
        loss_function=None,
        iteration_update=TrainingIteration(lambda net, batch: {"steep": 1000 * net(batch["image"]).sum()}, clip=0.5),
    )
    trainer.run()
    assert network.weight.item() == pytest.approx(-0.5, abs=1e-4)


def test_each_iteration_trains_by_its_own_gradient_in_training_mode():
    network, modes = nn.Linear(1, 1, bias=False).eval(), []
    nn.init.zeros_(network.weight)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=[{"image": torch.ones(1, 1), "label": torch.ones(1, 1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.25),
        loss_function=None,
        iteration_update=TrainingIteration(
            lambda net, batch: {
                "a": net(batch["image"]).sum() * 0.5,
                "b": modes.append(net.training) or net.weight.sum() * 0.25,
            }
        ),
    )
    trainer.run()
    assert network.weight.item() == pytest.approx(-3 * 0.25 * 0.75) and modes == [True] * 3
    assert trainer.state.output[0] == {
        "loss": pytest.approx(-2 * 0.1875 * 0.75),
        "a": pytest.approx(-0.1875),
        "b": pytest.approx(-0.09375),
    }


def test_the_loss_curve_is_a_table_of_epochs(tmp_path, capsys):
    path = tmp_path / "new" / "vae.csv"
    _, history = train("vae", 3, LossCurve(path))
    rows = list(csv.DictReader(open(path)))
    assert list(rows[0]) == ["epoch", "loss", "reconstruction", "divergence", "seconds"]
    assert [r["epoch"] for r in rows] == ["1", "2", "3"]
    for row, values in zip(rows, history):  # one batch an epoch
        assert float(row["loss"]) == pytest.approx(values["loss"], abs=1e-6)
    assert "vae: epoch 3/3, loss" in capsys.readouterr().out


def test_the_loss_curve_averages_an_epoch_replaces_an_old_file_and_can_be_silent(tmp_path, capsys):
    path = tmp_path / "curve.csv"
    path.write_text("old")
    step, network, rate = recipe("baseline")
    losses = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=[films(), films()],
        network=network,
        loss_function=None,
        optimizer=torch.optim.Adam(network.parameters(), rate),
        iteration_update=TrainingIteration(step),
        train_handlers=[LossCurve(path, progress=False)],
    )
    from ignite.engine import Events

    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"]))
    trainer.run()
    rows = list(csv.DictReader(open(path)))
    assert [float(r["loss"]) for r in rows] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], abs=1e-6)
    assert "curve" not in capsys.readouterr().out


def test_a_training_that_fails_leaves_the_old_curve(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("old")
    step, network, rate = recipe("baseline")

    def fail_in_the_second_epoch(engine):
        if engine.state.epoch == 2:
            raise KeyboardInterrupt

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=[films()],
        network=network,
        loss_function=None,
        optimizer=torch.optim.Adam(network.parameters(), rate),
        iteration_update=TrainingIteration(step),
        train_handlers=[LossCurve(path, progress=False)],
    )
    from ignite.engine import Events

    trainer.add_event_handler(Events.EPOCH_STARTED, fail_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert path.read_text() == "old" and len((tmp_path / "curve.csv.part").read_text().splitlines()) == 2


def test_the_network_under_test_is_not_trained():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
    step, (_, predictor, rate) = PredictorStep(FAMILY, network), recipe("predictor")
    optimizer = torch.optim.Adam(predictor.parameters(), rate)
    for _ in range(2):
        sum(step(predictor, batch_for("predictor")).values()).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(step.network.state_dict().values(), network.state_dict().values()))


def test_a_perfect_prediction_leaves_no_grid_loss():
    """The grid term must reward the inverse of the true deformation, not the deformation itself."""
    from monai_diffeo.augmentation.deformations import random_svf
    from monai_diffeo.flow import exp

    v = random_svf(2, SIZE, torch.Generator().manual_seed(0), amplitude=0.1)
    step = PredictorStep(FAMILY)
    film, theta = films()["image"][:2], torch.zeros(2, FAMILY.num_parameters)
    grid = lambda ddf: float(step._losses(film, film, exp(v), ddf, theta, None)["grid"])  # noqa: E731
    assert grid(exp(-v)) < 0.02 * grid(torch.zeros_like(v)) < grid(exp(v))


def test_the_answers_term_rewards_the_right_pose():
    """Whatever the network under test answers, it must count where the answer lies after the whole map."""
    from monai_diffeo.augmentation.deformations import random_svf
    from monai_diffeo.flow import exp, warp

    v = random_svf(8, SIZE, torch.Generator().manual_seed(0), amplitude=0.15, sigma=0.12)
    batch, theta = films(), torch.zeros(8, FAMILY.num_parameters)
    network = lambda image: 40 * (image - 0.55)  # noqa: E731  (a threshold between ramp and ellipse)
    step = PredictorStep(FAMILY)
    step.network = network
    shown, answer = warp(batch["image"], exp(v)), torch.sigmoid(network(batch["image"]))
    terms = lambda ddf: step._losses(batch["image"], shown, exp(v), ddf, theta, answer)  # noqa: E731
    back, still = terms(exp(-v)), terms(torch.zeros_like(v))
    assert back["overlap"] < 0.5 * still["overlap"]
    assert back["answer"] < 1.1 * still["answer"]  # equivariant networks answer alike in any pose


def test_the_step_may_work_at_another_size_than_the_films():
    _, predictor, _ = recipe("predictor")
    step = PredictorStep(FAMILY, working_size=(16, 16))
    losses = step(predictor, batch_for("predictor"))
    assert all(torch.isfinite(value) for value in losses.values())
    large = PredictorStep(FAMILY)(predictor, batch_for("predictor"))
    assert float(losses["grid"]) == pytest.approx(float(large["grid"]), rel=0.3)  # counted in voxels of one reference frame


def test_answers_are_added_to_a_film_without_labels():
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Dropout(0.5)).train()
    film = {"image": films()["image"][0], "id": "a"}
    added = AddAnswerd(network)(film)
    network.eval()
    assert not added["answer"].requires_grad and "answer" not in film
    assert added["id"] == "a" and added["answer"].shape == (1, 32, 32)
    assert torch.equal(added["answer"], torch.sigmoid(network(film["image"][None]))[0])
    assert torch.equal(AddAnswerd(network, activation=lambda x: 2 * x)(film)["answer"], 2 * network(film["image"][None])[0])


def test_a_classifier_sees_images_deformed_as_a_segmenter_would_and_keeps_their_classes():
    batch, classes, seen = films(), torch.arange(8) % 3, []

    def network(image):
        seen.append(image)
        return image.flatten(1)[:, :3]

    as_it_is = ClassificationStep()(network, {"image": batch["image"], "label": classes})
    assert torch.equal(seen[0], batch["image"])
    assert torch.equal(as_it_is["classification"], nn.functional.cross_entropy(seen[0].flatten(1)[:, :3], classes))
    ClassificationStep(strength=1.0, seed=3)(network, {"image": batch["image"], "label": classes})
    SegmentationStep(strength=1.0, seed=3)(lambda image: seen.append(image) or image, batch)
    assert torch.equal(seen[1], seen[2]) and (seen[1] - seen[0]).abs().amax((1, 2, 3)).mean() > 0.05


def test_a_segmenters_step_goes_on_with_the_random_numbers_that_it_had():
    def shown(step):
        seen = []
        step(lambda image: seen.append(image) or image, films())
        return seen[0]

    step, other = SegmentationStep(strength=1.0), SegmentationStep(strength=1.0, seed=5)
    first, state = shown(step), step.state_dict()
    second = shown(step)
    other.load_state_dict(state)
    assert torch.equal(shown(other), second) and not torch.equal(first, second)


def test_the_predictor_learns_from_the_deformations_that_it_is_told():
    still = PredictorStep(FAMILY, intensity=0.0, deformation=lambda count, size, generator: torch.zeros(count, 2, *size))
    predictor = recipe("predictor")[1]  # untrained: the identity
    losses = still(predictor, batch_for("predictor"))
    assert losses["grid"] == 0 and float(losses["image"]) < 1e-10
    assert PredictorStep(FAMILY, intensity=0.0)(predictor, batch_for("predictor"))["grid"] > 0.01


def test_the_bundles_answers_come_from_trained_weights():
    """``AddAnswerd`` copies its network: the configuration must load the weights before it builds the transforms."""
    bundle = Path(__file__).parents[2] / "bundles" / "cxr_lung_segmentation"
    parser = ConfigParser(
        ConfigParser.load_config_files([str(bundle / "configs" / f) for f in ("train.json", "train_predictor.json")])
    )
    parser["bundle_root"] = str(bundle)
    parser.get_parsed_content("initialize")
    answers = parser.get_parsed_content("train::preprocessing").transforms[-1]
    trained = torch.load(bundle / "models" / "baselines" / "baseline.pt", weights_only=True)
    assert isinstance(answers, AddAnswerd)
    assert all(torch.equal(value, trained[name].float()) for name, value in answers.network.state_dict().items())
