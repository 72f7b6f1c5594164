"""A whole fit of tiny images: what is in its folder, what it never does, and how it goes on."""

import json
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.errors import ConfigError, NumericalError, WeightsError
from monai_diffeo.fit import fit_atlas, fit_canonicalizer, fit_limits, fitting, loop
from monai_diffeo.fit.loop import CHECKPOINT
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks.predictor import resample_image
from tests.helpers import blob

STEPS = {"predictor": 2, "orientation": 1, "vae": 1, "critic": 1}
OTHER = {"single_pass": "refine", "refine": "single_pass"}


def some_images(count=12, size=(40, 36), channels=1):
    draw = torch.Generator().manual_seed(0)
    shifts = torch.rand(count, generator=draw) * 0.4 - 0.2
    noise = 0.05 * torch.rand(count, channels, *size, generator=draw)
    return list(torch.cat([blob(1, size, float(s)) for s in shifts]) + noise)


def fit(folder, images=None, network=None, **settings):
    lines = []
    settings = {"steps": STEPS, "size": (32, 32), "progress": False, "say": lines.append, **settings}
    outcome = fit_canonicalizer(some_images() if images is None else images, folder, network, **settings)
    return outcome, lines


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit") / "folder"
    torch.manual_seed(1)
    network = nn.Conv2d(2, 3, 3, padding=1)
    return folder, *fit(folder, some_images(channels=2), network), network


def test_the_folder_loads_and_its_modes_work_at_the_working_size(fitted):
    folder, outcome, lines, _ = fitted
    networks = {f"{name}.pt" for name in ("atlas", "critic", "orientation", "predictor", "vae")}
    files = {"README.md", "canonicalizer.json", "fit.json", "sheet.png", "statistics.json", "limits.json"}
    assert {path.name for path in folder.iterdir()} == networks | files | {f"limits_{OTHER[outcome.mode]}.json"}
    for mode in (None, "refine"):
        canonicalizer = load_canonicalizer(folder, mode)
        assert canonicalizer.working_size == (32, 32) and canonicalizer.tta_samples == 8
        assert canonicalizer(torch.rand(1, 2, 64, 48)).image.shape == (1, 2, 64, 48)
    search = load_canonicalizer(folder, "refine").search
    assert (search.steps, search.image_size, search.energy.atlas.image.shape) == (10, (16, 16), (1, 2, 16, 16))
    assert (canonicalizer.orientation is not None) is outcome.orientation


def test_the_page_and_the_record_say_what_was_done_and_whether_it_worked(fitted):
    folder, outcome, lines, _ = fitted
    page, record = (folder / "README.md").read_text(), json.loads((folder / "fit.json").read_text())
    assert f"**Did it work?** {outcome.sentence()}" in page and "(sheet.png)" in page
    assert all(line in page for line in lines[:-1]) and lines[-1] == f"Did it work? {outcome.sentence()}"
    assert lines[0] == "images        12, 4 of them held back; channels 2, frame 40 x 36"
    said = "Conv2d, softmax (chosen by its number of output channels; --activation changes it), answers on 8 images"
    assert lines[2].endswith(said)
    assert record["outcome"] == json.loads(json.dumps(outcome.as_dict())) and record["plan"]["working_size"] == [32, 32]
    assert outcome.overlap.reference == "its own answers" and outcome.overlap.images == 4


def test_the_limits_are_those_of_images_that_were_held_back_and_of_the_network(fitted):
    folder, outcome, _, network = fitted
    limits = load_canonicalizer(folder).limits
    assert {"energy", "energy_before", "displacement", "folding"} <= set(limits.limits)
    assert limits.images == 2 * 2 * 4  # deformed or not, without and with the network
    inferer = DiffeoInferer(load_canonicalizer(folder))
    decisions = [one["decision"] for one in inferer.infer(torch.stack(some_images(channels=2)), network, plain=True).records]
    assert sum("limit" in one for one in decisions) <= 3


def test_the_sheet_is_a_picture_of_six_columns_at_most(fitted):
    from matplotlib.image import imread

    height, width = imread(fitted[0] / "sheet.png").shape[:2]
    assert (width, height) == (800, 600)  # four images held back, three states


def test_images_that_are_held_back_are_never_trained_on(tmp_path, monkeypatch):
    trained, measured, true = [], [], fitting.measure

    def spy(part, data, *rest):
        trained.extend(data["image"] if part.name == "vae" else ())
        return loop.train_part(part, data, *rest)

    monkeypatch.setattr(fitting, "train_part", spy)
    monkeypatch.setattr(fitting, "measure", lambda net, held, *rest: measured.extend(held) or true(net, held, *rest))
    fit(tmp_path, seed=4)
    assert len(trained) == 8 and len(measured) == 8  # four images in two modes
    assert len({float(image.sum()) for image in (*trained, *measured)}) == 12


