import json
import os

import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.canonicalize import canonicalizer as canonicalizer_module
from monai_diffeo.canonicalize import fit_statistics, load_canonicalizer
from monai_diffeo.canonicalize.folder import _loaded, _public_class
from monai_diffeo.canonicalize.search import minimize
from monai_diffeo.energies import VAEEnergy, WeightedEnergy
from monai_diffeo.errors import ConfigError, NumericalError, WeightsError
from monai_diffeo.families import ControlGrid, Siren
from tests.helpers import canonicalizer_folder
from tests.helpers_device import ClaimedDevice, claims


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return canonicalizer_folder(tmp_path_factory.mktemp("energy"))


@pytest.mark.parametrize("mode", ["single_pass", "refine", "faithful", None])
def test_every_mode_canonicalises_and_two_loads_agree_bit_for_bit(folder, mode):
    image = torch.rand(2, 1, 32, 32)
    first, second = (load_canonicalizer(folder, mode)(image) for _ in range(2))
    assert first.status == ("canonicalized",) * 2 and torch.equal(first.ddf, second.ddf)
    assert first.ddf.abs().max() > 0


def test_standardised_energies_of_the_training_images_centre_on_zero(folder):
    terms = load_canonicalizer(folder).energy.terms(torch.rand(64, 1, 32, 32))
    assert set(terms) == {"vae", "motion"}
    assert all(value.median().abs() < 1.5 for value in terms.values())


def test_a_canonicaliser_of_volumes_loads():
    assert load_canonicalizer("brain_3d").family.spatial_dims == 3  # channels_last is for four axes only


def test_settings_can_be_changed_at_loading(folder):
    assert load_canonicalizer(folder, "refine", steps=7).steps == 7


def test_what_is_missing_or_does_not_fit_stops_everything(folder, tmp_path):
    with pytest.raises(ValueError, match="'wild'.*faithful"):
        load_canonicalizer(folder, "wild")
    with pytest.raises(WeightsError, match="expected a folder or the name of a bundle .*, got '.*nothing'"):
        load_canonicalizer(tmp_path / "nothing")
    broken = canonicalizer_folder(tmp_path / "broken")
    (broken / "vae.pt").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="vae.pt"):
        load_canonicalizer(broken)
    (broken / "vae.pt").unlink()
    with pytest.raises(WeightsError, match="no weights at"):
        load_canonicalizer(broken)
    torch.save({"wrong": torch.zeros(1)}, broken / "vae.pt")
    with pytest.raises(WeightsError, match="Missing key"):
        load_canonicalizer(broken)


