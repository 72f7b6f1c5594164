"""What a command does with memory that it no longer needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from monai_diffeo.cli import bundle
from monai_diffeo.errors import ConfigError

FAULTS = """
import resource, sys
import torch
from monai_diffeo.cli.memory import keep_memory
if sys.argv[1] == "keeps":
    keep_memory()
for i in range(30):
    if i == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(n * 2**20) for n in (1, 2, 3)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_tensors_of_one_size_do_not_come_from_the_kernel_again_and_again():
    faults = {}
    for what in ("keeps", "gives back"):
        given = [sys.executable, "-c", FAULTS, what]
        done = subprocess.run(given, capture_output=True, text=True, timeout=120, env={"MALLOC_TRIM_THRESHOLD_": "65536"})
        faults[what] = int(done.stdout)
    assert faults["keeps"] < 0.1 * faults["gives back"], faults


def test_what_runs_bundles_keeps_memory(monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(bundle, "keep_memory", lambda: kept.append(1))
    with pytest.raises(ConfigError):
        bundle.run_bundle(tmp_path, {})
    with pytest.raises(ConfigError):
        bundle.FilmByFilm(tmp_path, {"output_dir": tmp_path}, Path())
    assert kept == [1, 1]
