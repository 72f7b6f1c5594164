"""A displacement in millimetres, as SimpleITK and the programs built on ITK read it."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.utils import MetaKeys, SpaceKeys
from torch import Tensor

from monai_diffeo.errors import ShapeError

__all__ = ["displacement_image"]


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
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise ImportError("to_displacement_image(): needs SimpleITK. Install it: pip install 'monai-diffeo[itk]'.") from error
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