def test_a_missing_statistic_is_named(tmp_path):
    folder = canonicalizer_folder(tmp_path / "e")
    statistics = json.loads((folder / "statistics.json").read_text())
    del statistics["vae"]
    (folder / "statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(WeightsError, match="'vae'"):
        load_canonicalizer(folder)


def test_a_pickled_payload_is_not_executed(tmp_path):
    folder, witness = canonicalizer_folder(tmp_path / "e"), tmp_path / "witness"

    class Payload:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    torch.save(Payload(), folder / "vae.pt")
    with pytest.raises(WeightsError):
        load_canonicalizer(folder)
    assert not witness.exists()


def test_two_canonicalizers_of_one_folder_share_nothing_that_can_be_changed(folder):
    first, second = load_canonicalizer(folder), load_canonicalizer(folder)
    for parameter in first.parameters():
        parameter.zero_()
    assert any(p.abs().max() > 0 for p in second.parameters())
    assert any(p.abs().max() > 0 for p in load_canonicalizer(folder).parameters())


def rewritten(folder, change):
    """The folder with its ``canonicalizer.json`` after ``change(settings)``."""
    path = folder / "canonicalizer.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))
    return folder


def test_every_setting_of_a_mode_reaches_its_place(folder):
    refine = load_canonicalizer(folder, "refine")
    assert refine.energy.level == 0.0 and refine.energy.weights == {"vae": 1.0, "critic": 0.5}
    assert (refine.steps, refine.iterations, refine.max_energy_increase) == (3, 1, None)
    assert (refine.regularizer.smooth, refine.regularizer.orientation) == (1.0, 1.0)
    assert isinstance(refine.family, ControlGrid) and refine.search_family is refine.family
    changes = {"regularizer": {"smooth": 7.0}, "level": 2.5, "energies": {"critic": 4.0}, "search_family": "siren"}
    changed = load_canonicalizer(folder, "refine", tta_samples=5, patience=None, predictor=None, **changes)
    assert (changed.regularizer.smooth, changed.regularizer.orientation) == (7.0, 1.0)
    assert changed.energy.level == 2.5 and changed.energy.weights == {"critic": 4.0} and changed.tta_samples == 5
    assert isinstance(changed.search_family, Siren) and changed.patience is None is changed.predictor
    image = torch.rand(3, 1, 32, 32)
    terms = changed.energy.terms(image)["critic"]
    assert_close(changed.energy(image), 4 * torch.relu(terms - 2.5))
    assert load_canonicalizer(folder, predictor="predictor", family="@families::control_grid").predictor is not None


def test_the_energy_of_both_polarities_is_named_as_it_is_and_off_unless_set(folder):
    image = torch.rand(2, 1, 32, 32)
    off, *on = (load_canonicalizer(folder, **part) for part in ({}, {"polarity": "vae"}, {"polarity": "@energies::vae"}))
    assert off.polarity is None and all(isinstance(c.polarity, VAEEnergy) for c in on)
    assert all(c.energy.energies["vae"].energy is c.polarity for c in on)  # so its value is known
    always = load_canonicalizer(folder, polarity="vae", min_polarity_ratio=1e6)(image)
    assert all("looks like a negative" in note for note in always.notes) and torch.equal(always.image, off(image).image)
    with pytest.raises(ConfigError, match="polarity|absent"):
        load_canonicalizer(folder, polarity="absent")


def test_energies_are_standardised_unless_the_mode_takes_them_as_they_are(folder):
    image, statistics = torch.rand(2, 1, 32, 32), json.loads((folder / "statistics.json").read_text())
    plain = load_canonicalizer(folder, standardize=False).energy.terms(image)
    for name, value in load_canonicalizer(folder).energy.terms(image).items():
        assert_close(value, (plain[name] - statistics[name]["mean"]) / statistics[name]["std"])
    assert type(load_canonicalizer(folder, "faithful").energy.energies["vae"]) is VAEEnergy


@pytest.mark.parametrize("mode", ["single_pass", "refine"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_batch_gives_what_its_images_give(folder, mode, device):
    with ClaimedDevice():
        canonicalizer, images = load_canonicalizer(folder, mode, device), torch.rand(5, 1, 32, 32).to(device)
        thetas = torch.cat([canonicalizer.predictor(image[None]) for image in images])
        assert torch.equal(canonicalizer.predictor(images), thetas) and thetas.std(0).max() > 0
        together, alone = canonicalizer(images), [canonicalizer(image[None]) for image in images]
    assert claims(together.ddf) == (device == "cuda")
    assert_close(together.ddf, torch.cat([one.ddf for one in alone]), atol=1e-5, rtol=0)
    assert together.steps.tolist() == [step for one in alone for step in one.steps.tolist()]
    assert (together.steps > 0).all() == (mode == "refine")


@pytest.mark.parametrize("own", [False, True])
def test_on_cuda_refine_moves_a_batch_at_once_in_double_precision_if_its_energies_can(folder, own, monkeypatch):
    asked = []
    monkeypatch.setattr(canonicalizer_module, "minimize", lambda *a, **k: asked.append((a[0], a[1])) or minimize(*a, **k))
    with ClaimedDevice():
        canonicalizer, images = load_canonicalizer(folder, "refine", "cuda"), torch.rand(3, 1, 32, 32).to("cuda")
        if own:  # whose precision nobody knows
            canonicalizer.energy = WeightedEnergy({"vae": canonicalizer.energy, "own": lambda image: image.flatten(1).mean(1)})
        found = canonicalizer(images)
    assert [len(image) for image, _ in asked] == ([1, 1, 1] if own else [3]) and found.moved.all()
    precision = torch.float32 if own else torch.float64
    assert all({p.dtype for p in (*energy.parameters(), image)} == {precision} for image, energy in asked)
    assert {p.dtype for p in canonicalizer.parameters()} == {torch.float32} and found.ddf.dtype == torch.float32


def test_statistics_are_the_median_and_the_scaled_median_deviation(tmp_path):
    folder = rewritten(canonicalizer_folder(tmp_path), own_energy)
    batches = [torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 32, 32) for values in ([0.0, 16.0, 2.0], [1.0, 4.0])]
    statistics = fit_statistics(folder, batches, trusted=True)
    assert json.loads((folder / "statistics.json").read_text()) == statistics
    assert set(statistics) == {"vae", "motion", "bright", "critic"}  # of the modes that standardise
    assert statistics["bright"]["mean"] == 2.0 and statistics["bright"]["films"] == 5
    assert_close(statistics["bright"]["std"], 1.4826 * 2)  # deviations 2, 1, 0, 2, 14


def own_energy(settings):
    settings["energies"]["bright"] = {"_target_": "tests.helpers.Brightness"}
    settings["families"]["own"] = {"_target_": "tests.canonicalize.test_folder.OwnGrid", "spatial_dims": 2, "controls": 4}
    settings["modes"]["single_pass"]["energies"]["bright"] = 1.0
    settings["modes"]["single_pass"]["family"] = "@families::own"


class OwnGrid(ControlGrid):
    """A family of one's own."""


def test_a_family_or_an_energy_of_ones_own_needs_trust(tmp_path):
    folder = rewritten(canonicalizer_folder(tmp_path), own_energy)
    with pytest.raises(ConfigError, match="_target_ must be a public nn.Module .*, got 'tests.*trusted=True"):
        load_canonicalizer(folder)
    fit_statistics(folder, [torch.rand(8, 1, 32, 32)], trusted=True)
    canonicalizer = load_canonicalizer(folder, trusted=True)
    assert type(canonicalizer.family) is OwnGrid and set(canonicalizer.energy.weights) == {"vae", "motion", "bright"}
    assert canonicalizer(torch.rand(1, 1, 32, 32)).status == ("canonicalized",)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "torch.load",
        "torch.nn.init.ones_",
        "torch.nn.functional.relu",
        "torch.nn.modules.torch.load",
        "monai.bundle.run",
        "monai.networks.nets.torch.load",
        "monai.networks.utils.torch.load",
        "monai_diffeo.files.write_atomically",
        "monai_diffeo.networks.load_weights",
        "monai_diffeo.families.base.Family",
        "monai_diffeo.nowhere.Family",
        "monai_diffeo.networks._anything",
        "ControlGrid",
        "",
        3,
        ["torch.nn.Linear"],
        None,
    ],
)
def test_no_other_target_is_called(tmp_path, target):
    def change(settings):
        settings["families"]["siren"] = {"_target_": target}  # a family that the mode does not even use

    with pytest.raises(ConfigError, match="_target_ must be a public nn.Module"):
        load_canonicalizer(rewritten(canonicalizer_folder(tmp_path), change))