def test_a_folder_with_a_fit_is_refused_and_a_finished_fit_has_nothing_left(fitted):
    folder, *_, network = fitted
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="must not hold a canonicaliser, it has atlas.pt.*--resume to go on"):
        fit(folder, some_images(channels=2), network)
    with pytest.raises(ConfigError, match="is finished; README.md there says how it went"):
        fit(folder, some_images(channels=2), network, resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_fit_goes_on_where_it_was_interrupted_and_gives_the_same_weights(fitted, tmp_path, monkeypatch):
    folder, *_, network = fitted
    advance, steps = loop._Training.advance, []

    def until_the_fourth(self):
        steps.append(self.part.name)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(loop._Training, "advance", until_the_fourth)
    images = some_images(channels=2)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, images, network, checkpoint_seconds=0.0)
    assert steps == ["predictor", "predictor", "orientation", "vae"]
    monkeypatch.setattr(loop._Training, "advance", advance)
    with pytest.raises(ConfigError, match="'seed' was 0 and is now 1"):
        fit(tmp_path, images, network, resume=True, seed=1)
    fit(tmp_path, images, network, resume=True)
    for name in STEPS:
        one, other = (torch.load(place / f"{name}.pt", weights_only=True) for place in (folder, tmp_path))
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert (tmp_path / "statistics.json").read_bytes() == (folder / "statistics.json").read_bytes()


def test_a_part_that_fails_stops_everything_and_no_canonicalizer_is_there(tmp_path, monkeypatch):
    advance = loop._Training.advance

    def fails(self):
        if self.part.name == "vae":
            raise RuntimeError("out of memory\nand more")
        return advance(self)

    monkeypatch.setattr(loop._Training, "advance", fails)
    with pytest.raises(NumericalError, match="^fit: the vae failed: out of memory. Nothing stands in for it"):
        fit(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"fit.json", "predictor.pt", "orientation.pt"}


def test_the_time_is_shared_out_and_kept(tmp_path):
    images = [torch.nn.functional.pad(image, (0, 4)) for image in some_images(size=(32, 28))]
    began = time.perf_counter()
    fit_canonicalizer(images, tmp_path, size=(32, 32), minutes=6 / 60, progress=False, say=lambda line: None)
    took = time.perf_counter() - began
    parts = json.loads((tmp_path / "fit.json").read_text())["plan"]["parts"]
    assert all(part["steps"] >= 1 for part in parts.values()) and sum(part["seconds"] for part in parts.values()) <= 0.9 * 6
    assert parts["predictor"]["seconds"] >= 3.9 * parts["vae"]["seconds"] - 0.1
    assert took < 25 and not (tmp_path / CHECKPOINT).exists()


def test_an_orientation_network_that_sees_nothing_is_left_out_and_that_is_said(tmp_path, monkeypatch):
    seen = [(1.0, 0.0), (1.0, 1.0)]
    monkeypatch.setattr(fitting, "measure_orientation", lambda *_: seen.pop(0))
    for name, used in (("a", False), ("b", True)):
        outcome, lines = fit(tmp_path / name)
        settings = json.loads((tmp_path / name / "canonicalizer.json").read_text())
        assert outcome.orientation is used and ("orientation" in settings["modes"]["single_pass"]) is used
        assert any("not used: 95% and 80% are needed" in line for line in lines) is not used


def test_volumes_are_fitted_too(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "measure_orientation", lambda *_: (1.0, 0.0))  # 48 orientations take their time
    volumes = [blob(1, (48, 32, 34), s)[0] + 0.3 * torch.rand(1, 48, 32, 34) for s in (0.0, 0.1, -0.1, 0.2)]
    outcome, lines = fit(tmp_path, volumes, torch.nn.Conv3d(1, 2, 1), size=None, steps=dict.fromkeys(STEPS, 1))
    assert lines[:2] == ["images        4, 2 of them held back; channels 1, frame 48 x 32 x 34", "working size  48 x 32 x 32"]
    canonicalizer = load_canonicalizer(tmp_path)
    assert "answers on 1 images, not learned from" in lines[2] and canonicalizer.predictor.image_size == (16, 16, 16)
    assert canonicalizer(volumes[0][None]).image.shape == (1, 1, 48, 32, 34) and outcome.images == 2
    searching = load_canonicalizer(tmp_path, "refine").search
    scaled = [(volume - volume.amin()) / (volume.amax() - volume.amin()) for volume in volumes]
    small = [resample_image(resample_image(one[None], (48, 32, 32)), (24, 16, 16)) for one in scaled]
    pairs = [(small[i] + small[j]) / 2 for i in range(4) for j in range(i)]
    assert searching.image_size == (24, 16, 16) and any(torch.allclose(searching.energy.atlas(), two) for two in pairs)
    assert load_canonicalizer(tmp_path, "single_pass").search is None
    assert all(load_canonicalizer(tmp_path, mode).limits.mode == mode for mode in ("single_pass", "refine"))


