"""Configurations of others: what could run code is refused before anything runs, what a bundle needs is not."""

import builtins
import json
import pydoc
import warnings
from copy import deepcopy
from pathlib import Path

import pytest

pytest.importorskip("ignite")

from monai.bundle import ConfigParser

import monai_diffeo.cli.allowed as allowed
from monai_diffeo.cli.allowed import allow
from monai_diffeo.cli.bundle import bundle_parser
from monai_diffeo.errors import ConfigError

ROOT = Path(__file__).parents[2]
PWNED = "PWNED"  # the folder that an attack would make
MKDIR = f"__import__('os').mkdir('{PWNED}')"
NETWORK = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8], "strides": [2]}


def target(name, /, **arguments):
    return {"x": {"_target_": name, **arguments}}


def imports(statement, expression="$1"):
    return {"libs": [statement], "x": expression}


ATTACKS = {
    # a _target_ that is a function, or a class that is not on the list
    "os": target("os.mkdir", path=PWNED),
    "os of the system": target("os.system", command=f"mkdir {PWNED}"),
    "subprocess": target("subprocess.check_call", args=["mkdir", PWNED]),
    "a class that runs": target("subprocess.Popen", args=["mkdir", PWNED]),
    "builtins": target("builtins.exec", source=MKDIR),
    "eval": target("builtins.eval", source=MKDIR),
    "importlib": target("importlib.import_module", name="antigravity"),
    "shutil": target("shutil.rmtree", path="."),
    "pickle": target("pickle.loads", data="x"),
    "a bundle in a bundle": target("monai.bundle.run", config_file="x.json"),
    "a bundle by its short name": target("run", config_file="x.json"),
    "monai looks up": target("monai.utils.module.optional_import", module="antigravity"),
    "monai instantiates": target("monai.utils.module.instantiate"),
    "monai downloads": target("monai.apps.utils.download_url", url="http://a.b", filepath="c"),
    "torch.hub": target("torch.hub.load", repo_or_dir="a/b", model="c"),
    "torch.load": target("torch.load", f="x.pt", weights_only=False),
    "a script of the bundle": target("scripts.evil.Evil"),
    "a module of the bundle": target("monai_evil.Evil"),
    "a function beside transforms": target("monai.transforms.compose.execute_compose", data=1, transforms=[]),
    "a class that a module imported": target("monai.transforms.io.array.Path"),
    "a module that a module imported": target("torch.utils.data.dataloader.os.mkdir", path=PWNED),
    "a class of a room of another kind": target("monai.inferers.AvgMerger", merged_shape=[1]),
    "a dataset of pickles": target("PersistentDataset", data=[], transform=None, cache_dir="."),
    "a handler that writes any file": target("LogfileHandler", output_dir=".", filename="x.py"),
    "a private class of ours": target("monai_diffeo.cli.allowed._EveryId"),
    "a function of ours": target("monai_diffeo.files.write_atomically", path=PWNED, content="x"),
    "a function of a room of ours": target("monai_diffeo.canonicalize.fit_statistics", folder=".", images=[]),
    "by reference": {"name": "os.mkdir", **target("@name", path=PWNED)},
    "by expression": target(f"${MKDIR}"),
    "a list": {"x": {"_target_": ["os.mkdir"]}},
    "in a list in a list": {"x": [[{"y": target("os.mkdir", path=PWNED)}]]},
    # arguments
    "a transform of any function": target("Lambdad", keys="a", func="$len"),
    "a random transform of any function": target("monai.transforms.RandLambda", func="$len"),
    "any transform of torchvision": target("TorchVisiond", keys="a", name="Lambda"),
    "_mode_ callable": target("Compose", transforms=[], _mode_="callable"),
    "_mode_ debug": target("Compose", transforms=[], _mode_="debug"),
    "_mode_ by reference": {"m": "debug", **target("Compose", transforms=[], _mode_="@m")},
    "_debug_": target("Compose", transforms=[], _debug_=True),
    "_requires_": target("Compose", transforms=[], _requires_=f"${MKDIR}"),
    "_disabled_": target("Compose", transforms=[], _disabled_=f"${MKDIR}"),
    "_desc_": target("Compose", transforms=[], _desc_=f"${MKDIR}"),
    "a reader by its name": target("LoadImaged", keys="a", reader="os.mkdir"),
    "a reader by reference": {"r": "os.mkdir", **target("LoadImaged", keys="a", reader="@r")},
    "a reader in a list": target("LoadImage", reader=["os.mkdir"]),
    "a writer by its name": target("SaveImaged", keys="a", writer="os.mkdir"),
    "a merger by its name": target("PatchInferer", splitter=None, merger_cls="os.mkdir"),
    "pickled arrays": target("LoadImaged", keys="a", reader="PILReader", allow_pickle=True),
    "pickled arrays by reference": {"p": True, **target("LoadImaged", keys="a", allow_pickle="@p")},
    "fetched weights": target("ResNet", pretrained=True),
    "fetched weights by address": target("HoVerNet", pretrained_url="http://a.b"),
    "a trusted folder": target("monai_diffeo.canonicalize.load_canonicalizer", folder=".", trusted=True),
    "a trusted folder by reference": {"t": 1, **target("monai_diffeo.canonicalize.load_canonicalizer", trusted="@t")},
    # expressions
    "import": {"x": f"${MKDIR}"},
    "open": {"x": "$open('x', 'w')"},
    "exec": {"x": "$exec('1')"},
    "compile": {"x": "$compile('1', '', 'eval')"},
    "getattr": {"x": "$getattr(torch, 'load')"},
    "vars": {"x": "$vars(torch)"},
    "globals": {"x": "$globals()"},
    "breakpoint": {"x": "$breakpoint()"},
    "bases of a class": {"x": "$().__class__.__bases__[0].__subclasses__()"},
    "bases of a class that is allowed": {"x": "$str.__subclasses__()"},
    "globals of a method": {"n": NETWORK, "x": "$@n.forward.__globals__"},
    "globals of an allowed method": {"n": NETWORK, "x": "$@n.to.__globals__"},
    "an attribute that leads out": {"n": NETWORK, "x": "$@n.modules"},
    "format": {"x": "$'{0.__class__}'.format(1)"},
    "format of a reference": {"f": "{0.__class__}", "x": "$@f.format(1)"},
    "an f-string": {"x": "$f'{().__class__}'"},
    "torch.load in an expression": {"x": "$torch.load('x', weights_only=False)"},
    "torch.hub in an expression": {"x": "$torch.hub.load('a', 'b')"},
    "numpy.load": {"x": "$numpy.load('x', allow_pickle=True)"},
    "np.load": {"x": "$np.load('x')"},
    "monai.bundle in an expression": {"x": "$monai.bundle.run(config_file='x')"},
    "modules of torch": {"x": f"$torch.utils.data.dataloader.os.mkdir('{PWNED}')"},
    "lambda": {"x": f"$(lambda: {MKDIR})()"},
    "walrus": {"x": "$(y := torch)"},
    "walrus in a list": {"x": "$[y := torch.load, y('x')]"},
    "stars": {"x": "$dict(**{'a': 1})"},
    "stars of arguments": {"x": "$len(*[[]])"},
    "a comprehension that takes a name": imports("$import os", f"$[os.mkdir('{PWNED}') for os in [1]]"),
    "a module behind a name of a comprehension": imports(
        "$from monai_diffeo import command_line",
        "$[command_line for command_line in []] or command_line.run(config_file='evil.json')",
    ),
    "a comprehension that sets an entry": {"y": {"a": 1}, "x": "$[1 for @y['a'] in [2]]"},
    "a set of calls": {"x": f"${{{MKDIR}}}"},
    "deep in a condition": {"x": f"$1 if not 2 + [3, ({MKDIR},)][1][0] else 4"},
    "a default of a keyword": {"x": f"$dict(a={MKDIR})"},
    "a power that never ends": {"x": "$9 ** 9 ** 9 ** 9"},
    "two lines": {"x": f"$(1,\n{MKDIR})"},
    "in initialize": {"initialize": ["$1", f"${MKDIR}"]},
    "in run": {"run": f"${MKDIR}"},
    "a component in finalize": {"finalize": [{"_target_": "os.mkdir", "path": PWNED}]},
    "in a description of metadata": {"_meta_": {"description": f"${MKDIR}"}},
    "a reference in a text": {"or": "", "x": f"$'@or + {MKDIR} + @or'.format()"},
    "a key that gets into an expression": {f"' + {MKDIR} + '": {"w": "", "v": "$'%#w'"}},
    "a key that gets in when it is resolved twice": {f'" + {MKDIR} + "': {"' + \"%#": {"v": "$'%#w\""}}},
    # imports
    "an import": imports("$import subprocess"),
    "an import of a script": imports("$from scripts import evil"),
    "an import by a folder": imports("$from .os import mkdir", f"$mkdir('{PWNED}')"),
    "an import of a function": imports("$from os import mkdir", f"$mkdir('{PWNED}')"),
    "an allowed import used": imports("$import os", f"$os.mkdir('{PWNED}')"),
    "an allowed import renamed": imports("$import os as torch", f"$torch.mkdir('{PWNED}')"),
    "an allowed import as a builtin": imports("$import os as len", f"$len.mkdir('{PWNED}')"),
    "an allowed import as all builtins": imports("$import os as __builtins__"),
    "two names for one": {"imports": ["$from os import path as p", "$import torch as p"]},
    "two imports in one": imports("$import torch, subprocess"),
    "an import and a statement": imports(f"$import torch\n{MKDIR}"),
    "an import anywhere": {"x": {"y": [["$import subprocess"]]}},
    "the module of an import": imports("$import os", f"$@libs::0.mkdir('{PWNED}')"),
    "the module of an import in a list": imports("$import os", f"$@libs[0].mkdir('{PWNED}')"),
    "the list of imports": {"y": "@libs", **imports("$import os", f"$@y[0].mkdir('{PWNED}')")},
    "a module with a name that is an attribute": imports(
        "$from monai_diffeo import command_line", "$@libs::0.run(config_file='evil.json')"
    ),
    "a reference to all": {"x": "$@ or 1"},
    "sys.path": imports("$import sys", "$sys.path.insert(0, '.')"),
    "sys.modules": imports("$import sys", f"$sys.modules['os'].mkdir('{PWNED}')"),
    # macros
    "a macro": {"y": {"z": f"${MKDIR}"}, "x": "%y::z"},
    "a macro of a file": {"x": "%evil.json::evil"},
    "a macro of a component in a file": {"x": {"_target_": "%evil.json::name", "path": PWNED}},
    "a macro of a macro": {"a": "%b", "b": "%c", "c": "evil"},
    "a macro of a macro of a file": {"x": "%evil.json::again"},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a folder with a file that macros may name."""
    evil = {"evil": f"${MKDIR}", "name": "os.mkdir", "again": "%evil.json::evil"}
    (tmp_path / "evil.json").write_text(json.dumps(evil))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(parser):
    """Build every entry of a configuration, as far as it goes."""
    for id in list(parser[""]):
        try:
            parser.get_parsed_content(id)
        except Exception:  # the attack is what counts
            continue


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_could_run_code_is_refused(attack, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(
            ConfigError, match=r"segment: ['\"].*['\"] in the bundle's configuration must .* got .* --trust_bundle"
        ):
            allow(ConfigParser(deepcopy(ATTACKS[attack])))
    assert not (folder / PWNED).exists()


REAL = [
    "os", "os of the system", "subprocess", "a module that a module imported", "in a list in a list", "_requires_",
    "_disabled_", "_desc_", "import", "deep in a condition", "two lines", "in initialize", "an import of a function",
    "an import by a folder", "an allowed import used", "an allowed import renamed", "the module of an import", "sys.modules",
    "a macro", "a macro of a file", "a macro of a component in a file", "a reader by its name", "by reference",
    "a key that gets into an expression",
]  # fmt: skip


@pytest.mark.parametrize("attack", REAL)
def test_the_attacks_are_real(attack, folder):
    """MONAI alone runs them."""
    config = deepcopy(ATTACKS[attack])
    if attack == "a reader by its name":
        config["x"] = {"_target_": "LoadImage", "reader": "os.mkdir", "path": PWNED}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(ConfigParser(config))
    assert (folder / PWNED).exists()


def test_nothing_is_built_or_imported_before_all_is_checked(folder):
    parser = ConfigParser({"good": {**NETWORK}, "imports": ["$import glob"], "bad": f"${MKDIR}"})
    with pytest.raises(ConfigError, match="'bad'"):
        allow(parser)
    assert not parser.ref_resolver.resolved_content and "glob" not in parser.globals


FINE = {
    "imports": ["$import glob", "$import os", "$import numpy as np", "$from torch import nn"],
    "bundle_root": ".",
    "dataset_dir": ".",
    "pattern": "$os.path.join(@dataset_dir, '*.json')",
    "datalist": "$list(sorted(glob.glob(@pattern)))",
    "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    "network_def": NETWORK,
    "network": "$@network_def.to(@device).eval()",
    "head": "$nn.Sequential(nn.Conv2d(1, 2, 3), torch.nn.ReLU())",
    "dtype": "$np.float32",
    "size": [8, 8],
    "half": "$[s // 2 for s in @size]",
    "again": "%half",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "PILReader"},
            {"_target_": "monai.transforms.EnsureChannelFirstd", "keys": "image"},
            {"_target_": "monai.transforms.spatial.dictionary.Resized", "keys": "image", "spatial_size": "@size"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32]},
    "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    "checkpointloader": {"_target_": "CheckpointLoader", "load_path": "m.pt", "load_dict": {"model": "@network"}},
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "val_handlers": "@handlers",
    },
    "initialize": ["$monai.utils.set_determinism(seed=1)", "$@checkpointloader(@evaluator) if False else None"],
    "run": ["$len(@dataset) and @evaluator.state"],
}


def test_a_bundle_in_the_style_of_the_zoo_is_allowed_and_means_the_same():
    config = deepcopy(FINE)
    config["run"] = ["$len(@dataset)"]
    parser = ConfigParser(config)
    allow(parser)
    assert type(parser.get_parsed_content("evaluator")).__name__ == "SupervisedEvaluator"
    assert parser.get_parsed_content("run::0") == 1 and parser.get_parsed_content("half") == [4, 4]
    assert parser.get_parsed_content("again") == [4, 4] and parser.get_parsed_content("initialize::1") is None
    names = [type(t).__name__ for t in parser.get_parsed_content("preprocessing").transforms]
    assert names == ["LoadImaged", "EnsureChannelFirstd", "Resized"]


@pytest.mark.parametrize("bundle", ["cxr_lung_segmentation", "cxr_lung_template"])
def test_our_film_bundles_are_allowed(bundle):
    parser = bundle_parser(ROOT / "bundles" / bundle, {"enabled": False})
    assert not parser.get_parsed_content("network").training and parser.get_parsed_content("inferer").enabled is False


def test_a_bundle_with_scripts_is_allowed_only_if_it_is_trusted():
    root = ROOT / "bundles" / "mnist_genus"
    with pytest.raises(ConfigError, match="scripts.digits|sys.path.insert"):
        bundle_parser(root, {})
    assert bundle_parser(root, {}, trusted=True)["reporter"]["_target_"] == "scripts.reporter.GenusReporter"


def test_the_overlay_is_allowed(folder):
    from monai_diffeo.inferers import overlay_path

    (folder / "configs").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(FINE | {"run": []}))
    parser = ConfigParser()
    parser.read_config(["configs/inference.json", overlay_path()])
    allow(parser)
    assert parser.get("inferer::_target_").__name__ == "overlaid_inferer"


def test_the_list_names_things_that_exist():
    builtin = {n for n in allowed._NAMES if "." not in n} | {"bytes.fromhex"}
    missing = [n for n in (allowed._NAMES - builtin) | allowed._COMPONENTS if pydoc.locate(n) is None]
    assert missing == [] and all(hasattr(builtins, n.partition(".")[0]) for n in builtin)


def test_objects_of_yaml_are_refused_and_its_anchors_are_not(folder):
    pytest.importorskip("yaml")
    (folder / "configs").mkdir()
    file = folder / "configs" / "inference.yaml"
    file.write_text(f"x: !!python/object/apply:os.mkdir ['{PWNED}']\n")
    with pytest.raises(Exception, match="could not determine a constructor"):
        bundle_parser(folder, {})
    file.write_text("x: &a {_target_: Compose, transforms: []}\ny: *a\nz: {_target_: Compose, transforms: [*a]}\n")
    assert type(bundle_parser(folder, {}).get_parsed_content("y")).__name__ == "Compose"
    file.write_text(f"x: &a {{_target_: os.mkdir, path: {PWNED}}}\ny: *a\n")
    with pytest.raises(ConfigError, match="os.mkdir"):
        bundle_parser(folder, {})
    assert not (folder / PWNED).exists()
