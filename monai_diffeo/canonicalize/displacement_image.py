"""A displacement in millimetres, as SimpleITK and the programs built on ITK read it."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.utils import MetaKeys, SpaceKeys
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.files import write_atomically

__all__ = ["displacement_image", "save_displacement"]

_TRANSFORMS = (".h5", ".tfm")


def displacement_image(ddf: Tensor, inverse_ddf: Tensor, index: int = 0, inverse: bool = False, like: Any = None) -> Any:
    """The displacement of one image as a SimpleITK image of vectors, float64, in physical units along ITK's axes (LPS).

    ``sitk.Resample(input, field, sitk.DisplacementFieldTransform(field))`` gives the canonical image; that call empties
    ``field``, so hand it ``sitk.Image(field)``. Where the canonical image has another frame, both have one centre.

    Args:
        ddf, inverse_ddf: shape ``(B, D, *S)``, voxels; each on the frame that it lives on.
        index: which image of the batch.
        inverse: the way back, on the frame of the input.
        like: the input as ``MetaTensor``, or its affine, voxels to RAS, ``(D + 1, D + 1)`` or ``(4, 4)``; None: 1 mm voxels.

    Raises:
        ImportError: without SimpleITK.
        IndexError: if there is no such image.
        ShapeError: if the affine has another shape, or none for the axes of the image.
    """
    sitk = _simpleitk("to_displacement_image()")
    field = inverse_ddf if inverse else ddf
    if not -len(field) <= index < len(field):
        raise IndexError(f"to_displacement_image(): 'index' must be one of {len(field)} images, got {index}. The first is 0.")
    dims, given = field.shape[1], like.affine if isinstance(like, MetaTensor) else like
    affine = np.eye(dims + 1) if given is None else np.asarray(given, dtype=np.float64)
    if affine.shape not in {(dims + 1, dims + 1), (4, 4)}:
        remedy = "Give the image as a MetaTensor, or its affine."
        raise ShapeError("to_displacement_image()", "like", f"({dims + 1}, {dims + 1}) or (4, 4)", affine.shape, remedy)
    affine = to_affine_nd(dims, affine)
    if given is not None and not (isinstance(like, MetaTensor) and like.meta.get(MetaKeys.SPACE) == SpaceKeys.LPS):
        affine = np.diag([-1.0, -1.0, *[1.0] * (dims - 1)]) @ affine
    matrix = affine[:dims, :dims]
    if abs(np.linalg.det(matrix)) < 1e-12:
        remedy = "The affine of a slice must lie in its plane."
        raise ShapeError("to_displacement_image()", "like", "of an affine that can be inverted", affine.shape, remedy)
    vectors = np.tensordot(field[index].detach().double().cpu().numpy(), matrix, (0, 1))  # (*S, D)
    image = sitk.GetImageFromArray(vectors.transpose(*reversed(range(dims)), dims), isVector=True)
    spacing = np.linalg.norm(matrix, axis=0)
    own, of_input = ((np.array(f.shape[2:]) - 1) / 2 for f in (field, inverse_ddf))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix / spacing).flatten().tolist())
    image.SetOrigin((matrix @ (of_input - own) + affine[:dims, dims]).tolist())
    return image


def save_displacement(field: Any, path: str | os.PathLike[str], volume: bool = False) -> Path:
    """Write a displacement image of :func:`displacement_image` for programs built on ITK; the file appears whole or not at all.

    ``.nii.gz`` holds the vectors (NIfTI intent 1007, along ITK's axes), ``.h5`` and ``.tfm`` hold ITK's transform, which
    ``sitk.ReadTransform`` reads.

    Args:
        field: the image; it is left as it is.
        path: the suffix says what is written.
        volume: write the field of a film as that of one slice at z = 0, for 3D Slicer and for films that ITK reads from DICOM.
            A NIfTI file of one slice is read as 2D, so it needs a transform.

    Raises:
        ImportError: without SimpleITK.
        ValueError: for another suffix, or a volume as NIfTI or of 3D vectors.
        OutputError: if it cannot be written.
    """
    sitk, path = _simpleitk("save_displacement()"), Path(path)
    suffix = next((suffix for suffix in (".nii.gz", *_TRANSFORMS) if path.name.endswith(suffix)), None)
    if suffix is None or (volume and (suffix not in _TRANSFORMS or field.GetDimension() != 2)):
        expected = ".h5 or .tfm, and a field of 2D" if volume else ".nii.gz, .h5 or .tfm"
        came = f"{path.name!r} and {field.GetDimension()}D"
        raise ValueError(f"save_displacement(): expected a name that ends in {expected}, got {came}. Name the file so.")
    if volume:
        parts = [sitk.JoinSeries(sitk.VectorIndexSelectionCast(field, axis)) for axis in (0, 1)]
        field = sitk.Compose(*parts, parts[0] * 0)
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"field{suffix}"
        if suffix in _TRANSFORMS:
            sitk.WriteTransform(sitk.DisplacementFieldTransform(sitk.Image(field)), str(file))
        else:
            sitk.WriteImage(field, str(file))
        return write_atomically(path, file.read_bytes())


def _simpleitk(who: str) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise ImportError(f"{who}: needs SimpleITK. Install it: pip install 'monai-diffeo[itk]'.") from error
    return SimpleITK
