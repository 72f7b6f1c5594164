"""MONAI transforms: read films, scale and deform them, canonicalise and invert it, write masks."""

from monai_diffeo.transforms.axes import (
    EnsureRowsFirst,
    EnsureRowsFirstD,
    EnsureRowsFirstd,
    EnsureRowsFirstDict,
    RestoreAxesD,
    RestoreAxesd,
    RestoreAxesDict,
)
from monai_diffeo.transforms.dicom import SaveImageFilmDicomSegD, SaveImageFilmDicomSegd, SaveImageFilmDicomSegDict
from monai_diffeo.transforms.intensity import (
    ScaleFilmIntensity,
    ScaleFilmIntensityD,
    ScaleFilmIntensityd,
    ScaleFilmIntensityDict,
)
from monai_diffeo.transforms.io import (
    LoadImageFilm,
    LoadImageFilmD,
    LoadImageFilmd,
    LoadImageFilmDict,
    SaveFilmMaskD,
    SaveFilmMaskd,
    SaveFilmMaskDict,
    SaveImageFilmMaskD,
    SaveImageFilmMaskd,
    SaveImageFilmMaskDict,
)
from monai_diffeo.transforms.resize import ResizeFilmD, ResizeFilmd, ResizeFilmDict
from monai_diffeo.transforms.shapes import (
    KeepLargestPartsD,
    KeepLargestPartsd,
    KeepLargestPartsDict,
    SeparateLungsD,
    SeparateLungsd,
    SeparateLungsDict,
    ShapesToMaskD,
    ShapesToMaskd,
    ShapesToMaskDict,
)
from monai_diffeo.transforms.spatial import (
    Canonicalize,
    CanonicalizeD,
    Canonicalized,
    CanonicalizeDict,
    RandDiffeomorphism,
    RandDiffeomorphismD,
    RandDiffeomorphismd,
    RandDiffeomorphismDict,
)

__all__ = ["Canonicalize", "CanonicalizeD", "CanonicalizeDict", "Canonicalized", "LoadImageFilm", "LoadImageFilmD"]
__all__ += ["LoadImageFilmDict", "LoadImageFilmd", "RandDiffeomorphism", "RandDiffeomorphismD"]
__all__ += ["RandDiffeomorphismDict", "RandDiffeomorphismd", "SaveFilmMaskD", "SaveFilmMaskDict", "SaveFilmMaskd"]
__all__ += ["ScaleFilmIntensity", "ScaleFilmIntensityD", "ScaleFilmIntensityDict", "ScaleFilmIntensityd"]
__all__ += ["EnsureRowsFirst", "EnsureRowsFirstD", "EnsureRowsFirstDict", "EnsureRowsFirstd", "RestoreAxesD"]
__all__ += ["RestoreAxesDict", "RestoreAxesd", "SaveImageFilmMaskD", "SaveImageFilmMaskDict", "SaveImageFilmMaskd"]
__all__ += ["SeparateLungsD", "SeparateLungsDict", "SeparateLungsd", "ShapesToMaskD", "ShapesToMaskDict"]
__all__ += ["ShapesToMaskd", "SaveImageFilmDicomSegD", "SaveImageFilmDicomSegDict", "SaveImageFilmDicomSegd"]
__all__ += ["KeepLargestPartsD", "KeepLargestPartsDict", "KeepLargestPartsd", "ResizeFilmD", "ResizeFilmDict", "ResizeFilmd"]
