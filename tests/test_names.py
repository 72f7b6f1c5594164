"""MONAI's config locator scans every module whose name starts with "monai", ours too: a name used twice is ambiguous there."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import monai  # noqa: F401  (loads all its submodules)
import pytest
from monai.bundle.config_item import ComponentLocator

import monai_diffeo

ROOT = Path(__file__).parents[1]


def our_modules():
    names = [m.name for m in pkgutil.walk_packages(monai_diffeo.__path__, "monai_diffeo.") if not m.name.endswith("__main__")]
    return ["monai_diffeo", *sorted(names)]


def load(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("monai_diffeo"):
            raise
        pytest.skip(f"{name} needs {error.name}")  # an optional extra


@pytest.fixture(scope="module")
def monai_names():
    locator = ComponentLocator()
    theirs = [m for m in locator._find_module_names() if m == "monai" or m.startswith("monai.")]
    table = locator._find_classes_or_functions(theirs)
    assert {"Warp", "DVF2DDF", "SimpleInferer", "Compose", "SupervisedTrainer", "DiceCELoss"} <= set(table)  # it did scan
    return table


@pytest.mark.parametrize("name", our_modules())
def test_no_public_name_is_one_of_monais(name, monai_names):
    module = load(name)
    things = {n: getattr(module, n) for n in getattr(module, "__all__", [])}
    public = [n for n, thing in things.items() if inspect.isclass(thing) or inspect.isfunction(thing)]
    taken = {n: monai_names[n] for n in public if n in monai_names}
    taken.pop("ShapeError", None)  # an exception in monai.networks.trt_compiler too; nobody builds errors from a config
    assert taken == {}


@pytest.mark.parametrize("name", our_modules())
def test_every_name_in_all_exists_and_is_there_once(name):
    module = load(name)
    listed = list(getattr(module, "__all__", []))
    assert len(set(listed)) == len(listed)
    assert all(hasattr(module, n) for n in listed)


def test_no_public_name_means_two_things():
    homes = {}
    for name in our_modules():
        if name not in sys.modules:
            continue
        for public in getattr(sys.modules[name], "__all__", []):
            thing = getattr(sys.modules[name], public)
            homes.setdefault(public, {})[id(thing)] = name
    assert {n: list(h.values()) for n, h in homes.items() if len(h) > 1} == {}


README_SELLS = {
    "canonicalize": ["Canonicalization", "Canonicalizer", "fit_statistics", "load_canonicalizer"],
    "families": [
        "AffineCPAB", "AffineMatrix", "CPAB", "CoarseSampling", "ControlGrid", "DiffeomorphicAffine", "Homography",
        "PiecewiseStationary", "Siren", "ThinPlateSpline", "Whitened",
    ],
    "flow": [
        "compose", "exp", "exp_affine", "folding_fraction", "inverse", "inverse_error", "invert", "jacobian_determinant",
        "nonpositive_cell_fraction", "warp", "warp_points",
    ],
    "inferers": ["DiffeoInferer", "TemplateInferer", "overlay_path"],
    "networks": ["SpatialTransformerChain", "SpatialTransformerLayer", "TemplateTransformer", "load_weights"],
    "transforms": ["Canonicalized", "LoadImageFilmd", "RandDiffeomorphismd", "SaveImageFilmMaskd", "ShapesToMaskd"],
}  # fmt: skip


@pytest.mark.parametrize("room", README_SELLS)
def test_what_readme_sells_is_public_in_its_room(room):
    module = load(f"monai_diffeo.{room}")
    assert [n for n in README_SELLS[room] if n not in module.__all__ or not hasattr(module, n)] == []


def test_the_root_offers_names_of_rooms_and_no_others():
    rooms = {n for room in README_SELLS for n in load(f"monai_diffeo.{room}").__all__}
    assert set(monai_diffeo.__all__) <= rooms and len(monai_diffeo.__all__) == len(set(monai_diffeo.__all__))
    assert {"DiffeoInferer", "TemplateInferer", "Canonicalizer", "load_canonicalizer", "CPAB"} <= set(monai_diffeo.__all__)


def test_rooms_and_names_of_the_root_come_when_they_are_asked_for():
    """In a fresh process, also by getattr alone, which is how MONAI's configurations import; torch is not there before."""
    code = (
        "import sys, monai_diffeo as m; assert not {'torch', 'monai', 'numpy'} & set(sys.modules)\n"
        "rooms = 'bundles canonicalize command_line energies errors families flow inferers metrics networks'.split()\n"
        "assert {*rooms, *m.__all__} <= set(dir(m)) and all(getattr(m, n).__name__ == f'monai_diffeo.{n}' for n in rooms)\n"
        "assert all(getattr(m, n).__name__ == n for n in m.__all__) and m.command_line.parse_switch('on')\n"
        "assert not hasattr(m, 'no_such_name')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
