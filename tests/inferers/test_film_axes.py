"""README's two lines on films as MONAI's LoadImage gives them, columns x rows."""

import logging
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, LoadImage, LoadImaged, Resized, ScaleIntensityd
from PIL import Image

from monai_diffeo.errors import ShapeError
from monai_diffeo.inferers import DiffeoInferer, PartsInPlace
from monai_diffeo.networks import ImageAtlas
from monai_diffeo.radiograph.axes import film_axes, from_rows_first, to_rows_first
from monai_diffeo.transforms import LoadImageFilm
from tests.helpers import tiny_canonicalizer
from tests.report.helpers import known_result

SIZE = 60, 40  # rows x columns


def picture():
    """A film without any symmetry."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows * 3 + 40 * (columns > 25) * (rows < 20)).astype(np.uint8)


@pytest.fixture(params=["png", "nii.gz", "turned.nii.gz"])
def file(request, tmp_path):
    path, array = tmp_path / f"a.{request.param}", picture()
    if request.param == "png":
        Image.fromarray(array).save(path)
    else:
        turned = request.param.startswith("turned")
        affine = np.array([[-0.2, 0, 0, 90], [0, 0.2, 0, -30], [0, 0, 1, 0], [0, 0, 0, 1.0]]) if turned else np.eye(4)
        image = nibabel.Nifti1Image(np.ascontiguousarray(array[::-1].T if turned else array.T, np.float32), affine)
        image.set_qform(affine, int(turned))
        image.set_sform(affine, int(turned))
        nibabel.save(image, path)
    return path


def loaded(path):
    return LoadImage(image_only=True, ensure_channel_first=True)(path)


def rows_first(**settings):
    return tiny_canonicalizer(rows_first=True, **settings)


def slanted(image):
    """A network that knows which axis is which."""
    weight = torch.linspace(1, 2, image.shape[-2]).view(-1, 1) * torch.linspace(1, 3, image.shape[-1])
    return image * weight.to(image) + image.roll(3, -2)


def test_the_axes_are_in_the_metadata(file):
    film, other = LoadImageFilm()(file), loaded(file)
    axes = film_axes(other)
    assert film_axes(film) == "" and axes in ("x,y", "x,-y") and (axes == "x,-y") == ("turned" in file.name)
    assert torch.equal(to_rows_first(other.as_tensor(), axes), film.as_tensor())
    assert torch.equal(from_rows_first(film.as_tensor(), axes), other.as_tensor())


def test_a_film_of_loadimage_has_the_answer_of_the_same_film_in_rows_and_columns(file):
    """All that the evaluated film gives, in the frame in which it came, with its own metadata."""
    film, other = LoadImageFilm()(file)[None], loaded(file)[None]
    inferer = DiffeoInferer(rows_first(), tta_samples=2)
    right, found = inferer.infer(film / 255, slanted, plain=True), inferer.infer(other / 255, slanted, plain=True)
    axes = film_axes(other)
    assert found.canonicalization.moved.all() and found.prediction.shape == other.shape
    assert torch.equal(to_rows_first(found.prediction.as_tensor(), axes), right.prediction.as_tensor())
    assert torch.equal(to_rows_first(found.plain.as_tensor(), axes), right.plain.as_tensor())
    assert "rows and columns were exchanged" in found.canonicalization.notes[0] + right.canonicalization.notes[0]
    assert "exchanged" not in right.canonicalization.notes[0]
    assert isinstance(found.prediction, MetaTensor) and "film_axes" not in found.prediction.meta
    assert torch.equal(found.prediction.affine, other.affine)


def test_parts_are_chosen_in_rows_and_columns(file):
    """The atlas knows which axis is which: the part in the upper half stays, though the other is larger."""
    place = torch.cat([torch.ones(1, 8, 16), torch.zeros(1, 8, 16)], 1)
    answer = torch.full((1, 1, *SIZE), -1.0)
    answer[..., 5:10, 5:10] = answer[..., 40:55, 20:35] = 1.0
    inferer = DiffeoInferer(rows_first(), parts=PartsInPlace(ImageAtlas((16, 16)).measure([place])))
    other = loaded(file)[None] / 255
    kept = to_rows_first(torch.as_tensor(inferer(other, lambda image: answer)), film_axes(other)) > 0
    assert kept[..., :20, :].any() and not kept[..., 30:, :].any()


def test_batches_of_a_dataloader_after_resizing(tmp_path):
    for name in "ab":
        Image.fromarray(picture()).save(tmp_path / f"{name}.png")
    steps = Compose([LoadImaged("image", ensure_channel_first=True), ScaleIntensityd("image"), Resized("image", (24, 36))])
    batch = next(iter(DataLoader(Dataset([{"image": str(tmp_path / f"{name}.png")} for name in "ab"], steps), batch_size=2)))
    found = DiffeoInferer(rows_first())(batch["image"], slanted)
    right = DiffeoInferer(rows_first())(batch["image"].as_tensor().transpose(2, 3), slanted)
    assert torch.equal(found.as_tensor(), right.transpose(2, 3))


def test_points_and_boxes_and_scores_come_back_to_the_frame_of_the_film(file):
    other = loaded(file)[None] / 255
    axes, size = film_axes(other), torch.tensor(SIZE) - 1
    point = torch.tensor([[[3.0, 7.5]]])  # row and column

    def network(image):
        low, high = point - 1, point + 1
        return {"seg": image, "points": point, "boxes": torch.cat([low, high], 2), "class": torch.tensor([[0.5, 1.0]])}

    left_alone = rows_first(skip_below=1e9)  # so that only the axes change
    inferer = DiffeoInferer(left_alone, outputs={"points": "points", "boxes": "boxes", "class": "scores"})
    found = inferer(other, network)
    row = size[0] - 3.0 if "-y" in axes else torch.tensor(3.0)
    assert torch.equal(found["points"], torch.stack([torch.tensor(7.5), row])[None, None])
    edge = row + 1 if "-y" in axes else row  # boxes count from the edge of the frame
    assert torch.equal(found["boxes"], torch.stack([torch.tensor(6.5), edge - 1, torch.tensor(8.5), edge + 1])[None, None])
    assert torch.equal(found["class"], torch.tensor([[0.5, 1.0]])) and found["seg"].shape == other.shape


def test_who_turned_the_film_himself_or_gives_a_plain_tensor_is_left_alone(tmp_path):
    from monai.transforms import Flip, Rotate90, Transpose

    Image.fromarray(picture()).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", picture())
    other = loaded(tmp_path / "a.png")
    for image in (
        other.as_tensor(),
        Transpose((0, 2, 1))(other),
        Rotate90()(other),
        Flip(0)(other),
        loaded(tmp_path / "a.npy"),
    ):
        assert film_axes(image) is None


def test_without_rows_first_and_switched_off_nothing_is_exchanged(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    other = loaded(tmp_path / "a.png")[None] / 255
    assert torch.equal(DiffeoInferer(rows_first(), enabled=False)(other, slanted), slanted(other))
    plain = DiffeoInferer(tiny_canonicalizer())
    assert torch.equal(plain(other, slanted).as_tensor(), plain(other.as_tensor(), slanted))


def test_films_of_one_batch_with_different_axes_are_refused(tmp_path):
    images = [loaded(write(tmp_path / name)) for name in ("a.png", "b.png")]
    batch = MetaTensor(torch.stack([image.as_tensor() for image in images]))
    batch.is_batch = True
    batch.affine = torch.stack([images[0].affine, images[1].affine])
    names = [str(tmp_path / "a.png"), str(tmp_path / "b.npy")]
    batch.meta = {"filename_or_obj": names, "spatial_shape": torch.tensor([[40, 60]] * 2), "affine": batch.affine}
    batch.applied_operations = [[], []]
    with pytest.raises(ShapeError, match="one by one"):
        DiffeoInferer(rows_first())(batch / 255, slanted)


def write(path):
    Image.fromarray(picture()).save(path)
    return path


def test_a_rotation_of_a_film_with_unknown_axes_is_a_warning(caplog):
    def canonicalizer(image):
        return replace(known_result(("canonicalized",), SIZE), notes=("rotation by 90 degrees corrected",))

    canonicalizer.rows_first = True
    inferer = DiffeoInferer(canonicalizer)
    with caplog.at_level(logging.WARNING, logger="monai_diffeo"):
        inferer(torch.rand(1, 1, *SIZE), slanted)
    assert "LoadImage" in caplog.text
