"""The page of speed: ratios within a round, and parts that can be run alone."""

import pytest
import torch

from docs.experiments.benchmark import Benchmark, Clock, main, power, published, ratios, rows_of, three_levels
from monai_diffeo.canonicalize import load_canonicalizer
from tests.helpers import blob


def test_ratios_are_taken_round_by_round():
    times = {"limit": [1.0, 2.0, 4.0], "ours": [2.0, 2.0, 4.0]}
    assert ratios(times, "ours", "limit") == [2.0, 1.0, 1.0]
    assert rows_of(times, "limit")[1] == {"what": "ours", "milliseconds": "2e+03 (2e+03 to 4e+03)", "of limit": "1 (1 to 2)"}
    assert power((128, 256), (1.0, 4.0)) == pytest.approx(1.0)  # four times the pixels, four times the cost


def test_runs_are_interleaved_and_the_first_round_does_not_count():
    done = []
    times = Clock("cpu", 0.0, 2).interleaved({"a": lambda: done.append("a"), "b": lambda: done.append("b")})
    assert "".join(done).startswith("abab") and len(times["a"]) == len(times["b"]) >= 2


def test_a_published_step_moves_its_film():
    torch.manual_seed(0)
    step = published(blob(1, (128, 128), 0.3), load_canonicalizer("cxr", "faithful"))
    losses = [step() for _ in range(3)]
    assert losses[2] < losses[0]


def test_a_part_alone_writes_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(Benchmark, "warp_at", lambda self, size: [{"size": size, "what": "warp"}])
    main(["--only", "warp", "--rounds", "1", "--seconds", "0", "--output", str(tmp_path / "speed.md")])
    page = (tmp_path / "speed.md").read_text()
    assert "## Warp and composition" in page and "## Exponential" not in page
    assert (
        "python -m docs.experiments.benchmark --only warp" in page
        and "| not measured |" in page
        and "load of the machine" in page
    )
    with pytest.raises(SystemExit, match="--only takes exp, warp"):
        main(["--only", "everything"])


def test_demons_bring_a_film_to_its_mirror_image():
    sitk = pytest.importorskip("SimpleITK")
    field = three_levels(sitk, blob(1, (64, 64)).roll(3, -1))
    assert abs(sitk.GetArrayFromImage(field)).max() > 1
