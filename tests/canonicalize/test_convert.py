"""Folders of earlier versions."""

import json

import pytest
import torch

from monai_diffeo.canonicalize import load_canonicalizer
from monai_diffeo.canonicalize.convert import convert_settings, main
from monai_diffeo.errors import ConfigError
from tests.helpers import canonicalizer_folder


def old_settings():
    return {
        "default_mode": "single_pass",
        "families": {
            "control_grid": {"kind": "control_grid", "spatial_dims": 2, "controls": 4},
            "siren": {"kind": "siren", "hidden": 16, "layers": 2},
        },
        "networks": {
            "predictor": {
                "kind": "predictor",
                "family": "control_grid",
                "file": "predictor.pt",
                "arguments": {"image_size": [32, 32], "channels": [8, 8]},
            },
            "vae": {"kind": "vae", "file": "vae.pt", "arguments": {"image_size": [32, 32], "channels": [4, 4], "latent": 4}},
            "critic": {"kind": "critic", "file": "critic.pt", "arguments": {"channels": 4, "layers": 2}},
            "orientation": {"kind": "orientation", "file": "turns.pt", "arguments": {}},
        },
        "energies": {
            "vae": {"network": "vae", "arguments": {"beta": 2.0}},
            "critic": {"network": "critic"},
            "motion": {"network": "predictor"},
        },
        "modes": {
            "single_pass": {
                "family": "control_grid",
                "predictor": "predictor",
                "orientation": None,
                "passes": 2,
                "views": 3,
                "gate": -9.0,
                "max_rise": None,
                "doubt_above": 50.0,
                "sure": 0.8,
                "shrinkings": 3,
                "steps": 0,
                "energies": {"vae": 1.0, "motion": 1.0},
            },
            "refine": {
                "family": "control_grid",
                "search_family": "siren",
                "iterations": 1,
                "steps": 3,
                "orientation": "orientation",
                "level": 0.0,
                "energies": {"critic": 0.5},
                "regularizer": {"smooth": 9.0},
            },
        },
    }


@pytest.fixture
def folder(tmp_path):
    folder = canonicalizer_folder(tmp_path / "energy")
    (folder / "canonicalizer.json").write_text(json.dumps(old_settings()))
    return folder


def test_loading_an_old_folder_names_the_command_that_converts_it(folder):
    with pytest.raises(ConfigError, match="python -m monai_diffeo.canonicalize.convert .*energy"):
        load_canonicalizer(folder)


def test_a_converted_folder_loads_with_every_setting(folder):
    main([str(folder)])
    canonicalizer = load_canonicalizer(folder)
    settings = {"iterations": 2, "tta_samples": 3, "skip_below": -9.0, "max_energy_increase": None, "ood_threshold": 50.0}
    settings.update({"min_confidence": 0.8, "max_halvings": 3, "steps": 0})
    assert {name: getattr(canonicalizer, name) for name in settings} == settings
    assert canonicalizer.orientation is None and canonicalizer.predictor is not None
    assert canonicalizer.energy.energies["vae"].energy.beta == 2.0
    assert canonicalizer(torch.rand(1, 1, 32, 32)).status[0] == "canonicalized"
    written = json.loads((folder / "canonicalizer.json").read_text())
    assert written["weights"]["orientation"] == "turns.pt"
    assert written["modes"]["refine"] == {
        "family": "@families::control_grid",
        "search_family": "@families::siren",
        "iterations": 1,
        "steps": 3,
        "orientation": "@networks::orientation",
        "level": 0.0,
        "energies": {"critic": 0.5},
        "regularizer": {"smooth": 9.0},
    }
    assert written["networks"]["predictor"]["num_parameters"] == 2 * 3 + 2 * 16
    assert written["energies"]["motion"]["family"] == "@families::control_grid"


@pytest.mark.parametrize("section", ["families", "networks"])
def test_an_unknown_kind_is_named(section):
    old = old_settings()
    next(iter(old[section].values()))["kind"] = "wild"
    with pytest.raises(ConfigError, match="earlier version.*'wild'"):
        convert_settings(old)


def test_a_folder_that_cannot_be_converted_is_left_as_it_is(folder, tmp_path, capsys):
    main([str(folder)])
    text = (folder / "canonicalizer.json").read_text()
    for path in (folder, tmp_path / "nothing"):
        with pytest.raises(SystemExit):
            main([str(path)])
        assert "canonicalizer.json" in capsys.readouterr().err
    assert (folder / "canonicalizer.json").read_text() == text
