"""`monai-diffeo wrap`: the command for a bundle of others, ready to paste."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from monai.bundle import ConfigParser

from monai_diffeo.cli import program
from monai_diffeo.cli.wrap import wrapped_command
from monai_diffeo.errors import ConfigError
from monai_diffeo.inferers import DiffeoInferer, overlay_path

ROOT = Path(__file__).parents[2]
EVALUATOR = {"_target_": "SupervisedEvaluator", "device": "@device", "network": "@network", "inferer": "@inferer"}
CONFIG = {
    "bundle_root": ".",
    "device": "$torch.device('cpu')",
    "network": {"_target_": "torch.nn.Identity"},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96]},
    "evaluator": EVALUATOR,
    "run": ["$@evaluator.run()"],
}


@pytest.fixture
def bundle(tmp_path):
    """Writes a bundle, with a canonicaliser in it, whose configuration is given."""

    def write(config, name="inference.json"):
        root = tmp_path / "a b's $x"
        (root / "configs").mkdir(parents=True, exist_ok=True)
        (root / "configs" / name).write_text(json.dumps(config))
        if not (root / "models" / "energy").exists():
            shutil.copytree(ROOT / "bundles" / "mnist_genus" / "models" / "energy", root / "models" / "energy")
        return root

    return write


def options_of(command):
    """The folder, and the options of the command by name, as bash splits them."""
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    folder, _, rest = command.partition(" && ")
    words = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {folder} {rest}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    cd, root, python, *words = json.loads(words.stdout)
    assert cd == "cd" and python == sys.executable and words[:3] == ["-m", "monai.bundle", "run"]
    return Path(root), dict(zip((word.removeprefix("--") for word in words[3::2]), words[4::2]))


def wrapped(root, monkeypatch, **options):
    """What MONAI builds of the configuration files and options of a command."""
    monkeypatch.chdir(root)
    parser = ConfigParser({"imports": ["$import torch"]})
    parser.read_config([root / "configs" / "inference.json", overlay_path()])
    parser.update(options)
    return parser


def test_the_command_has_the_overlay_and_the_folder_for_bash(bundle, monkeypatch):
    root = bundle(CONFIG)
    done = CliRunner().invoke(program, ["wrap", str(root)])
    assert done.exit_code == 0 and done.stdout.count("\n") == 1 and "--diffeo_enabled false" in done.stderr
    folder, options = options_of(done.stdout.strip())
    assert folder == root and eval(options.pop("config_file")) == ["configs/inference.json", overlay_path()]
    expected = {"bundle_root": ".", "workflow_type": "infer", "diffeo_folder": str(root / "models" / "energy")}
    assert options == expected
    parser = wrapped(root, monkeypatch, diffeo_folder=options["diffeo_folder"])
    inferer = parser.get_parsed_content("diffeo_inferer")
    assert isinstance(inferer, DiffeoInferer) and parser["evaluator::inferer"] == "@diffeo_inferer"
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    wrapped_command(root)
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_canonicaliser_by_name_or_folder_and_words_that_are_easy_to_read(bundle, tmp_path):
    root = bundle(CONFIG)
    for name in ("cxr", ROOT / "bundles" / "cxr_lung_segmentation"):
        command, _ = wrapped_command(root, str(name))
        assert options_of(command)[1]["diffeo_folder"] == str(ROOT / "bundles" / "cxr_lung_segmentation" / "models" / "energy")
    plain = root.rename(tmp_path / "plain")
    assert f"--config_file \"['configs/inference.json', '{overlay_path()}']\" --bundle_root ." in wrapped_command(plain)[0]


@pytest.mark.parametrize(
    "changes, options",
    [
        ({"device": None}, {"device": "cpu"}),
        ({"run": None, "evaluating": []}, {}),
        (
            {"inferer": None, "test": {"inferer": CONFIG["inferer"]}, "evaluator": {**EVALUATOR, "inferer": "@test#inferer"}},
            {"diffeo_inferer::inferer": "@test#inferer"},
        ),
    ],
)  # fmt: skip
def test_what_has_another_id_is_reached_by_an_option(changes, options, bundle, monkeypatch):
    root = bundle({key: value for key, value in {**CONFIG, **changes}.items() if value is not None})
    command, _ = wrapped_command(root)
    if "evaluating" in changes:
        assert " run evaluating --config_file" in command
        return
    folder, given = options_of(command)
    fixed = {"config_file", "bundle_root", "workflow_type"}
    assert {key: value for key, value in given.items() if key not in {*fixed, "diffeo_folder"}} == options
    parser = wrapped(root, monkeypatch, **{key: value for key, value in given.items() if key not in fixed})
    inferer = parser.get_parsed_content("diffeo_inferer")
    assert isinstance(inferer, DiffeoInferer) and type(inferer.inferer).__name__ == "SlidingWindowInferer"


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"evaluator": None}, "must have an entry 'evaluator', got \\['bundle_root'.*Give it that id"),
        ({"evaluator": None, "validate": {"evaluator": EVALUATOR}}, "write 'validate::evaluator::inferer' for 'evaluator::inf"),
        ({"inferer": None, "evaluator": {**EVALUATOR, "inferer": CONFIG["inferer"]}}, "must take its inferer by an id"),
    ],
)
def test_what_cannot_be_reached_is_an_error_that_says_what_to_do(changes, says, bundle):
    root = bundle({key: value for key, value in {**CONFIG, **changes}.items() if value is not None})
    with pytest.raises(ConfigError, match=says):
        wrapped_command(root)


def test_what_is_missing_is_the_last_line(bundle, tmp_path):
    root = bundle(CONFIG)
    shutil.rmtree(root / "models")
    (tmp_path / "empty").mkdir()
    for words, says in (
        ([root], "must have canonicalizer.json, "),
        ([tmp_path / "empty", "--canonicalizer", "cxr"], "must have configs/inference.json or configs/inference.yaml"),
        ([root, "--canonicalizer", "cxrr"], "or the name of a bundle ("),
        ([tmp_path / "nothing"], "expected a folder or the name of a bundle"),
    ):
        done = CliRunner().invoke(program, ["wrap", *map(str, words)])
        assert done.exit_code == 1 and done.stdout == "" and done.stderr.startswith("Error: wrap: ") and says in done.stderr
