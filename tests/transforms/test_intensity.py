"""Grey scales of films with borders and markers: that of the film alone, and MONAI's where all is film."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Affine, Compose, ScaleIntensityRangePercentiles
from torch.testing import assert_close

from monai_diffeo.transforms import ResizeFilmd, ScaleFilmIntensity, ScaleFilmIntensityd, intensity
from monai_diffeo.transforms.intensity import inverted_film

MONAI = ScaleIntensityRangePercentiles(0.5, 99.5, 0.0, 1.0, clip=True)
SCALE = ScaleFilmIntensity()


def film(rows=180, columns=150, low=300.0, high=3600.0, seed=0):
    """Smooth grey values over the whole range with a little noise, as of a detector; ``(1, H, W)``, whole numbers."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 12, 10, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (rows, columns), mode="bicubic")[0]
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return (low + smooth * (high - low) + 12 * torch.rand(1, rows, columns, generator=draw)).round()


def framed(image, left=0, right=0, top=0, bottom=0, value=0.0):
    return torch.nn.functional.pad(image, (left, right, top, bottom), value=value)


@pytest.mark.parametrize("rows, columns", [(180, 150), (16, 40), (900, 700), (3, 3), (2, 5), (1100, 1000)])
@pytest.mark.parametrize("low, high", [(300.0, 3600.0), (0.0, 255.0), (-0.5, 0.25)])
def test_an_ordinary_film_is_scaled_as_by_monai_bit_for_bit(rows, columns, low, high):
    image = film(rows, columns) * (high - low) / 3300 + low
    assert torch.equal(SCALE(image), MONAI(image)) and SCALE.scaled(image)[1] == ""


@pytest.mark.parametrize(
    "widths", [(20, 20, 20, 20), (4, 4, 4, 4), (60, 0, 0, 0), (0, 3, 30, 9), (0, 0, 0, 50), (70, 70, 80, 80)]
)
@pytest.mark.parametrize("value", [4095.0, 65535.0, 2000.0, -6000.0])
@pytest.mark.parametrize("noise", [0, 1])
def test_a_film_in_a_border_is_scaled_as_the_film_alone_and_the_border_is_black(widths, value, noise):
    image = film()
    whole = framed(image, *widths, value=value)
    inside = framed(torch.ones_like(image), *widths) > 0
    whole += noise * torch.randint(-1, 2, whole.shape, generator=torch.Generator().manual_seed(1)) * ~inside
    scaled, note = SCALE.scaled(whole)
    assert scaled[~inside].max() == 0
    left, right, top, bottom = widths
    inner = scaled[:, top : top + 180, left : left + 150][:, 2:-2, 2:-2]  # a rim of the border's width on the lattice is black
    close = (inner - MONAI(image)[:, 2:-2, 2:-2]).abs() <= 0.03
    assert close.all() or (value == 2000.0 and close.float().mean() > 0.95)  # film of the border's value beside it goes with it
    share = (~inside).float().mean().item()
    assert value == 2000.0 or note == f"a border of {share:.0%} of the film was left out of the grey scale"


