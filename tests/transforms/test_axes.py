"""Films of any loader become rows x columns, and their masks go back to the loader's array."""

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImage, Resized
from PIL import Image

from monai_diffeo.errors import ShapeError
from monai_diffeo.transforms import EnsureRowsFirst, EnsureRowsFirstd, LoadImageFilm, RestoreAxesd
from monai_diffeo.transforms import axes as room

ENSURE, RESTORE = EnsureRowsFirst(), RestoreAxesd("pred")


@pytest.fixture
def path(tmp_path):
    rows, columns = np.mgrid[:60, :40]
    Image.fromarray((rows * 3 + 40 * (columns > 25)).astype(np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def deploy(film):
    """As MONAI Deploy gives a film: width, height, depth; the affine is made up."""
    affine = torch.tensor([[0.2, 0, 0, 7], [0, 0.3, 0, -4], [0, 0, 1, 0], [0, 0, 0, 1.0]]).double()
    meta = {"row_pixel_spacing": 0.3, "original_channel_dim": "no_channel", "original_affine": affine.numpy()}
    return MetaTensor(film[0].T[..., None], affine=affine, meta=meta)


def test_our_own_film_stays_the_object_that_it_is(path):
    film = LoadImageFilm()(path)
    assert ENSURE(film) is film
    data = {"pred": film}
    assert RESTORE(data)["pred"] is film


@pytest.mark.parametrize("kind", ["channel first", "no channel", "deploy"])
def test_a_film_of_another_loader_and_back(path, kind):
    film = LoadImageFilm()(path)
    loaded = (
        deploy(film.as_tensor()) if kind == "deploy" else LoadImage(image_only=True, ensure_channel_first=kind[0] == "c")(path)
    )
    found = ENSURE(loaded)
    assert torch.equal(found.as_tensor(), film.as_tensor())
    back = RESTORE({"pred": torch.cat([found, 2 * found])})["pred"]
    spatial = loaded.shape[1:] if kind == "channel first" else loaded.shape
    assert back.shape == (2, *spatial) and torch.equal(back[1].as_tensor().flatten(), 2 * loaded.as_tensor().flatten())
    assert torch.equal(back.affine, loaded.affine) and not {"film_axes", "film_loaded_shape"} & set(back.meta)


def test_affines_map_each_pixel_to_the_same_point(path):
    loaded = deploy(LoadImageFilm()(path).as_tensor())
    x, y = 11.0, 50.0
    there, here = torch.tensor([x, y, 0, 1]).double(), torch.tensor([y, x, 0, 1]).double()
    torch.testing.assert_close(ENSURE(loaded).affine @ here, loaded.affine @ there)


def test_it_inverts_behind_invertd(path):
    before = Compose([EnsureRowsFirstd("image"), Resized("image", (30, 20))])
    after = Compose([Invertd("pred", before, orig_keys="image", nearest_interp=False), RESTORE])
    loaded = LoadImage(image_only=True)(path)
    data = before({"image": loaded})
    assert data["image"].shape == (1, 30, 20)
    answer = after({**data, "pred": data["image"].clone()})["pred"]
    assert answer.shape == (1, *loaded.shape) and (answer[0] - loaded).abs().mean() < 3


def test_an_array_that_says_nothing_is_taken_as_rows_by_columns_and_that_is_said(caplog):
    with caplog.at_level(logging.WARNING, logger="monai_diffeo"):
        found = ENSURE(torch.rand(60, 40).numpy())
    assert found.shape == (1, 60, 40) and "rows x columns" in caplog.text
    assert RESTORE({"pred": found})["pred"].shape == (1, 60, 40)


def test_a_volume_is_refused():
    with pytest.raises(ShapeError, match="one slice"):
        ENSURE(torch.rand(1, 8, 9, 10))


def test_names():
    assert room.EnsureRowsFirstD is room.EnsureRowsFirstDict is EnsureRowsFirstd
    assert room.RestoreAxesD is room.RestoreAxesDict is RestoreAxesd
    with pytest.raises(KeyError):
        EnsureRowsFirstd("image")({})
    assert EnsureRowsFirstd("image", allow_missing_keys=True)({}) == {}