@pytest.mark.parametrize("best, other", OTHER.items())
@pytest.mark.parametrize("size", [(48, 32), (48, 32, 32)])
def test_the_mode_that_undoes_most_is_the_default(tmp_path, monkeypatch, size, best, other):
    found = []

    def measured(canonicalizer, *rest, measure=fitting.measure):
        outcome, *moved = measure(canonicalizer, *rest)
        found.append("single_pass" if canonicalizer.search is None else "refine")
        return replace(outcome, undone=float(found[-1] == best)), *moved

    monkeypatch.setattr(fitting, "measure", measured)
    monkeypatch.setattr(fitting, "measure_orientation", lambda *_: (1.0, 0.0))
    images = [blob(1, size, s)[0] + 0.3 * torch.rand(1, *size) for s in (0.0, 0.1, -0.1, 0.2)]
    outcome, lines = fit(tmp_path, images, size=None, steps=dict.fromkeys(STEPS, 1))
    assert found == ["refine", "single_pass"] and outcome.mode == best and f"mode              {best}" in lines
    assert (load_canonicalizer(tmp_path).search is None) is (best == "single_pass")
    modes = [json.loads((tmp_path / f"limits{rest}.json").read_text())["mode"] for rest in ("", f"_{other}")]
    assert modes == [best, other] and load_canonicalizer(tmp_path).limits.mode == best
    assert json.loads((tmp_path / "fit.json").read_text())["outcome"]["mode"] == best


def test_in_a_bundle_the_files_take_the_place_of_those_of_an_earlier_fit(tmp_path):
    (tmp_path / "configs").mkdir()
    names = [f"models/energy/{name}.pt" for name in STEPS] + ["models/energy/canonicalizer.json"]
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps({"sha256": dict.fromkeys(names, "0" * 64)}))
    fit(tmp_path / "models" / "energy", some_images(4))
    recorded = json.loads((tmp_path / "configs" / "metadata.json").read_text())["sha256"]
    assert "0" * 64 not in recorded.values() and {"models/energy/statistics.json", *names} <= set(recorded)
    load_canonicalizer(tmp_path / "models" / "energy")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"minutes": 0}, "'minutes' must be larger than 0, got 0"),
        ({"size": (100, 96)}, r"each a multiple of 16 and at least 32, got \(100, 96\)"),
        ({"size": (32, 32), "dims": 3}, "'size' must be one number an axis"),
        ({"size": (32, 32, 32)}, "'size' must be 2 numbers"),
        ({"images": [torch.rand(1, 8, 8)] * 3}, "there must be 4 images or more that can be used, got 3"),
    ],
)
def test_settings_without_a_meaning_are_refused_before_anything_is_written(tmp_path, settings, words):
    with pytest.raises(ConfigError, match=f"^fit: .*{words}"):
        fit(tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="^fit: 'device' must be one of this machine.*got 'cuda'. Use device='cpu'"):
        fit(tmp_path, device="cuda")


def test_the_atlas_is_of_images_that_were_not_held_back_and_earlier_folders_get_one(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(fitting, "fit_atlas", lambda folder, images: seen.update(atlas=images) or fit_atlas(folder, images))
    monkeypatch.setattr(fitting, "_tried", lambda *a, tried=fitting._tried: seen.update(held=a[2]) or tried(*a))
    monkeypatch.setattr(fitting, "measure_orientation", lambda *_: (1.0, 0.0))
    volumes = [blob(1, (32, 32, 48), s)[0] + 0.3 * torch.rand(1, 32, 32, 48) for s in (0.0, 0.1, -0.1, 0.2)]
    fit(tmp_path, volumes, size=None, steps=dict.fromkeys(STEPS, 1))
    assert len(seen["atlas"]) == len(seen["held"]) == 2
    assert not any(torch.equal(one, other) for one in seen["atlas"] for other in seen["held"])
    again = (tmp_path / "canonicalizer.json").read_text()
    fit_atlas(tmp_path, seen["atlas"])
    assert (tmp_path / "canonicalizer.json").read_text() == again
    with pytest.raises(WeightsError, match="^fit_atlas"):
        fit_atlas(tmp_path / "none", seen["atlas"])
    with pytest.raises(WeightsError, match="^fit_limits"):
        fit_limits(tmp_path / "none", [], nn.Identity())
