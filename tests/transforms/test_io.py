"""Films in and masks out through MONAI: collation, decollation, inversion and MONAI's own writer."""

import pickle

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, set_track_meta
from monai.transforms import Compose, EnsureTyped, Invertd, Resized, SaveImage, ScaleIntensityd

from monai_diffeo.errors import FilmError, ShapeError
from monai_diffeo.transforms import io as film_io
from monai_diffeo.transforms.io import LoadImageFilm, LoadImageFilmd, SaveImageFilmMaskd

nibabel = pytest.importorskip("nibabel")
image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("pydicom")

from tests.radiograph.dicom_factory import corner_film, save  # noqa: E402

FILM = corner_film(20, 30)


@pytest.fixture
def films(tmp_path):
    """The same picture in every format, one pair with clashing names."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    save(folder / "a.dcm", 4095 - FILM, PhotometricInterpretation="MONOCHROME1", ImagerPixelSpacing=[0.2, 0.1])
    nibabel.save(nibabel.Nifti1Image(FILM.T[..., None], np.diag([-0.1, 0.2, 1, 1])), folder / "a.nii.gz")
    image_module.fromarray(FILM).save(folder / "sub" / "b.png")
    save(folder / "1.2.840.9", FILM)
    return [folder / name for name in ("a.dcm", "a.nii.gz", "sub/b.png", "1.2.840.9")]


def test_names():
    assert film_io.LoadImageFilmD is film_io.LoadImageFilmDict is LoadImageFilmd
    assert film_io.SaveImageFilmMaskD is film_io.SaveImageFilmMaskDict is SaveImageFilmMaskd
    assert "LoadImage" in LoadImageFilmd.__name__ and "Save" in SaveImageFilmMaskd.__name__  # MONAI Deploy strips by name


def test_load(films):
    for path in films:
        film = LoadImageFilm()(path)
        assert isinstance(film, MetaTensor) and film.dtype == torch.float32
        np.testing.assert_array_equal(film[0].numpy(), FILM)
        assert film.meta["filename_or_obj"] == str(path)
    assert LoadImageFilm()(films[0]).pixdim.tolist() == pytest.approx([0.2, 0.1, 1.0])


def test_load_dictionary(films):
    data = {"image": films[0], "age": 3}
    loaded = pickle.loads(pickle.dumps(LoadImageFilmd(["image", "label"], allow_missing_keys=True)))(data)
    assert loaded["image"].shape == (1, 20, 30) and loaded["age"] == 3 and data["image"] == films[0]
    with pytest.raises(KeyError):
        LoadImageFilmd(["image", "label"])(data)
    with pytest.raises(FilmError, match="FileNotReadable"):
        LoadImageFilmd("image")({"image": "absent.dcm"})


def test_load_without_tracking(films):
    try:
        set_track_meta(False)
        film = LoadImageFilm()(films[0])
    finally:
        set_track_meta(True)
    assert type(film) is torch.Tensor and film.shape == (1, 20, 30)


def through_a_loader(films, preprocessing, batch_size):
    data = Dataset([{"image": str(path)} for path in films], transform=preprocessing)
    for batch in DataLoader(data, batch_size=batch_size):
        batch["pred"] = (batch["image"] > 0.5).float()
        yield from decollate_batch(batch)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("resize", [False, True])
def test_masks_come_back_to_every_format(films, tmp_path, batch_size, resize):
    steps = [LoadImageFilmd("image"), ScaleIntensityd("image")]
    steps += [Resized("image", (40, 60), mode="nearest")] if resize else []
    preprocessing = Compose([*steps, EnsureTyped("image")])
    back = Compose([
        Invertd("pred", preprocessing, orig_keys="image", nearest_interp=True),
        SaveImageFilmMaskd("pred", tmp_path / "out", tmp_path / "in"),
    ])  # fmt: skip
    done = [back(item) for item in through_a_loader(films, preprocessing, batch_size)]
    names = ["a_dcm_lungs.nii.gz", "a_nii_gz_lungs.nii.gz", "sub/b_lungs.png", "1.2.840.9_lungs.nii.gz"]
    assert [item["pred_path"] for item in done] == [str(tmp_path / "out" / name) for name in names]
    scaled = (FILM - FILM.min()) / (FILM.max() - FILM.min())
    dicom, nifti, png, uid = [tmp_path / "out" / name for name in names]
    np.testing.assert_array_equal(nibabel.load(dicom).get_fdata(), (scaled > 0.5).T[..., None])
    np.testing.assert_allclose(nibabel.load(dicom).affine[:2, :2], [[-0.1, 0], [0, -0.2]], rtol=1e-6)
    assert [nibabel.load(path).header.get_xyzt_units()[0] for path in (dicom, uid)] == ["mm", "unknown"]
    np.testing.assert_array_equal(nibabel.load(nifti).get_fdata(), (scaled > 0.5).T[..., None])
    np.testing.assert_array_equal(nibabel.load(nifti).affine, nibabel.load(films[1]).affine)
    np.testing.assert_array_equal(np.asarray(image_module.open(png)), 255 * (scaled > 0.5))
    np.testing.assert_array_equal(nibabel.load(uid).get_fdata(), (scaled > 0.5).T[..., None])


def test_save_with_the_metadata_of_another_key(films, tmp_path):
    data = LoadImageFilmd("image")({"image": films[2]})
    data["pred"] = torch.from_numpy(FILM > 1500)  # (H, W), plain tensor
    saved = SaveImageFilmMaskd("pred", tmp_path / "out", films[2], postfix="marker", film_key="image")(data)
    assert saved["pred_path"] == str(tmp_path / "out" / "b_marker.png") and "pred_path" not in data
    np.testing.assert_array_equal(np.asarray(image_module.open(saved["pred_path"])), 255 * (FILM > 1500))
    with pytest.raises(FilmError, match="film_key"):
        SaveImageFilmMaskd("pred", tmp_path / "out", films[2])(data)


def test_a_mask_of_another_size_is_refused(films, tmp_path):
    data = LoadImageFilmd("image")({"image": films[0]})
    for wrong in (data["image"].mT, data["image"][:, :10], data["image"][:, :, :10]):
        with pytest.raises(ShapeError, match="Invertd"):
            SaveImageFilmMaskd("image", tmp_path / "out", tmp_path / "in")({"image": wrong})
    assert not (tmp_path / "out").exists()


def three_classes():
    """One-hot ``(3, H, W)``: background, a bright class, a brighter one."""
    labels = (FILM > 300).astype(int) + (FILM > 1500)
    return labels, np.stack([labels == k for k in range(3)]).astype(np.float32)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("of_scores", [False, True])
def test_classes_become_one_label_map(films, tmp_path, which, of_scores):
    data = LoadImageFilmd("image")({"image": films[which]})
    labels, hot = three_classes()
    data["pred"] = torch.from_numpy(hot * 0.4 + 0.2 if of_scores else hot)
    save = SaveImageFilmMaskd("pred", tmp_path / "out", tmp_path / "in", film_key="image", channels="labels")
    path = save(data)["pred_path"]
    written = np.asarray(image_module.open(path) if path.endswith("png") else nibabel.load(path).dataobj)
    np.testing.assert_array_equal(np.squeeze(written.T if which < 2 else written), labels)
    data["pred"] = labels  # a label map is kept whatever the channels
    for channels in ("refuse", "files", "labels"):
        path = SaveImageFilmMaskd("pred", tmp_path / channels, tmp_path / "in", film_key="image", channels=channels)(data)[
            "pred_path"
        ]
        written = np.asarray(image_module.open(path) if path.endswith("png") else nibabel.load(path).dataobj)
        np.testing.assert_array_equal(np.squeeze(written.T if which < 2 else written), labels)


def test_classes_become_a_file_each(films, tmp_path):
    data = LoadImageFilmd("image")({"image": films[2]})
    labels, hot = three_classes()
    data["pred"] = torch.from_numpy(hot)
    save = SaveImageFilmMaskd("pred", tmp_path / "out", tmp_path / "in", "heart", film_key="image", channels="files")
    paths = save(data)["pred_path"]
    assert paths == [str(tmp_path / "out" / "sub" / f"b_heart_{k}.png") for k in range(3)]
    for k, path in enumerate(paths):
        np.testing.assert_array_equal(np.asarray(image_module.open(path)), 255 * (labels == k))


def test_classes_are_refused_unless_it_is_said_what_to_do(films, tmp_path):
    data = LoadImageFilmd("image")({"image": films[2]})
    _, hot = three_classes()
    data["pred"] = torch.from_numpy(hot)
    with pytest.raises(ShapeError, match=r"channels='labels'.*'files'"):
        SaveImageFilmMaskd("pred", tmp_path / "out", tmp_path / "in", film_key="image")(data)
    data["pred"] = torch.from_numpy(hot[1:])  # no background: class 1 would be lost
    with pytest.raises(FilmError, match="UnsupportedLabels.*channel 0 for background"):
        SaveImageFilmMaskd("pred", tmp_path / "out", tmp_path / "in", film_key="image", channels="labels")(data)
    data["pred"] = torch.from_numpy(hot + hot[1:2])  # two classes at a pixel
    data["pred"] = data["pred"].clamp(max=1)
    with pytest.raises(FilmError, match="UnsupportedLabels"):
        SaveImageFilmMaskd("pred", tmp_path / "out", tmp_path / "in", film_key="image", channels="labels")(data)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="'refuse', 'labels' or 'files'"):
        SaveImageFilmMaskd("pred", tmp_path, tmp_path, channels="all")


def test_names_of_a_run_are_given_once(films, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr("monai_diffeo.radiograph.mask_writer.film_names", lambda folder: looked.append(folder) or [])
    save = SaveImageFilmMaskd("pred", tmp_path / "out", tmp_path / "in", film_key="image", films=films[1:])
    data = LoadImageFilmd("image")({"image": films[1]})
    data["pred"] = data["image"][0] > 1500
    assert save(data)["pred_path"] == str(tmp_path / "out" / "a_lungs.nii.gz")  # a.dcm is not of this run
    assert not looked and len(save._names) == 1


@pytest.mark.parametrize("which", [0, 1, 3])
def test_monais_own_writer_understands_the_metadata(films, tmp_path, which):
    film = LoadImageFilm()(films[which])
    SaveImage(tmp_path, output_postfix="copy", separate_folder=False, resample=False, print_log=False)(film)
    (written,) = tmp_path.glob("*_copy.nii.gz")
    copy = nibabel.load(written)
    np.testing.assert_array_equal(copy.get_fdata(), FILM)
    np.testing.assert_allclose(copy.affine, film.meta["affine"], rtol=1e-6)
    if which == 1:
        return  # the affine of this one was not chosen, and the copy says that it was
    again = LoadImageFilm()(written)  # its affine says that its first axis is the rows
    np.testing.assert_array_equal(again[0].numpy(), FILM)
    np.testing.assert_allclose(again.meta["affine"], film.meta["affine"], rtol=1e-6)
