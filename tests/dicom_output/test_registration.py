"""The deformation as DICOM registration: valid, and applied to the film it gives our canonical film."""

import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("highdicom")

import pydicom

from monai_diffeo.dicom_output import deformable_registration, source_of_film, write_dicom
from monai_diffeo.errors import FilmError, ShapeError
from monai_diffeo.flow import warp
from monai_diffeo.radiograph import read_film
from tests.dicom_output.films import SIZE, film
from tests.dicom_output.test_objects import ALGORITHM, DE_IDENTIFIED, errors_of


def smooth_ddf():
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] / 9.0
    return np.stack([2 * np.sin(columns), 3 * np.cos(rows)]).astype(np.float32)


def registered(folder, **settings):
    path = film(folder / "a.dcm", frame_of_reference=True, **settings)
    reg = deformable_registration(source_of_film(path), smooth_ddf(), read_film(path).affine, ALGORITHM)
    return path, write_dicom(reg, folder / "a.reg.dcm")


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy: apt-get install dicom3tools")
@pytest.mark.parametrize("settings", [{"modality": "CR"}, {"modality": "DX"}, DE_IDENTIFIED])
def test_a_validator_finds_no_error(tmp_path, settings):
    assert errors_of(registered(tmp_path, **settings)[1]) == []


def test_its_vectors_lead_from_the_canonical_film_to_the_film(tmp_path):
    """By the standard: a point of the registered frame plus its vector is the point of the source, in millimetres."""
    path, file = registered(tmp_path, ImagerPixelSpacing=[4.0, 7.0])
    reg, source = pydicom.dcmread(file), pydicom.dcmread(path)
    (item,) = reg.DeformableRegistrationSequence
    (grid,) = item.DeformableRegistrationGridSequence
    assert str(reg.PatientName) == "Müller^Jörg" and reg.StudyInstanceUID == source.StudyInstanceUID
    assert item.SourceFrameOfReferenceUID == source.FrameOfReferenceUID != reg.FrameOfReferenceUID
    assert list(grid.GridDimensions) == [SIZE[1], SIZE[0], 1] and list(grid.GridResolution)[:2] == [7.0, 4.0]
    vectors = np.frombuffer(grid.VectorGridData, "<f4").reshape(*SIZE, 3)
    assert list(grid.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
    right, down = np.reshape(grid.ImageOrientationPatient, (2, 3)).astype(float)
    back = torch.from_numpy(np.stack([vectors @ down / 4.0, vectors @ right / 7.0])).float()[None]
    pixels = torch.from_numpy(read_film(path).pixels)[None, None]
    expected = warp(pixels, torch.from_numpy(smooth_ddf())[None])
    assert (warp(pixels, back) - expected).abs().max() <= 1e-3 * (pixels.max() - pixels.min())
    assert np.abs(vectors[..., 2]).max() == 0 and np.abs(vectors).max() > 10


def test_no_frame_of_reference_is_made_up(tmp_path):
    source = source_of_film(film(tmp_path / "a.dcm"))
    with pytest.raises(FilmError, match="needs a film with a FrameOfReferenceUID"):
        deformable_registration(source, smooth_ddf(), np.eye(4), ALGORITHM)
    source = source_of_film(film(tmp_path / "b.dcm", frame_of_reference=True))
    with pytest.raises(ShapeError, match=r"\(2, H, W\)"):
        deformable_registration(source, smooth_ddf()[None], np.eye(4), ALGORITHM)
