"""Labels of a DICOM film as DICOM Segmentation, by a transform."""

import pytest

for package in ("highdicom", "nibabel"):
    pytest.importorskip(package)

import highdicom as hd  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from monai.data import MetaTensor  # noqa: E402
from monai.transforms import Compose, SaveImaged  # noqa: E402
from PIL import Image  # noqa: E402

from monai_diffeo.errors import FilmError  # noqa: E402
from monai_diffeo.transforms import LoadImageFilmd, SaveImageFilmDicomSegd  # noqa: E402
from tests.dicom_output.films import film, lungs  # noqa: E402

NAMES = {"segments": ["Right lung", "Left lung"], "sides": ["right", "left"]}


def labels():
    right, left = lungs()
    return 1.0 * right + 2.0 * left


def save(path, output, pred=None, **settings):
    item = LoadImageFilmd("image")({"image": path})
    pred = labels() if pred is None else pred
    item["pred"] = MetaTensor(torch.as_tensor(pred)[None], meta=item["image"].meta)
    return SaveImageFilmDicomSegd("pred", output, path.parent, **{**NAMES, **settings})(item)["pred_path"]


def uids(path):
    seg = hd.seg.segread(path)
    return seg.SOPInstanceUID, seg.SeriesInstanceUID


def test_labels_are_segments_on_the_films_own_rows_and_columns(tmp_path):
    saved = save(film(tmp_path / "a.dcm"), tmp_path / "out")
    assert saved == str(tmp_path / "out" / "a_lungs.seg.dcm")
    seg = hd.seg.segread(saved)
    source = LoadImageFilmd("image")({"image": tmp_path / "a.dcm"})["image"]
    assert (seg.Rows, seg.Columns) == source.shape[1:]
    film_uid = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
    pixels = seg.get_pixels_by_source_instance([film_uid], ignore_spatial_locations=True)
    assert np.array_equal(pixels[0], np.stack(lungs(), -1))


def test_uids_follow_from_film_labels_and_names_or_from_what_is_given(tmp_path):
    path = film(tmp_path / "a.dcm")
    first = uids(save(path, tmp_path / "one"))
    assert uids(save(path, tmp_path / "two")) == first
    changed = labels()
    changed[0, 0] = 1
    others = [
        uids(save(path, tmp_path / "out", changed)),
        uids(save(path, tmp_path / "out", postfix="heart")),
        uids(save(path, tmp_path / "out", sides=["left", "right"])),
        uids(save(path, tmp_path / "out", identity="weights")),
    ]
    assert len({first, *others}) == 5
    assert uids(save(path, tmp_path / "out", changed, identity="weights")) == others[-1]


def test_it_is_refused_where_it_would_not_be_true(tmp_path):
    path = film(tmp_path / "a.dcm")
    with pytest.raises(FilmError, match="labels 0 to 1"):
        save(path, tmp_path, segments=["Lungs"], sides=())
    Image.fromarray(np.uint8(labels())).save(tmp_path / "b.png")
    with pytest.raises(FilmError, match="no DICOM file"):
        save(tmp_path / "b.png", tmp_path)
    with pytest.raises(ValueError, match="1 for 2 segments"):
        SaveImageFilmDicomSegd("pred", tmp_path, tmp_path, ["a", "b"], ["left"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.dcm", "b.png"]


def test_it_is_left_out_where_monai_leaves_out_its_own(tmp_path):
    chain = Compose([SaveImageFilmDicomSegd("pred", tmp_path, tmp_path)])
    assert isinstance(chain.transforms[0], SaveImaged)
