"""`--amp` on the command line: which commands take it, and what a run with it keeps of one without it."""

import re

import pytest

for package in ("ignite", "nibabel", "pydicom", "PIL", "matplotlib", "skimage"):
    pytest.importorskip(package)

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.modules.module import register_module_forward_hook  # noqa: E402

from monai_diffeo.cli import calibrate as calibrate_module  # noqa: E402
from monai_diffeo.cli.bulk import bulk  # noqa: E402
from monai_diffeo.cli.segment import segment  # noqa: E402
from monai_diffeo.cli.watch import watch  # noqa: E402
from tests.bundles.command import ROOT, lines_of, run_bundle  # noqa: E402
from tests.cli.test_segment import invoke  # noqa: E402


def segmented(site, output, *words):
    """The types of what convolutions gave, and the lines of the report."""
    seen = set()
    handle = register_module_forward_hook(
        lambda part, _, answer: seen.add(answer.dtype) if isinstance(part, nn.Conv2d) else None
    )
    given = ("--bundle_root", site[0], "--dataset_dir", site[1], "--output_dir", output, "--figures", "false")
    try:
        assert invoke("segment", *given, *words)[0] == 0
    finally:
        handle.remove()
    return seen, lines_of(output)[0]


def test_a_run_with_it_keeps_nothing_of_one_without_it(site, tmp_path):
    seen, before = segmented(site, tmp_path / "out")
    assert seen == {torch.float32} and len(before) == 2
    seen, after = segmented(site, tmp_path / "out", "--resume", "--amp")
    assert seen == {torch.float32, torch.bfloat16}  # canonicaliser and networks
    assert all(before[name]["settings"] != after[name]["settings"] for name in before)
    assert segmented(site, tmp_path / "out", "--resume", "--amp", "true") == (set(), after)
    seen, again = segmented(site, tmp_path / "out", "--resume", "--amp", "false")
    assert seen == {torch.float32}
    assert [{**again[name], "seconds": 0} for name in before] == [{**line, "seconds": 0} for line in before.values()]


def test_monais_own_command_takes_it(site, tmp_path):
    of = [segmented(site, tmp_path / f"{word}", "--amp", word)[1]["000.png"]["signs"] for word in ("false", "true")]
    given = ("--dataset_dir", site[1] / "000.png", "--figures", "false", "--amp", "true")
    done, lines = run_bundle(site[0], tmp_path / "out", *given)
    assert done.returncode == 0, done.stderr
    assert lines["000.png"]["signs"] == of[1] != of[0]


def test_calibrate_takes_it_and_export_and_fit_do_not(monkeypatch):
    taken = {}
    monkeypatch.setattr(calibrate_module, "_calibrated", lambda root, given, *rest: taken.update(given) or "")
    assert invoke("calibrate", "--dataset_dir", "films", "--amp")[0] == 0 and taken["amp"] is True
    status, _, lines = invoke("segment", "--amp", "perhaps")
    assert status == 1 and "'perhaps' is not one of 'true', 'false'" in lines[-1]
    for command in ("export", "fit"):
        status, _, lines = invoke(command, "cxr" if command == "export" else "--resume", "--amp")
        assert status == 1 and "--amp" in lines[-1]


@pytest.mark.parametrize("command, page", [(bulk, "segment-on-many-processes"), (watch, "watch")], ids=["bulk", "watch"])
def test_the_pages_of_bulk_and_watch_have_all_options_that_segment_shares_with_them(command, page):
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
    row = next(line for line in text.splitlines() if "as for `segment`" in line)
    shared = {f"--{each.name}" for each in command.params} & {f"--{each.name}" for each in segment.params}
    shared -= {"--dataset_dir", "--output_dir"}
    assert set(re.findall(r"--\w+", row.partition("as for")[0])) == shared and "--amp" in shared
