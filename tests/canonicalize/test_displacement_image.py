"""SimpleITK resamples an image along the displacement image to what the canonicaliser gave."""

import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.utils import SpaceKeys

from monai_diffeo.canonicalize.displacement_image import displacement_image, save_displacement
from monai_diffeo.errors import ShapeError
from tests.helpers import tiny_canonicalizer

sitk = pytest.importorskip("SimpleITK")


def oblique(dims, seed=0):
    """An affine with anisotropic voxels on turned axes and an origin."""
    draw = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(draw.normal(size=(dims, dims)))
    affine = np.eye(dims + 1)
    affine[:dims, :dims] = rotation * np.array([0.7, 1.9, 1.2][:dims])
    affine[:dims, dims] = draw.uniform(-50, 50, dims)
    return affine


def as_itk(image, affine):
    """``(*S)`` with its affine, voxels to LPS, in SimpleITK."""
    dims = image.ndim
    spacing = np.linalg.norm(affine[:dims, :dims], axis=0)
    out = sitk.GetImageFromArray(image.numpy().transpose())
    out.SetSpacing(spacing.tolist())
    out.SetDirection((affine[:dims, :dims] / spacing).flatten().tolist())
    out.SetOrigin(affine[:dims, dims].tolist())
    return out


def smooth(size):
    grid = torch.meshgrid(*[torch.linspace(0, 6, n) for n in size], indexing="ij")
    return sum(torch.sin(axis + k) for k, axis in enumerate(grid))[None, None]


@pytest.mark.parametrize("size", [(40, 56), (18, 24, 30)])
@pytest.mark.parametrize("space", [SpaceKeys.RAS, SpaceKeys.LPS])
def test_simpleitk_resamples_the_input_to_the_canonical_image_and_back(size, space):
    dims, affine = len(size), oblique(len(size))
    image = MetaTensor(smooth(size), affine=torch.from_numpy(affine), meta={"space": space})
    found = tiny_canonicalizer(dims)(image)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0][:dims] + [1.0]) @ affine if space == SpaceKeys.RAS else affine
    inside = (slice(5, -5),) * dims
    for inverse, before, after in (
        (False, image[0, 0], found.image[0, 0]),
        (True, found.image[0, 0], found.warp_back(found.image)[0, 0]),
    ):
        field = found.to_displacement_image(inverse=inverse, like=image)
        assert field.GetNumberOfComponentsPerPixel() == dims and field.GetSize() == size
        given, reference = as_itk(torch.as_tensor(before.numpy()), lps), sitk.Image(field)
        moved = sitk.Resample(given, reference, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0)
        difference = np.abs(sitk.GetArrayFromImage(moved).transpose() - after.numpy())[inside]
        assert difference.max() < 2e-3
        assert np.abs(before.numpy() - after.numpy())[inside].max() > 0.1


def test_an_affine_alone_will_do_and_without_one_voxels_are_millimetres():
    found = tiny_canonicalizer(2)(torch.cat([torch.ones(1, 1, 24, 32), smooth((24, 32))]))
    plain = found.to_displacement_image(1)
    assert plain.GetSpacing() == (1.0, 1.0) and plain.GetDirection() == (1.0, 0.0, 0.0, 1.0) and plain.GetOrigin() == (0.0, 0.0)
    vectors = sitk.GetArrayFromImage(plain).transpose(2, 1, 0)
    assert vectors.dtype == np.float64 and np.abs(vectors - found.ddf[1].numpy()).max() < 1e-6
    affine = oblique(2)
    four = np.eye(4)
    four[:2, :2], four[:2, 3] = affine[:2, :2], affine[:2, 2]
    pair = [found.to_displacement_image(like=a) for a in (torch.from_numpy(affine), four)]
    assert pair[0].GetDirection() == pair[1].GetDirection() and pair[0].GetOrigin() == pair[1].GetOrigin()
    assert np.array_equal(*map(sitk.GetArrayFromImage, pair))


