"""A batch on a worker, in this process: what ends a run in place of failing film after film."""

from types import SimpleNamespace

import pytest

pytest.importorskip("distributed")

from monai_diffeo import bulk
from monai_diffeo.errors import ConfigError, OutputError


def task(tmp_path, films="films", line=None):
    (tmp_path / "films").mkdir()
    (tmp_path / "run").mkdir()

    def make(output):
        segment = lambda film, refused: dict(line or {})  # noqa: E731
        segment.reporter, segment.share = SimpleNamespace(settings_sha256="s"), SimpleNamespace(take=lambda: ["taken"])
        return segment

    return bulk.Task(make, (), str(tmp_path / "run"), "s", str(tmp_path / films))


def test_a_worker_that_does_not_see_the_films_or_the_results_is_an_error_of_the_run(tmp_path):
    made = task(tmp_path, films="elsewhere")
    with pytest.raises(ConfigError, match="a worker on .* does not see '.*elsewhere'. Mount films and results"):
        bulk.segment_batch(made, ["film"])


def test_a_mask_that_cannot_be_written_ends_the_run(tmp_path):
    assert bulk.segment_batch(task(tmp_path), ["film"]) == ["taken"]
    full = {"error": "OutputError", "message": "The disk is full."}
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(OutputError, match="The disk is full"):
        bulk.segment_batch(task(other, line=full), ["film"])
