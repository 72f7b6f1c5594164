"""The script for a GPU, on a machine that has none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "cuda_check.sh"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: run tests/cuda_check.sh itself")
def test_without_a_gpu_it_says_so_and_runs_nothing(tmp_path):
    given = {**os.environ, "OUT": str(tmp_path / "pages"), "PYTHON": sys.executable}
    given.pop("MONAI_DIFFEO_TEST_DEVICE", None)
    done = subprocess.run(["bash", str(SCRIPT)], env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 77 and "no CUDA device" in done.stdout
    assert [page.name for page in (tmp_path / "pages").iterdir()] == ["summary.txt"]
    assert "unmeasured" in (tmp_path / "pages" / "summary.txt").read_text()


def test_it_names_tests_bundles_and_parts_that_exist():
    text = SCRIPT.read_text()
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    from docs.experiments.benchmark import PARTS

    only = text.partition("--only ")[2].partition(" --")[0].split()
    assert only and set(only) <= set(PARTS)
    names = [
        line.split("(")[0][4:] for line in (SCRIPT.parent / "test_cuda.py").read_text().splitlines() if line[:9] == "def test_"
    ]
    assert any("training_step" in name for name in names) and any("bundle" in name for name in names)
