"""The command line: what MONAI would take and not obey is refused, what README documents is not."""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from monai_diffeo import inferers
from monai_diffeo.command_line import (
    check_options,
    end_plainly,
    option_choice,
    option_text,
    parse_share,
    parse_switch,
    typed_configuration,
)
from monai_diffeo.errors import WeightsError

pytest.importorskip("fire")

ROOT = Path(__file__).parents[1]
RUN = ["/somewhere/monai/bundle/__main__.py", "run"]
CONFIG = {
    "dataset_dir": None,
    "output_dir": "out",
    "enabled": True,
    "tta_samples": None,
    "inferer": {"_target_": "SimpleInferer"},
    "images": {"size": [128, 128]},
}


@pytest.fixture
def line(tmp_path):
    """A command line on a small config."""
    (tmp_path / "inference.json").write_text(json.dumps(CONFIG))
    (tmp_path / "over.json").write_text(json.dumps({"diffeo_mode": None, "images::gap": 3}))

    def of(*options, config=tmp_path / "inference.json"):
        return [*RUN, "--config_file", str(config), "--bundle_root", "b", *options]

    (tmp_path / "inference.json").write_text(json.dumps({**CONFIG, "bundle_root": "."}))
    return of


@pytest.mark.parametrize(
    "options",
    [
        "--dataset_dir films --output_dir=o --workflow_type infer --logging_file l.conf --meta_file m.json",
        "--dataset-dir films --enabled false --run_id run",
        "--enabled",
        "--noenabled --tta_samples 3",
        "-dataset_dir films",
        "--images::size [64,64] --images#size#0 32 --inferer::further 1",
        "run initialize --dataset_dir -3",
        "--_meta_::version 2 --+images {size:3}",
        "-- --trace",
    ],
)
def test_known_options_pass(line, options, tmp_path):
    (tmp_path / "inference.json").write_text(json.dumps({**CONFIG, "bundle_root": ".", "run": [], "initialize": []}))
    check_options(line(*options.split()))


@pytest.mark.parametrize(
    "options, says",
    [
        ("--datasetdir films", "--dataset_dir"),
        ("--dataset_dri=films", "--dataset_dir"),
        ("--datset-dir films", "--dataset_dir"),
        ("--enable false", "--enabled"),
        ("--workflow_typ infer", "--workflow_type"),
        ("--images::sise 3", "--images::size"),
        ("--imags::size 3", "--images"),
        ("--noenable", "--enabled"),
        ("-d films", "did you mean --"),
        ("--dataset_dir a b", "'b' belongs to no option"),
        ("--dataset_dir a --dataset_dir b", "2 times"),
        ("--dataset_dir --enabled false", "--dataset_dir has no value"),
        ("--tta_samples", "--tta_samples has no value"),
        ("--output_dir=", "--output_dir has no value"),
    ],
)
def test_what_would_be_passed_over_is_refused(line, options, says):
    with pytest.raises(ValueError, match=says):
        check_options(line(*options.split()))


def test_an_unset_variable_is_refused(line):
    with pytest.raises(ValueError, match="--dataset_dir has no value; a shell variable may be unset"):
        check_options(line("--dataset_dir", ""))


def test_ids_of_all_config_files_count(line, tmp_path):
    both = str([str(tmp_path / "inference.json"), str(tmp_path / "over.json")])
    check_options(line("--diffeo_mode", "refine", "--images::gap", "4", config=both))
    with pytest.raises(ValueError, match="did you mean --diffeo_mode"):
        check_options(line("--diffeomode", "refine", config=both))
    check_options(line("--diffeo_mode", "refine", config=f"{tmp_path / 'inference.json'},{tmp_path / 'over.json'}"))


def test_options_in_a_file_count_too(line, tmp_path):
    arguments = {"config_file": str(tmp_path / "inference.json"), "dataset_dir": "films"}
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    check_options([*RUN, "--args_file", str(tmp_path / "arguments.json"), "--output_dir", "o"])
    (tmp_path / "arguments.json").write_text(json.dumps({**arguments, "outputdir": "o"}))
    with pytest.raises(ValueError, match="--output_dir"):
        check_options([*RUN, "--args_file", str(tmp_path / "arguments.json")])


@pytest.mark.parametrize(
    "argv", [["pytest", "--datasetdir", "x"], ["python", "run", "--x"], [RUN[0], "download", "--name", "x"]]
)
def test_other_programs_are_not_checked(argv):
    check_options(argv)
    assert option_text("name", 3, argv) == 3


