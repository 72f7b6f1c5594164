"""A value on a command line is a word: what a folder may be called reaches the bundle as it was typed."""

import json
import shutil
import sys
from pathlib import Path

import pytest

for package in ("ignite", "fire", "pydicom"):
    pytest.importorskip(package)

from monai_diffeo.cli.bundle import bundle_parser  # noqa: E402

BUNDLES = Path(__file__).parents[2] / "bundles"
PLAIN = ["20240115", "1e5", "2024.10", "a,b", "[x]", "None", "True", "0x10", "films #2", "{a: 1}", "-x", "(1", "ü ö", "a::b"]
EVALUATED = ["$x", "@x", "@bundle_root", "%x", "%a.json::b", "$__import__('os').mkdir('PWNED')", "'quoted'", '"quoted"']
ODD = ["a\nb", "a'b\"c", "$", "@", "caf\udce9", "  ", "#", "\\n", "{0}"]


@pytest.mark.parametrize("word", PLAIN + EVALUATED + ODD)
@pytest.mark.parametrize("bundle", ["cxr_lung_segmentation", "cxr_lung_template"])
def test_segment_takes_every_value_as_it_was_typed(word, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / word.replace("/", "")
    shutil.copytree(BUNDLES / bundle / "configs", root / "configs")
    options = ("dataset_dir", "output_dir", "network_weights", "mode", "device")
    parser = bundle_parser(root, dict.fromkeys(options, word))
    assert [parser.get_parsed_content(name) for name in options] == [word] * 5
    assert parser.get_parsed_content("results") == parser.get_parsed_content("weights_file") == word
    default = bundle_parser(root, {}).get_parsed_content("weights_file")
    assert default == str(root) + "/models/model.pt" and not Path("PWNED").exists()


@pytest.mark.parametrize("word", PLAIN)
@pytest.mark.parametrize("bundle", ["cxr_lung_segmentation", "cxr_lung_template"])
def test_monais_command_takes_plain_words_as_they_were_typed(word, bundle, monkeypatch):
    from fire.parser import DefaultParseValue

    options = ("dataset_dir", "output_dir", "network_weights")
    typed = [f"--{name}={word}" for name in options]
    monkeypatch.setattr(sys, "argv", ["monai/bundle/__main__.py", "run", *typed])
    seen = {name: value for name in options if (value := DefaultParseValue(word)) is not None}
    from monai.bundle import ConfigWorkflow

    config = json.loads((BUNDLES / bundle / "configs" / "inference.json").read_text())
    assert "option_text('dataset_dir'" in config["films"]
    flow = ConfigWorkflow(
        str(BUNDLES / bundle / "configs" / "inference.json"), workflow_type="infer", logging_file=False, **seen
    )
    flow.parser.parse(True)
    assert flow.parser.get_parsed_content("results") == flow.parser.get_parsed_content("weights_file") == word
