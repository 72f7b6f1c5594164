import pytest
import torch
from torch.testing import assert_close

from monai_diffeo.augmentation.deformations import random_elastic, random_svf, tps_protocol
from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import compose, exp, folding_fraction, inverse, inverse_error, invert
from tests.flow.flows import AFFINE, Affine, Translation, interior


def flow(seed, spatial_size=(64, 64), voxels=5.0):
    return exp(random_svf(1, spatial_size, torch.Generator().manual_seed(seed), amplitude=voxels / min(spatial_size)))


@pytest.mark.parametrize("spatial_size", [(33, 48), (12, 15, 14)])
def test_the_identity_is_neutral(spatial_size):
    a = flow(0, spatial_size, 2.0)
    zero = torch.zeros_like(a)
    assert_close(compose(a, zero), a, atol=1e-5, rtol=0)
    assert_close(compose(zero, a), a, atol=0, rtol=0)


def test_composition_is_associative():
    a, b, c = (flow(seed) for seed in range(3))
    left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    assert_close(left, right, atol=0.15, rtol=0)  # voxels for 5; interpolation of the left inner product
    assert (compose(a, b) - compose(b, a)).abs().max() > 1  # and not commutative


def test_affine_maps_compose_as_their_matrices_do():
    a = Affine(((0.1, -0.05), (0.08, -0.06)), (64, 64))
    product = Affine(((0.2, -0.1), (0.16, -0.12)), (64, 64))  # expm(A) expm(A) = expm(2 A)
    assert_close(interior(compose(a.ddf_exact, a.ddf_exact), 10), interior(product.ddf_exact, 10), atol=1e-9, rtol=0)


def test_the_outer_map_comes_first_in_the_arguments():
    shift = Translation((3.0, -2.0), (40, 40)).ddf_exact
    turn = Affine(((0.0, -0.2), (0.2, 0.0)), (40, 40)).ddf_exact
    assert_close(compose(shift, turn), turn + shift)  # shift after turn


def test_composition_in_half_precision_is_a_field_in_single_precision():
    a, b = flow(0), flow(1)
    product = compose(a.half(), b.half())
    assert product.dtype == torch.float32
    assert_close(product, compose(a, b), atol=0.02, rtol=0)


def test_inverse_is_exp_of_minus_v():
    v = random_svf(1, (32, 32), torch.Generator().manual_seed(0))
    assert_close(inverse(v, 5), exp(-v, 5), atol=0, rtol=0)


def test_invert_finds_the_inverse_of_an_affine_map():
    back = Affine(tuple(tuple(-x for x in row) for row in AFFINE.matrix), AFFINE.spatial_size)
    found = invert(AFFINE.ddf_exact)
    assert_close(interior(found, 24), interior(back.ddf_exact, 24), atol=1e-3, rtol=0)
    assert_close(interior(invert(AFFINE.ddf_exact.float()), 24), interior(back.ddf_exact.float(), 24), atol=1e-3, rtol=0)


def test_invert_finds_the_inverse_of_a_translation_and_of_nothing():
    ddf = Translation((2.5, -1.5, 0.5), (8, 9, 10)).ddf_exact
    assert_close(invert(ddf), -ddf, atol=1e-4, rtol=0)
    assert invert(torch.zeros(1, 2, 8, 8)).abs().max() <= 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_invert_inverts_thin_plate_splines_where_they_see_the_frame(seed):
    ddf = tps_protocol(4, (96, 96), torch.Generator().manual_seed(seed), fold_free=True)
    found = invert(ddf)
    axes = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    where = torch.stack(axes) + found
    seen = ((where >= 1) & (where <= 94)).all(1)  # elsewhere the map asks for what lies outside
    assert seen.float().mean() > 0.6
    error = inverse_error(ddf, found)
    assert error[seen].max() <= 1e-3  # voxels; measured 1e-5
    assert error[seen].max() < inverse_error(ddf, -ddf)[seen].max() / 1000


def test_invert_beats_minus_the_displacement_voxel_by_voxel():
    ddf = random_elastic(3, (64, 64), torch.Generator().manual_seed(0), amplitude=0.12)
    assert (folding_fraction(ddf) > 0).any()  # not even a diffeomorphism
    assert (inverse_error(ddf, invert(ddf)) <= inverse_error(ddf, -ddf) + 1e-4).all()


def test_invert_works_in_3d():
    ddf = flow(0, (20, 24, 22), 2.0)
    assert inverse_error(ddf, invert(ddf)).max() <= 1e-3


def test_invert_agrees_with_the_flow_of_minus_v():
    v = random_svf(1, (96, 96), torch.Generator().manual_seed(0), amplitude=8 / 96)
    assert_close(invert(exp(v, 10)), exp(-v, 10), atol=0.1, rtol=0)


def test_a_batch_gives_what_its_fields_give_one_by_one():
    ddf = tps_protocol(3, (48, 48), torch.Generator().manual_seed(0), fold_free=True)
    together = invert(ddf)
    for i in range(3):
        assert_close(together[i : i + 1], invert(ddf[i : i + 1]), atol=1e-3, rtol=0)


def test_the_inverse_error_of_translations_is_their_sum():
    a, b = (Translation(shift, (10, 12)).ddf_exact for shift in ((3.0, 0.0), (0.0, -4.0)))
    error = inverse_error(a, b)
    assert error.shape == (1, 10, 12)
    assert_close(error, torch.full_like(error, 5))
    assert inverse_error(a, b, interior=3).shape == (1, 4, 6)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match="'b'") as caught:
        compose(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 9))
    assert caught.value.actual == (1, 2, 8, 9)
    with pytest.raises(ShapeError, match="'a'"):
        compose(torch.zeros(2, 8, 8), torch.zeros(2, 8, 8))
    with pytest.raises(ShapeError, match="'ddf'"):
        invert(torch.zeros(2, 8, 8))
