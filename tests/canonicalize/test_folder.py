import json

import pytest
import torch

from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.errors import WeightsError
from tests.helpers import canonicalizer_folder


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


def test_settings_can_be_changed_at_loading(folder):
    assert load_canonicalizer(folder, "refine", steps=7).steps == 7


def test_what_is_missing_or_does_not_fit_stops_everything(folder, tmp_path):
    with pytest.raises(ValueError, match="'wild'.*faithful"):
        load_canonicalizer(folder, "wild")
    with pytest.raises(WeightsError, match="canonicalizer.json"):
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