@pytest.mark.parametrize("bundle", ["cxr_lung_segmentation", "cxr_lung_template", "mnist_genus"])
def test_the_documented_options_of_every_bundle_pass(bundle):
    configs = ROOT / "bundles" / bundle / "configs"
    config = json.loads((configs / "inference.json").read_text())
    assert config["initialize"][0] == "$command_line.check_options()"
    options = "--dataset_dir D --output_dir O --enabled false --mode refine --device cpu --network_weights F --figures false"
    options += (
        " --tta_samples 8"
        + (" --debug true" if "debug" in config else "")
        + (" --progress true" if "progress" in config else "")
    )
    run = [*RUN, "--config_file", str(configs / "inference.json"), "--bundle_root", "b", "--workflow_type", "infer"]
    check_options([*run, *options.split()])
    overlaid = str([str(configs / "inference.json"), inferers.overlay_path()])
    check_options([*RUN, "--config_file", overlaid, "--bundle_root", ".", "--diffeo_folder", "F", "--diffeo_enabled", "false"])
    with pytest.raises(ValueError, match="--dataset_dir"):
        check_options([*run, "--datasetdir", "D"])


@pytest.mark.parametrize("word", ["None", "True", "2024.10", "1e3", "films #2", "a,b", "0x10", "", "-", "[x]"])
@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
def test_a_folder_has_the_name_that_was_typed(word, form):
    from fire.parser import DefaultParseValue

    argv = [*RUN, *("--dataset-dir {}" if form == "{} {}" else "--dataset_dir={}").split(" ", 1)]
    argv[-1] = argv[-1].format(word)
    assert option_text("dataset_dir", DefaultParseValue(word), argv) == word
    assert option_text("output_dir", 5, argv) == 5


@pytest.mark.parametrize("word", ["@bundle_root", "$@bundle_root + '/a'", "%a.json::b", "'quoted'"])
def test_what_is_to_be_evaluated_is_left_to_monai(word):
    assert option_text("dataset_dir", "evaluated", [*RUN, "--dataset_dir", word]) == "evaluated"


def test_a_switch_is_importable_from_where_it_was():
    assert inferers.parse_switch is parse_switch and parse_switch(" False ") is False and parse_switch("ON") is True


def test_an_option_with_choices_stands_for_one_of_them():
    choices = {"visible": None, "whole": "whole.pt"}
    assert (
        option_choice("convention", "whole", choices) == "whole.pt" and option_choice("convention", "visible", choices) is None
    )
    with pytest.raises(ValueError, match="--convention must be 'visible' or 'whole', got 'hole'"):
        option_choice("convention", "hole", choices)


def test_what_decides_the_masks_is_the_files_and_the_options_and_not_the_places(line, tmp_path):
    plain = typed_configuration(line())
    assert plain["files"]["images"] == {"size": [128, 128]} and plain["options"] == {}
    same = line("--output_dir", "elsewhere", "--dataset_dir", "x", "--resume", "true", "--bundle_root", "c", "--debug")
    assert typed_configuration(same) == plain
    assert typed_configuration(line("--tta_samples", "3")) != plain != typed_configuration(line("--inferer#_target_", "X"))
    (tmp_path / "inference.json").write_text(json.dumps({**CONFIG, "bundle_root": ".", "images": {"size": [64, 64]}}))
    assert typed_configuration(line()) != plain and typed_configuration(["pytest"]) == {}


def ended(work):
    """Exit status and error text of a process."""
    read, write = os.pipe()

    def run():
        os.dup2(write, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        work()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    os.close(write)
    process.join(60)
    with os.fdopen(read) as said:
        return process.exitcode, said.read()


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_process_with_its_status_and_no_traceback(line, number, status):
    def work():
        end_plainly(line())
        try:
            os.kill(os.getpid(), number)
            time.sleep(30)
        except Exception:
            os._exit(1)  # no handler of errors may catch it

    assert ended(work) == (status, "")


def test_an_error_of_ours_is_its_sentence_and_others_keep_their_traceback(line, monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = sys.excepthook
    end_plainly(["pytest"])
    end_plainly(line("--debug", "true"))
    assert sys.excepthook is before
    end_plainly(line("--debug", "false"))
    for error, says in ((WeightsError("copy the file again."), "WeightsError: copy the file again.\n"), (KeyError("x"), None)):
        try:
            try:
                raise error
            except Exception as cause:
                raise RuntimeError("failed to evaluate") from cause
        except RuntimeError as wrapped:
            sys.excepthook(type(wrapped), wrapped, wrapped.__traceback__)
        said = capsys.readouterr().err
        assert said == says if says else "Traceback" in said


@pytest.mark.parametrize("value, number", [(0.47, 0.47), ("0.3", 0.3)])
def test_a_share_is_a_number_between_0_and_1(value, number):
    assert parse_share(value, "mask_threshold") == number


@pytest.mark.parametrize("value", [0, 1, 47, -0.1, "47", "nan", "high", None])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(ValueError, match="--mask_threshold must be a number between 0 and 1"):
        parse_share(value, "mask_threshold")
