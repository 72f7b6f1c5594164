"""`monai-diffeo wrap`: the command for a bundle of others, ready to paste."""

import json
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from monai.bundle import ConfigParser

from monai_diffeo.cli import program
from monai_diffeo.cli.wrap import wrapped_command, write_wrapped
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser.read_config([root / "configs" / "inference.json", overlay_path()])
    parser.update({"bundle_root": ".", **options})
    return parser


def test_the_command_has_the_overlay_and_the_folder_for_bash(bundle, monkeypatch):
    root = bundle(CONFIG)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    done = CliRunner().invoke(program, ["wrap", str(root)])
    assert done.exit_code == 0 and done.stdout.count("\n") == 1 and "--diffeo_enabled false" in done.stderr
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    folder, options = options_of(done.stdout.strip())
    assert folder == root and eval(options.pop("config_file")) == ["configs/inference.json", overlay_path()]
    expected = {"bundle_root": ".", "workflow_type": "infer", "diffeo_folder": str(root / "models" / "energy")}
    assert options == expected
    parser = wrapped(root, monkeypatch, diffeo_folder=options["diffeo_folder"])
    inferer = parser.get_parsed_content("inferer")
    assert isinstance(inferer, DiffeoInferer) and parser["evaluator::inferer"] == "@inferer"


def test_a_canonicaliser_by_name_or_folder_and_words_that_are_easy_to_read(bundle, tmp_path):
    root = bundle(CONFIG)
    for name in ("cxr", ROOT / "bundles" / "cxr_lung_segmentation"):
        command, _ = wrapped_command(root, str(name))
        assert options_of(command)[1]["diffeo_folder"] == str(ROOT / "bundles" / "cxr_lung_segmentation" / "models" / "energy")
    plain = root.rename(tmp_path / "plain")
    assert f"--config_file \"['configs/inference.json', '{overlay_path()}']\" --bundle_root ." in wrapped_command(plain)[0]


NAMED = {**EVALUATOR, "inferer": "@test#inferer"}
INLINE = {**EVALUATOR, "inferer": CONFIG["inferer"]}
OTHERS = [  # changes of the configuration, and what takes the inferer under another id
    ({"device": None}, ""),
    ({"evaluator": None}, ""),  # for Deploy or Label alone
    ({"inferer": None, "test": {"inferer": CONFIG["inferer"]}, "evaluator": NAMED}, "evaluator"),
    ({"inferer": None, "evaluator": INLINE}, "evaluator"),
    ({"evaluator": None, "validate": {"evaluator": EVALUATOR}}, ""),
    ({"inferer": None, "evaluator": None, "validate": {"evaluator": INLINE}}, "validate::evaluator"),
]


@pytest.mark.parametrize("changes, taker", OTHERS)
def test_what_has_another_id_is_reached_by_options_and_in_the_file(changes, taker, bundle, monkeypatch):
    root = bundle({key: value for key, value in {**CONFIG, **changes}.items() if value is not None})
    _, given = options_of(wrapped_command(root)[0])
    given = {key: value for key, value in given.items() if key not in {"config_file", "bundle_root", "workflow_type"}}
    expected = {"diffeo_inner": f"%configs/inference.json::{taker}::inferer"} if taker else {}
    expected |= {f"{taker}::inferer": "@inferer"} if taker.startswith("validate") else {}
    assert {key: value for key, value in given.items() if key != "diffeo_folder"} == expected
    written = ConfigParser(ConfigParser.load_config_file(write_wrapped(root)) | {"imports": ["$import torch"]})
    for parser in (wrapped(root, monkeypatch, **given), written):
        inferer = parser.get_parsed_content("inferer")
        assert isinstance(inferer, DiffeoInferer) and type(inferer.inferer).__name__ == "SlidingWindowInferer"
        takers = [id for id in ("evaluator", "validate::evaluator") if f"{id}::_target_" in parser]
        assert [parser[f"{id}::inferer"] for id in takers] == ["@inferer"] * len(takers)


@pytest.mark.parametrize("name", ["evaluating", "infer_all"])
def test_the_run_id_is_the_bundles_own(name, bundle):
    root = bundle({**{key: value for key, value in CONFIG.items() if key != "run"}, name: CONFIG["run"]})
    assert f" run {name} --config_file" in wrapped_command(root)[0]


OURS = {"_target_": "monai_diffeo.inferers.DiffeoInferer", "inferer": CONFIG["inferer"]}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"inferer": None, "evaluator": None}, "must have an entry 'inferer', or an evaluator with one, got \\['bundle_root'"),
        ({"inferer": None}, "must have an entry 'inferer'"),
        ({"validate": {"evaluator": INLINE}}, "\\['evaluator', 'validate::evaluator'\\] with different ones"),
        ({"inferer": OURS}, "must have a plain inferer, got a DiffeoInferer"),
    ],
)
def test_what_cannot_be_reached_is_an_error_that_says_what_to_do(changes, says, bundle):
    root = bundle({key: value for key, value in {**CONFIG, **changes}.items() if value is not None})
    for make in (wrapped_command, write_wrapped):
        with pytest.raises(ConfigError, match=says):
            make(root)
    assert [path.name for path in (root / "configs").iterdir()] == ["inference.json"]


@pytest.mark.parametrize("inferer, refused", [("SlidingWindowInferer", True), ("SliceInferer", False)])
def test_a_canonicaliser_of_images_is_for_volumes_only_slice_by_slice(inferer, refused, bundle):
    network = {"_target_": "UNet", "spatial_dims": 3}
    root = bundle({**CONFIG, "network_def": network, "inferer": {"_target_": inferer, "roi_size": [8, 8, 8]}})
    if refused:
        with pytest.raises(ConfigError, match="must be for images with 3 axes as configs/inference.json is, got .2."):
            wrapped_command(root)
    else:
        wrapped_command(root)
    wrapped_command(bundle({**CONFIG, "network_def": {**network, "spatial_dims": 2}}))


def test_the_file_is_written_again_but_no_other_file_is_replaced(bundle):
    root = bundle(CONFIG)
    for words, folder in (([], str(root / "models" / "energy")), (["--canonicalizer", "cxr"], "cxr")):
        done = CliRunner().invoke(program, ["wrap", str(root), "--write", *words])
        assert done.exit_code == 0 and "MONAI Deploy: BundleConfigNames(config_names=['inference_diffeo'])" in done.stderr
        words = shlex.split(done.stdout)
        expected = {"--config_file": "configs/inference_diffeo.json", "--bundle_root": ".", "--workflow_type": "infer"}
        assert dict(zip(words[-6::2], words[-5::2])) == expected
        content = ConfigParser.load_config_file(root / "configs" / "inference_diffeo.json")
        assert content["diffeo_folder"] == folder and content["diffeo_inner"] == CONFIG["inferer"]
    (root / "configs" / "inference_diffeo.json").write_text(json.dumps(CONFIG))
    done = CliRunner().invoke(program, ["wrap", str(root), "--write"])
    assert done.exit_code == 1 and "must be a file that `wrap --write` wrote" in done.stderr
    assert json.loads((root / "configs" / "inference_diffeo.json").read_text()) == CONFIG


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