def test_a_resized_negative_inverted_is_the_resized_film():
    whole, resize = film(900, 700), ResizeFilmd("film", (128, 128))
    given, right = (resize({"film": SCALE(MetaTensor(image))})["film"] for image in (4000 - whole, whole))
    assert_close(inverted_film(given[None]).as_tensor(), right[None].as_tensor(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("widths", [(20, 20, 20, 20), (60, 0, 0, 0), (0, 0, 0, 50)])
def test_a_negative_inverted_is_the_film_that_it_was_made_of_with_black_air_beside_it(widths):
    """In a negative the air is light: a border, which the grey scale blackens. Inverted, it must not become light again."""
    whole = framed(film(), *widths, value=300.0)
    outside = framed(torch.ones(1, 180, 150), *widths) == 0
    given = SCALE(MetaTensor(4000 - whole))
    assert given[outside].max() == 0 and "border" in given.meta["film_notes"]
    given.meta["film_light"] = torch.as_tensor(given.meta["film_light"])[None]  # as a DataLoader gives it
    inverted, (left, _, top, _) = inverted_film(given[None])[0], widths
    inner = inverted[:, top : top + 180, left : left + 150]
    far = torch.nn.functional.max_pool2d((~outside).float(), 7, 1, 3) == 0
    assert inverted[far].max() == 0
    assert_close(inner[:, 3:-3, 3:-3].as_tensor(), MONAI(film())[:, 3:-3, 3:-3], atol=0.03, rtol=0)
    assert torch.equal(inverted_film(torch.as_tensor(given)[None].as_tensor()), 1 - given[None].as_tensor())  # nothing is known


def test_a_border_of_eight_bits_may_vary_by_one_level_however_flat_the_film():
    image = film(low=100.0, high=140.0) + 0.0  # the spread of its middle is less than 30 levels
    whole = framed(image, 20, 20, 20, 20, value=254.0)
    inside = framed(torch.ones_like(image), 20, 20, 20, 20) > 0
    whole += torch.randint(-1, 2, whole.shape, generator=torch.Generator().manual_seed(1)) * ~inside
    assert SCALE(whole)[~inside].max() == 0


def test_a_white_border_may_vary_by_a_few_levels():
    whole = framed(film(), 20, 20, 20, 20, value=4080.0)
    inside = framed(torch.ones(1, 180, 150), 20, 20, 20, 20) > 0
    whole += torch.randint(-12, 13, whole.shape, generator=torch.Generator().manual_seed(1)) * ~inside
    assert SCALE(whole)[~inside].max() == 0


def test_sides_of_two_values_and_one_border_in_another_are_left_out():
    image = film()
    sides = framed(framed(image, left=20, value=4095.0), right=25, value=2500.0)
    nested = framed(framed(image, 9, 9, 9, 9, value=4095.0), 12, 12, 12, 12, value=-9000.0)
    for whole, inner in ((sides, np.s_[:, 2:-2, 22:-27]), (nested, np.s_[:, 23:-23, 23:-23])):
        assert ((SCALE(whole)[inner] - MONAI(image)[:, 2:-2, 2:-2]).abs() <= 0.03).float().mean() > 0.98


@pytest.mark.parametrize("value", [4095.0, 65535.0, -9000.0])
def test_a_soft_edge_goes_with_its_border(value):
    image = film()
    weight = torch.ones(210).index_fill(0, torch.arange(15), 0.0)
    weight[15:25] = torch.linspace(0, 1, 11)[:-1]  # ten rows from the border to the film
    whole = torch.nn.functional.pad(image[None], (0, 0, 30, 0), mode="replicate")[0]
    scaled = SCALE(whole * weight[:, None] + value * (1 - weight[:, None]))
    assert scaled[:, :15].max() == 0 and scaled[:, :21].max() < 0.9
    assert_close(scaled[:, 35:], MONAI(image)[:, 5:], atol=0.03, rtol=0)
    assert (SCALE(framed(image, top=30, value=value))[:, 32:] > 0).float().mean() > 0.98  # a sharp edge keeps the film


@pytest.mark.parametrize("degrees", [5, -20, 40])
def test_the_corners_of_a_turned_film_are_black(degrees):
    image, angle = film(180, 180), np.deg2rad(degrees)
    turned = Affine(rotate_params=angle, padding_mode="zeros", image_only=True)(image - 4095.0) + 4095.0
    corners = Affine(rotate_params=angle, padding_mode="zeros", image_only=True)(torch.ones_like(image)) < 0.01
    scaled = SCALE(turned)
    assert corners.float().mean() > 0.03 and scaled[corners].max() == 0
    middle = np.s_[:, 60:120, 60:120]
    expected = ((turned - np.percentile(image, 0.5)) / np.subtract(*np.percentile(image, [99.5, 0.5]))).clip(0, 1)[middle]
    assert_close(scaled[middle].as_tensor(), expected.as_tensor(), atol=0.06, rtol=0)


@pytest.mark.parametrize("value, share", [(65535.0, 0.003), (65535.0, 0.01), (12000.0, 0.03), (-20000.0, 0.02)])
@pytest.mark.parametrize("border", [False, True])
def test_a_marker_does_not_move_the_grey_scale(value, share, border):
    image = film()
    side = round((share * image.numel()) ** 0.5)
    marked = image.clone()
    marked[:, 10 : 10 + side, 20 : 20 + side] = value
    whole = framed(marked, 20, 20, 20, 20, value=4095.0) if border else marked
    scaled, note = SCALE.scaled(whole)
    inner = scaled[:, 20:-20, 20:-20] if border else scaled
    away = np.s_[:, 60:-2, 2:-2]
    assert_close(inner[away], MONAI(image)[away], atol=0.03, rtol=0)
    assert (inner[:, 10 : 10 + side, 20 : 20 + side] == float(value > 0)).all()
    assert ("a border of" in note) == border and "extreme values of" in note


def test_shades_between_a_marker_and_the_film_are_few_and_left_out_with_it():
    image = film()
    marked = image.clone()
    marked[:, 20:50, 20:35] = 65535.0
    marked[:, 20:50, 19], marked[:, 20:50, 35] = torch.linspace(4000, 60000, 30), torch.linspace(5000, 61000, 30)  # resampled
    assert_close(SCALE(marked)[:, 60:], MONAI(image)[:, 60:], atol=0.03, rtol=0)


def test_the_gap_decides_whether_a_value_is_extreme():
    image = film()
    for value, left_out in ((3900.0, False), (5600.0, True), (-1000.0, False), (-4000.0, True)):
        marked = image.clone()
        marked[:, 10:30, 20:40] = value
        assert (SCALE.scaled(marked)[1] != "") == left_out == (not torch.equal(SCALE(marked), MONAI(marked))), value


@pytest.mark.parametrize("turns", range(4))
def test_letters_in_a_border_leave_the_rest_of_it_black(turns):
    whole = framed(film(150, 150), 20, 20, 20, 20, value=4095.0)
    whole[:, 175:185, [60, 90]] = 2000.0  # beside the film, so that what is between them is reached from one side alone
    whole = torch.rot90(whole, turns, (1, 2))
    scaled = torch.rot90(SCALE(whole), -turns, (1, 2))
    border = framed(torch.ones(1, 150, 150), 20, 20, 20, 20) == 0
    border[:, 174:186, 59:62] = border[:, 174:186, 89:92] = False
    assert scaled[border].max() == 0


def test_a_film_almost_as_white_as_the_border_beside_it_stays():
    image = film()
    image[:, -50:, 10:-10] = 4050.0  # the abdomen
    scaled = SCALE(framed(image, left=40, value=4095.0))
    assert scaled[:, :, :40].max() == 0 and scaled[:, -48:, 55:-15].min() == 1


def test_what_belongs_to_the_film_stays():
    image = film()
    patch, air, faded = image.clone(), image.clone(), image.clone()
    patch[:, -60:, 40:110] = 3700.0  # saturated, at the frame, but on no whole side
    air[:, :, :30] = 290.0  # as dark as the film's dark end
    faded[:, :40] += torch.linspace(3000, 0, 40)[:, None]  # lighter towards a side, no constant
    for whole in (patch, air, faded):
        assert torch.equal(SCALE(whole), MONAI(whole))


@pytest.mark.filterwarnings("ignore:Divide by zero")
def test_what_cannot_be_judged_is_scaled_as_by_monai():
    hole = torch.zeros(1, 60, 60)
    hole[:, 30, 30] = 1.0  # all border
    broken = film()
    broken[:, 5, 5] = torch.nan
    stamp = framed(film(30, 30), 50, 50, 50, 50, value=4095.0)  # less than the middle ninth
    for image in (
        stamp,
        torch.full((1, 40, 40), 7.0),
        hole,
        broken,
        film(180, 150).repeat(3, 1, 1),
        film()[None],
        film(15, 300),
        torch.full((1, 1100, 1000), 7.0),
        film(1100, 1000).index_fill(1, torch.tensor([5]), torch.nan),
        torch.where(film(1100, 1000) > 3590, 4000.0, 7.0),
    ):
        assert torch.equal(SCALE(image).nan_to_num(9.0), MONAI(image).nan_to_num(9.0))


@given(st.floats(0.01, 100), st.floats(-1e4, 1e4))
def test_units_of_the_grey_values_do_not_matter(factor, offset):
    whole = framed(film(64, 64), 8, 8, 8, 8, value=4095.0)
    assert_close(SCALE(whole.double() * factor + offset), SCALE(whole), atol=2e-3, rtol=0)


def test_a_large_film_is_judged_on_a_lattice():
    image = film(1500, 1210)
    scaled = SCALE(framed(image, 101, 97, 83, 0, value=4095.0))
    assert scaled[:, :83].max() == scaled[:, :, :101].max() == scaled[:, :, -97:].max() == 0
    assert_close(scaled[:, 95:-12, 113:-109], MONAI(image)[:, 12:-12, 12:-12], atol=0.03, rtol=0)


def test_arrays_stay_arrays_and_whole_numbers_are_scaled():
    whole = framed(film(), 20, 20, 20, 20, value=4095.0)
    array = SCALE(whole.numpy().astype(np.int32))
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    np.testing.assert_array_equal(array, SCALE(whole).numpy())


def test_the_note_joins_those_of_the_film_and_the_input_keeps_its_own():
    bordered = MetaTensor(framed(film(), 20, 20, 20, 20, value=4095.0), meta={"film_notes": "a window was not used", "age": 3})
    prepare = Compose([ScaleFilmIntensityd("image", film_key="film")])
    data = pickle.loads(pickle.dumps(prepare))({"image": bordered, "other": 1})
    note = "a window was not used; a border of 35% of the film was left out of the grey scale"
    assert data["image"].meta["film_notes"] == note and data["image"].meta["age"] == 3 and data["other"] == 1
    assert bordered.meta["film_notes"] == "a window was not used"
    assert prepare({"image": MetaTensor(film(), meta={"film_notes": ""})})["image"].meta["film_notes"] == ""
    assert ScaleFilmIntensityd(["image", "label"], allow_missing_keys=True)({"image": bordered})["image"].max() == 1


def test_the_film_that_is_kept_for_pictures_is_no_tensor_which_a_consumer_would_give_to_the_network():
    data = ScaleFilmIntensityd("image", film_key="film")({"image": MetaTensor(film())})
    assert [key for key, value in data.items() if isinstance(value, torch.Tensor)] == ["image"]
    np.testing.assert_array_equal(data["film"], film().numpy())


@given(st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_a_mask_grows_by_rows_and_columns(width, seed):
    mask = np.random.default_rng(seed).random((23, 17)) < 0.02
    near = [np.abs(np.arange(n)[:, None] - np.arange(n)) <= width for n in mask.shape]
    np.testing.assert_array_equal(intensity._grown(mask, width), near[0] @ mask @ near[1])


def test_names():
    assert intensity.ScaleFilmIntensityD is intensity.ScaleFilmIntensityDict is ScaleFilmIntensityd


@pytest.mark.parametrize(
    "values",
    [
        lambda draw: draw.normal(2000, 600, 1_500_000).clip(0, 4095).round(),
        lambda draw: np.r_[np.zeros(1_000_000), draw.random(400_000)],
        lambda draw: np.sort(draw.random(1_100_001)),
        lambda draw: -draw.exponential(size=1_200_003),
        lambda draw: np.tile(np.r_[0.0, np.ones(60)], 20_000),  # the sample sees nothing but 0
        lambda draw: np.c_[np.linspace(-2, -1, 20_000), draw.random((20_000, 60))].ravel(),  # it sees nothing but the smallest
    ],
)
def test_the_percentiles_of_many_values_are_those_of_numpy(values):
    values = values(np.random.default_rng(0)).astype(np.float32)
    np.testing.assert_allclose(intensity._ends(values), np.percentile(values, [0.5, 99.5]), rtol=1e-6)


def test_a_large_film_with_a_value_that_is_not_finite_is_scaled_as_monai_does():
    film = torch.rand(1, 1100, 1000, generator=torch.Generator().manual_seed(0))
    film[0, 500, 500] = torch.nan
    assert_close(ScaleFilmIntensity()(film), ScaleFilmIntensity().whole(film), equal_nan=True)