def test_a_canonical_image_on_another_frame_has_the_centre_of_the_input():
    """A quarter turn of an oblong frame: the canonical image shows at ``x`` what the input has at ``R x``, from the centres."""
    size, affine = (20, 36), oblique(2)
    image = smooth(size)
    turned = torch.rot90(image, 1, (2, 3))
    centred = [
        torch.stack(torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in s], indexing="ij")) for s in (size, (36, 20))
    ]
    ddf = torch.stack([centred[1][1], -centred[1][0]])[None] - centred[1]
    inverse_ddf = torch.stack([-centred[0][1], centred[0][0]])[None] - centred[0]
    field = displacement_image(ddf, inverse_ddf, like=affine)
    given = as_itk(image[0, 0], np.diag([-1.0, -1.0, 1.0]) @ affine)
    moved = sitk.Resample(given, sitk.Image(field), sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0)
    inside = (slice(1, -1),) * 2
    assert np.abs(sitk.GetArrayFromImage(moved).transpose() - turned[0, 0].numpy())[inside].max() < 1e-5
    back = displacement_image(ddf, inverse_ddf, inverse=True, like=affine)
    assert np.allclose(back.GetOrigin(), given.GetOrigin()) and back.GetSize() == size


def test_what_cannot_be_is_refused_and_the_extra_is_named(monkeypatch):
    found = tiny_canonicalizer(2)(smooth((24, 32)))
    with pytest.raises(IndexError, match="'index' must be one of 1 images, got 1"):
        found.to_displacement_image(1)
    with pytest.raises(ShapeError, match=r"'like' must have shape \(3, 3\) or \(4, 4\), got \(2, 2\)"):
        found.to_displacement_image(like=np.eye(2))
    upright = np.eye(4)[[2, 0, 1, 3]]  # columns of the slice along the third axis of the world
    with pytest.raises(ShapeError, match="that can be inverted"):
        found.to_displacement_image(like=upright @ np.diag([1.0, 0.0, 1.0, 1.0]))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ImportError, match=r"needs SimpleITK.*pip install 'monai-diffeo\[itk\]'"):
        found.to_displacement_image()


def test_simpleitk_moves_a_dicom_film_along_each_file_to_our_canonical_film(tmp_path):
    """Read by SimpleITK alone: film and field. The film's pixels are 0.4 x 0.7 mm."""
    pytest.importorskip("pydicom")
    from monai_diffeo.transforms import LoadImageFilm
    from tests.radiograph.dicom_factory import corner_film, save

    path = save(tmp_path / "a.dcm", corner_film(60, 80), ImagerPixelSpacing=[0.4, 0.7])
    film = LoadImageFilm()(path)
    found = tiny_canonicalizer(2)(film[None])
    field, expected = found.to_displacement_image(like=film), found.image[0, 0].numpy()
    names = {name: "volume" in name for name in ("a.nii.gz", "b.h5", "c.tfm", "volume.h5", "volume.tfm")}
    for name, volume in names.items():
        assert save_displacement(field, tmp_path / "out" / name, volume) == tmp_path / "out" / name
    as_read = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat64)
    for name, volume in names.items():
        given, file = as_read if volume else as_read[:, :, 0], str(tmp_path / "out" / name)
        if name == "a.nii.gz":
            transform = sitk.DisplacementFieldTransform(sitk.ReadImage(file, sitk.sitkVectorFloat64))
        else:
            transform = sitk.ReadTransform(file)
        moved, inside = (
            sitk.GetArrayFromImage(sitk.Resample(image, given, transform, sitk.sitkLinear, 0.0)).reshape(60, 80)
            for image in (given, given * 0 + 1)
        )
        difference = np.abs(moved - expected)[inside > 1 - 1e-6]
        assert (inside > 1 - 1e-6).mean() > 0.8 and difference.max() <= 1e-3 * np.ptp(expected), name
        assert np.abs(film[0].numpy() - expected).max() > 0.1 * np.ptp(expected)


def test_a_nifti_file_has_the_intent_of_vectors(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    found = tiny_canonicalizer(2)(smooth((24, 32)))
    field = found.to_displacement_image(like=oblique(2))
    header = nibabel.load(save_displacement(field, tmp_path / "a.nii.gz")).header
    assert int(header["intent_code"]) == 1007 and header.get_data_shape() == (24, 32, 1, 1, 2)
    assert field.GetSize() == (24, 32) and field.GetNumberOfComponentsPerPixel() == 2  # left as it is


@pytest.mark.parametrize("name, volume, dims", [("a.nii", False, 2), ("a.nii.gz", True, 2), ("a.h5", True, 3)])
def test_other_files_are_refused(tmp_path, name, volume, dims):
    field = tiny_canonicalizer(dims)(smooth((12, 16, 10)[:dims])).to_displacement_image()
    with pytest.raises(ValueError, match="expected a name that ends in .*, got"):
        save_displacement(field, tmp_path / name, volume)
    assert not list(tmp_path.iterdir())