@pytest.mark.parametrize(
    "target", ["torch.nn.Linear", "monai.networks.nets.UNet", "monai.networks.blocks.Convolution", "monai_diffeo.families.CPAB"]
)
def test_public_modules_are_allowed(target):
    assert _public_class(target).__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize(
    "place, value",
    [
        (("modes", "single_pass", "steps"), "$open('/tmp/witness', 'w')"),
        (("modes", "faithful", "patience"), "$import os"),
        (("families", "siren", "hidden"), "%/etc/passwd"),
        (("energies", "vae", "beta"), ["$1"]),
        (("energies", "vae", "_mode_"), "debug"),
        (("networks", "vae", "_requires_"), "$print(1)"),
        (("energies", "vae", "_debug_"), True),
        (("networks", "critic", "channels"), "$4"),
    ],
)
def test_expressions_macros_and_hidden_keys_are_refused_anywhere(tmp_path, place, value):
    def change(settings):
        for key in place[:-1]:
            settings = settings[key]
        settings[place[-1]] = value

    with pytest.raises(ConfigError, match="load_canonicalizer.*trusted=True"):
        load_canonicalizer(rewritten(canonicalizer_folder(tmp_path), change))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"energies": {"wild": 1.0}}, "no 'wild' among the energies; there are .*'vae'"),
        ({"predictor": "wild"}, "no 'wild' among the networks"),
        ({"family": "wild"}, "no 'wild' among the families"),
        ({"search_family": "@families::wild"}, "no 'wild' among the families"),
        ({"wild": 2}, "wild"),
    ],
)
def test_an_unknown_name_is_an_error_of_ours(folder, changes, words):
    with pytest.raises(ConfigError, match=words):
        load_canonicalizer(folder, **changes)


