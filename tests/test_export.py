"""The graph answers as the inferer does, and so do the program and the ONNX file that are made of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from monai.networks.nets import UNet
from torch.testing import assert_close

from monai_diffeo.bundles import find_bundle
from monai_diffeo.canonicalize import Canonicalizer, load_canonicalizer
from monai_diffeo.cli import program
from monai_diffeo.cli.fit_network import network_of_bundle
from monai_diffeo.energies import DeformationRegularizer, VAEEnergy
from monai_diffeo.errors import ConfigError, NumericalError, ShapeError
from monai_diffeo.export import OUTPUTS, DiffeoGraph, _compared, export_graph, save_program, smooth_images
from monai_diffeo.families import ControlGrid
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import DeformationPredictor, EnergyVAE
from monai_diffeo.radiograph.packaged import packaged_film
from tests.helpers import blob

SIZE = (32, 32)


def parts(dims=2, work=24, **settings):
    """A canonicaliser with a predictor that looks at the image, on a working frame of its own, and a network."""
    torch.manual_seed(0)
    family, size = ControlGrid(dims, 4, steps=2), (work,) * dims
    predictor = DeformationPredictor(family.num_parameters, dims, image_size=size, channels=(8, 8), output_scale=1.0)
    torch.nn.init.normal_(predictor.head[-1].weight, std=0.04)
    energy = VAEEnergy(EnergyVAE(dims, image_size=(16,) * dims, channels=(8, 8), latent=4))
    settings = {"iterations": 3, "final_steps": 2, "min_motion": 0.01, "working_size": size, **settings}
    network = UNet(dims, 1, 2, (4, 8), (2,)).eval()
    return Canonicalizer(energy, family, DeformationRegularizer(), predictor.double(), **settings), network


def images():
    """Four films: one is constant, one has a hole."""
    found = blob(4, SIZE, torch.tensor([-0.2, 0.0, 0.3, 0.1]))
    found[1], found[3, 0, 4, 4] = 0.5, torch.nan
    return found


def by_inferer(canonicalizer, network, given, count, limits=None):
    inferer = DiffeoInferer(canonicalizer, tta_samples=count, motion_limits=limits)
    results = [inferer.infer(row, network) for row in given.split(1)]
    found = [result.canonicalization for result in results]
    names = ("moved", "energy_before", "energy_after", "ddf", "inverse_ddf")
    columns = [[result.prediction for result in results], *([getattr(one, name) for one in found] for name in names)]
    columns += [[torch.full((1,), torch.nan) if one.agreement is None else one.agreement for one in found]] * (count > 1)
    return [torch.cat(column) for column in columns]


@pytest.mark.parametrize(
    "count, settings", [(1, {"min_motion": 1.0}), (2, {}), (3, {"min_motion": None}), (2, {"sampling": "bicubic"})]
)
def test_the_graph_answers_as_the_inferer_does(count, settings):
    canonicalizer, network = parts(max_energy_increase=None, **settings)
    with torch.no_grad():
        found = DiffeoGraph(canonicalizer, network, SIZE, count)(images())
        expected = by_inferer(canonicalizer, network, images(), count)
    assert found[1].tolist() == [True, False, True, False] and found[4][0].abs().max() > 1  # voxels
    assert len(found) == len(expected) == len(OUTPUTS) - (count == 1)
    for one, other in zip(found, expected):
        assert_close(one, other.to(one.dtype), atol=2e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("least, disagreement", [(0.0, 100.0), (1.1, 100.0), (0.0, -1.0)])
def test_answers_at_rest_count_as_for_the_inferer(least, disagreement):
    canonicalizer, network = parts(max_energy_increase=None)
    given = images()[[0, 2, 3]]
    with torch.no_grad():
        energies = DiffeoGraph(canonicalizer, network, SIZE, 2)(given)[3]
        limits = {"energy": energies[:2].mean().item(), "disagreement": disagreement, "overlap": least}
        found = DiffeoGraph(canonicalizer, network, SIZE, 4, limits)(given)
        expected = by_inferer(canonicalizer, network, given, 4, limits)
    assert found[1].tolist() == [True, True, False]
    still = (found[4].flatten(1) == 0).all(1)
    assert still[:2].tolist() == ((energies[:2] > limits["energy"]) | (disagreement < 0)).tolist() and still[2]
    for one, other in zip(found, expected):
        assert_close(one, other.to(one.dtype), atol=2e-4, rtol=1e-4, equal_nan=True)


def test_answers_at_rest_count_where_they_agree_as_well():
    canonicalizer, network = parts(max_energy_increase=None)
    given, never, inf = images()[[0, 2]], {"energy": -float("inf"), "disagreement": 1.0}, float("inf")
    with torch.no_grad():
        deformed, rest = (1 - DiffeoGraph(canonicalizer, network, SIZE, 2, limits)(given)[6] for limits in (None, never))
        limits = {"energy": inf, "disagreement": (deformed / rest).mean().item()}
        found = DiffeoGraph(canonicalizer, network, SIZE, 2, limits)(given)
        expected = by_inferer(canonicalizer, network, given, 2, limits)
    still = (found[4].flatten(1) == 0).all(1)
    assert still.tolist() == (deformed / rest > limits["disagreement"]).tolist() and still.sum() == 1
    for one, other in zip(found, expected):
        assert_close(one, other.to(one.dtype), atol=2e-4, rtol=1e-4, equal_nan=True)


def test_an_image_whose_energy_rises_goes_to_the_network_as_it_is():
    canonicalizer, network = parts(max_energy_increase=-1e6)
    with torch.no_grad():
        prediction, moved, *_ = DiffeoGraph(canonicalizer, network, SIZE, 2)(images()[:1])
        assert not moved.any()
        assert_close(prediction, network(images()[:1]), atol=1e-5, rtol=1e-5)


def test_a_comparison_on_images_that_are_not_deformed_is_said_to_be_one(tmp_path, monkeypatch):
    canonicalizer, network = parts(max_energy_increase=None)
    with torch.no_grad():
        assert _compared(DiffeoGraph(canonicalizer, network, SIZE, 1)(images())) == {"images": 4, "moved": 2, "deformed": 2}
        still = parts(max_energy_increase=None)[0]
        at_rest = DiffeoGraph(still, network, SIZE, 2, {"energy": -1e9, "disagreement": 0.0})(images())
    assert at_rest[1].any()  # canonicalised, and the answers at rest were taken
    told = _compared(at_rest)
    assert told["moved"] == 2 and told["deformed"] == 0 and "no image of the comparison was deformed" in told["warning"]
    monkeypatch.setattr(
        "monai_diffeo.export.export_graph", lambda *_: {"compared": told, "differences": {"onnx": {"ddf": 0.0}}}
    )
    done = CliRunner().invoke(program, ["export", "cxr", "--output_dir", str(tmp_path)])
    assert done.exit_code == 0 and "Warning: no image of the comparison was deformed" in done.stderr, done.stderr


def test_what_is_no_graph_is_refused():
    canonicalizer, network = parts()
    with pytest.raises(ConfigError, match="no optimisation, got steps=2"):
        DiffeoGraph(parts(steps=2)[0], network)
    with pytest.raises(ConfigError, match="must have 2 axes"):
        DiffeoGraph(canonicalizer, network, (32, 32, 32))
    with pytest.raises(ConfigError, match="one tensor"):
        DiffeoGraph(canonicalizer, torch.nn.Flatten(0), SIZE)(images())
    with pytest.raises(ShapeError, match=r"\(B, 1, 24, 24\)"):
        DiffeoGraph(canonicalizer, network)(images())
    assert DiffeoGraph(canonicalizer, network).size == (24, 24)  # the working size


def test_a_program_loads_again_and_takes_any_number_of_images(tmp_path):
    canonicalizer, network = parts(iterations=1)
    graph, many = DiffeoGraph(canonicalizer, network, SIZE, 1), images()
    with torch.no_grad():
        made = torch.export.load(save_program(graph, many[:3], tmp_path / "model.pt2")).module()
        for some in (many[:1], many):
            for one, other in zip(made(some), graph(some)):
                assert_close(one, other, atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.fixture(scope="module")
def onnx_runtime():
    pytest.importorskip("onnxscript", reason='needs pip install "monai-diffeo[export]"')
    return pytest.importorskip("onnxruntime", reason='needs pip install "monai-diffeo[export]"')


@pytest.mark.slow
@pytest.mark.parametrize("size, count", [(SIZE, 2), ((20, 16, 24), 1)])
def test_onnx_answers_as_pytorch(size, count, onnx_runtime, tmp_path):
    canonicalizer, network = parts(len(size), 24 if size == SIZE else 16, iterations=1, max_energy_increase=None)
    graph = DiffeoGraph(canonicalizer, network, size, count)
    told = export_graph(graph, smooth_images(2, graph), tmp_path, {"network": "a small one"})
    assert json.loads((tmp_path / "export.json").read_text()) == told and told["size"] == list(size)
    assert all(value <= 1e-4 for kind in ("onnx", "program") for value in told["differences"][kind].values())
    assert str(Path(__file__).parents[1]).encode() not in (tmp_path / "model.onnx").read_bytes()
    session = onnx_runtime.InferenceSession(str(tmp_path / "model.onnx"))
    films = images()[[0, 2, 3]] if size == SIZE else smooth_images(3, graph)  # of a constant image only rounding is left
    found = session.run(None, {"image": films.numpy()})
    with torch.no_grad():
        for one, other in zip(found, graph(films)):
            assert_close(torch.from_numpy(one), other, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.slow
def test_the_graph_of_cxr_answers_as_segment_does(onnx_runtime, tmp_path, monkeypatch):
    pytest.importorskip("pydicom", reason='needs pip install "monai-diffeo[demo]"')
    films = tmp_path / "films"
    films.mkdir()
    shutil.copy(packaged_film(), films)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(program, ["export", "cxr", "--output_dir", "exported", "--dataset_dir", "films"])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert told["compared"]["moved"] == 1 and told["motion_limits"]["energy"] == 30
    bundle = find_bundle("cxr")
    under_test, preprocessing = network_of_bundle(bundle, None, None, False)
    film = preprocessing({"image": str(packaged_film())})["image"].as_tensor()[None]
    inferer = DiffeoInferer(load_canonicalizer("cxr"), motion_limits=told["motion_limits"])
    session = onnx_runtime.InferenceSession(str(tmp_path / "exported" / "model.onnx"))
    for image in (film, film.flip(3)):
        expected = inferer.infer(image, under_test.network)
        prediction, moved, *_, agreed = session.run(None, {"image": image.numpy()})
        assert moved.tolist() == expected.canonicalization.moved.tolist()
        for one, other in ((prediction, expected.prediction), (agreed, expected.canonicalization.agreement)):
            assert_close(torch.from_numpy(one), other, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_a_graph_that_differs_is_not_accepted(onnx_runtime, tmp_path):
    class Rough(torch.nn.Module):
        def forward(self, image):
            return image * (1.0 if torch.compiler.is_compiling() else 1.01)

    canonicalizer, _ = parts(iterations=1)
    graph = DiffeoGraph(canonicalizer, Rough(), SIZE, 1)
    with pytest.raises(NumericalError, match="program must equal PyTorch within 0.0001"):
        export_graph(graph, smooth_images(1, graph), tmp_path)
    assert not (tmp_path / "export.json").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["cxr"], "--output_dir is needed"),
        (["cxr", "--output_dir", "out", "--size", "big"], "--size must be numbers such as 128,112, got 'big'"),
        (
            ["cxr", "--output_dir", "out", "--mode", "refine"],
            "the mode must have a predictor and no optimisation, got steps=0, search=EnergySearch",
        ),
        (["nowhere", "--output_dir", "out"], "export: expected a folder or the name of a bundle"),
    ],
)
def test_the_command_says_what_is_wrong(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(program, ["export", *words])
    assert done.exit_code == 1 and said in done.stderr and not any(tmp_path.iterdir())
