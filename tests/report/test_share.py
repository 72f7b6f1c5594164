"""Films of other processes: outputs are taken over in an order that loses none."""

from pathlib import Path
from types import SimpleNamespace

from monai_diffeo.report.share import ReportedFilm, take_films


def test_a_film_without_a_mask_does_not_remove_the_mask_of_another_that_takes_its_name(tmp_path):
    """An earlier run gave ``b.dcm`` this mask. Now the film ``b`` has it, and ``b.dcm`` fails in the same batch."""
    staged, mask = tmp_path / "staged", "b_lungs.nii.gz"
    staged.mkdir()
    (staged / mask).write_bytes(b"new")
    (tmp_path / mask).write_bytes(b"old")
    nothing = SimpleNamespace(add=lambda lines: list(lines), write=lambda *records: None, film=lambda record: None)
    folder = SimpleNamespace(remove=lambda name: (tmp_path / mask).unlink(missing_ok=True), wrote=lambda paths: None)
    reporter = SimpleNamespace(output_dir=tmp_path, folder=folder, audit=nothing, writer=nothing, log=nothing, stopped=None)
    films = [({"input": "b", "mask": mask}, {}), ({"input": "b.dcm", "mask": None}, {})]
    take_films(reporter, [ReportedFilm(*lines, str(staged)) for lines in films])
    assert reporter.stopped is None and Path(tmp_path, mask).read_bytes() == b"new"