def test_what_a_file_lacks_or_misspells_is_named(tmp_path):
    for number, (change, words) in enumerate(
        [
            (lambda s: s.pop("weights"), "must have .*'weights'"),
            (lambda s: s["weights"].pop("vae"), "no 'vae' among the weights"),
            (lambda s: s["modes"]["single_pass"].pop("family"), "must have 'family'"),
            (lambda s: s["energies"]["vae"].update(vae="@networks::wild"), "@networks::wild"),
            (lambda s: s["networks"]["vae"].update(wild=3), "wild"),
            (lambda s: s.update(default_mode="wild"), "no 'wild' among the modes"),
        ]
    ):
        with pytest.raises(ConfigError, match=words):
            load_canonicalizer(rewritten(canonicalizer_folder(tmp_path / str(number)), change))


def test_networks_that_a_mode_does_not_name_are_not_loaded(tmp_path):
    folder = canonicalizer_folder(tmp_path)
    (folder / "critic.pt").unlink()
    assert load_canonicalizer(folder, "single_pass").predictor is not None
    with pytest.raises(WeightsError, match="critic.pt"):
        load_canonicalizer(folder, "refine")


def test_weights_are_read_once_for_each_state_of_a_file(tmp_path, monkeypatch):
    folder, reads = canonicalizer_folder(tmp_path), []
    original = torch.load
    _loaded.cache_clear()
    monkeypatch.setattr(torch, "load", lambda path, **settings: reads.append(path.name) or original(path, **settings))
    for _ in range(2):
        load_canonicalizer(folder)
    assert sorted(reads) == ["predictor.pt", "vae.pt"]
    state = {name: value + 1 for name, value in original(folder / "vae.pt").items()}
    torch.save(state, folder / "vae.pt")
    os.utime(folder / "vae.pt", ns=(0, 0))
    changed = load_canonicalizer(folder).energy.energies["vae"].energy.vae
    assert sorted(reads) == ["predictor.pt", "vae.pt", "vae.pt"] and torch.equal(
        changed.from_latent.bias, state["from_latent.bias"]
    )


def test_weights_lie_in_the_folder_and_no_network_loads_others(tmp_path):
    def outside(settings):
        settings["weights"]["vae"] = "../../elsewhere.pt"

    def pretrained(settings):
        settings["families"]["siren"] = {"_target_": "monai.networks.nets.HoVerNet", "pretrained_url": "http://127.0.0.1/x"}

    for change, said in ((outside, "weights must lie in the folder"), (pretrained, "pretrained_url.*not allowed")):
        with pytest.raises(ConfigError, match=said):
            load_canonicalizer(rewritten(canonicalizer_folder(tmp_path / change.__name__), change))


@pytest.mark.parametrize("images", [[], [torch.full((3, 1, 32, 32), torch.nan)]])
def test_statistics_of_no_images_or_of_no_numbers_are_not_written(tmp_path, images):
    folder = canonicalizer_folder(tmp_path)
    before = (folder / "statistics.json").read_bytes()
    with pytest.raises(NumericalError, match="must be finite"):
        fit_statistics(folder, images)
    assert (folder / "statistics.json").read_bytes() == before
