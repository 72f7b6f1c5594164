"""Examples in the documentation do what they say."""

import doctest
import importlib
import json
import pathlib
import pkgutil
import re

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

import monai_diffeo

ROOT = pathlib.Path(__file__).parents[1]


def modules_with_examples():
    """Names of all modules of the package whose text holds an example; none is imported for it."""
    package = pathlib.Path(monai_diffeo.__file__).parent
    names = {m.name: package.parent / m.name.replace(".", "/") for m in pkgutil.walk_packages([str(package)], "monai_diffeo.")}
    names["monai_diffeo"] = package
    files = {n: p / "__init__.py" if p.is_dir() else p.with_suffix(".py") for n, p in names.items()}
    return sorted(name for name, file in files.items() if re.search(r"^\s*>>> ", file.read_text(), re.M))


def run_examples(module):
    return doctest.testmod(module, extraglobs={"torch": torch, "np": np})


def test_all_rooms_are_walked():
    found = {name.split(".")[1] for name in modules_with_examples()}
    assert {"families", "flow", "metrics", "networks", "radiograph", "report", "transforms"} <= found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("monai_diffeo"):
            raise
        pytest.skip(f"{name} needs {error.name}, an optional package")
    result = run_examples(module)
    assert result.attempted > 0 and result.failed == 0


def test_a_wrong_example_is_noticed(capsys):
    module = type(pathlib)("made_up", ">>> int(torch.tensor(1)) + int(np.int64(1))\n3\n")
    assert run_examples(module).failed == 1


def test_the_folder_that_the_page_on_fitting_shows_loads(tmp_path):
    page = (ROOT / "docs" / "how-to" / "fit-a-canonicalizer.md").read_text()
    settings = json.loads(re.search(r"```json\n(.*?)```", page, re.S)[1])
    for name, file in settings["weights"].items():
        network = ConfigParser({"network": settings["networks"][name]}).get_parsed_content("network")
        torch.save(network.state_dict(), tmp_path / file)
    (tmp_path / "canonicalizer.json").write_text(json.dumps(settings))
    (tmp_path / "statistics.json").write_text(json.dumps({name: {"mean": 0.0, "std": 1.0} for name in settings["energies"]}))
    canonicalizer = monai_diffeo.load_canonicalizer(tmp_path)
    assert canonicalizer(torch.rand(1, 1, 128, 128)).image.shape == (1, 1, 128, 128)


def run_page(name):
    """What the Python blocks of a page leave behind, run one after another."""
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / name).read_text(), re.S):
        exec(code, scope)
    return scope


def test_the_page_on_layers_runs():
    scope = run_page("move-what-a-network-sees.md")
    image = torch.rand(2, 1, 64, 64)
    assert scope["network"](image).shape == (2, 2)
    moved = scope["augment"]({"image": image[0], "label": (image[0] > 0.5).float()})
    assert moved["image"].shape == (1, 64, 64)


def test_the_page_on_templates_runs():
    scope = run_page("segment-with-a-template.md")
    shapes = [scope[name].shape for name in ("log_odds", "masks", "direct")]
    assert shapes == [(1, 2, 128, 128)] * 3 and scope["result"].intact.all()
    assert scope["velocity"].shape == (1, 4, 2, 64, 64)


def test_the_page_on_parts_of_ones_own_runs():
    scope = run_page("extend.md")
    for name in ("result", "shifted", "centred", "searched", "loaded"):
        assert scope[name].image.shape == (2, 1, 32, 32) and "canonicalized" in scope[name].status
        assert scope[name].largest_displacement.max() > 0.1
    assert scope["searched"].ddf.abs().max() > 0.1 and scope["loaded"].velocity.shape[1] == 2  # predicted, then searched


def test_the_page_on_landmarks_runs():
    scope = run_page("landmarks-and-boxes.md")
    answer, seen = scope["answer"], scope["network"](scope["images"])
    assert {key: value.shape for key, value in answer.items()} == {key: value.shape for key, value in seen.items()}
    assert not torch.equal(answer["landmarks"], seen["landmarks"]) and not torch.equal(answer["boxes"], seen["boxes"])
    assert (scope["in_canonical"] - scope["points"]).abs().max() < 0.1 and scope["boxes"].shape == (2, 1, 4)
    assert scope["both"].shape == (2, 1, 64, 64) and scope["gradient"].shape == scope["activation"].shape == (1, 1, 64, 64)
    assert scope["gradient"].abs().sum() > 0 and scope["activation"].isfinite().all()
