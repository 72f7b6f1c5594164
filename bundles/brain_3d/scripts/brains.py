"""Semi-synthetic brains: one real template, the MNI152, under random smooth maps, with random grey values and noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.augmentation import random_svf
from monai_diffeo.flow import affine_deformation, compose, exp, folding_fraction, warp

__all__ = [
    "AFFINE",
    "CLASSES",
    "SIZE",
    "SPACING",
    "brain_datalist",
    "brains",
    "deformations",
    "nilearn_volumes",
    "read_template",
    "write_template",
]

CLASSES = ("background", "cortex", "white matter", "central nuclei", "ventricles", "hindbrain")
SIZE, SPACING = (64, 80, 64), 3.0  # voxels, mm
SEEDS = {"train": 0, "val": 1, "test": 2}
_FIRST = (2, 2, -20)  # voxel of the template at which the frame begins, so that the brain lies in its middle
_ORIGIN = (-98.0, -134.0, -72.0)  # of the template, mm
AFFINE = np.diag([SPACING, SPACING, SPACING, 1.0])
AFFINE[:3, 3] = [origin + first + 1 for origin, first in zip(_ORIGIN, _FIRST)]


def write_template(path: str | Path) -> Path:
    """Write the template in the bundle's frame as ``.npz``, ``maps`` (1 + K, *SIZE) in 0 to 255, for machines without nilearn.

    Raises:
        FileNotFoundError: if ``nilearn`` is not installed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, maps=(_nilearn_template() * 255).round().byte().numpy())
    return path


def read_template(path: str | Path | None = None) -> Tensor:
    """T1, then a soft map for each of ``CLASSES``, shape ``(1, 1 + K, *SIZE)``, in [0, 1].

    Args:
        path: file of :func:`write_template`; None takes the volumes that ``nilearn`` ships.

    Raises:
        FileNotFoundError: if there is no such file, or ``nilearn`` is not installed.
    """
    if path is None:
        return (_nilearn_template() * 255).round()[None] / 255  # as the file holds it
    if not Path(path).is_file():
        message = (
            f"read_template(): 'path' must be a file of write_template(), there is none at {path}. Leave it out for nilearn's."
        )
        raise FileNotFoundError(message)
    with np.load(path) as file:
        return torch.from_numpy(file["maps"]).float()[None] / 255


def deformations(
    count: int, generator: torch.Generator, angle: tuple[float, float], scale: float, shift: float, flow: float
) -> Tensor:
    """Random displacements ``(N, 3, *SIZE)``, voxels: a turn about a random axis, three scales and a shift, then a smooth flow.

    Args:
        count: N.
        generator: of all random numbers.
        angle: least and largest turn, degrees.
        scale: each axis is scaled by a factor between ``1 - scale`` and ``1 / (1 - scale)``.
        shift: largest shift along an axis, voxels.
        flow: largest speed of the flow, share of the shortest side.

    Raises:
        RuntimeError: if one of them folds.
    """
    found = []
    for _ in range(count):  # one by one: a subject is the same in any number of them
        axis, share = F.normalize(torch.randn(3, generator=generator), dim=0), _uniform(1, generator)
        axis = axis * torch.deg2rad(share * (angle[1] - angle[0]) + share.sign() * angle[0])
        turn = torch.zeros(3, 3)
        turn[[2, 0, 1], [1, 2, 0]], turn[[1, 2, 0], [2, 0, 1]] = axis, -axis
        linear = turn + torch.diag(_uniform(3, generator) * -math.log(1 - scale))
        pose = affine_deformation(torch.cat([linear, shift * _uniform((3, 1), generator)], 1)[None], SIZE)
        amplitude = flow * torch.rand(1, generator=generator)
        found.append(compose(exp(random_svf(1, SIZE, generator, amplitude, sigma=0.1)), pose.ddf()))
    ddf = torch.cat(found)
    if bool((folding_fraction(ddf) > 0).any()):
        raise RuntimeError("deformations(): one of them folds; lower 'flow'.")
    return ddf


def brains(count: int, seed: int, deformed: bool = False, template: str | Path | None = None) -> dict[str, Tensor]:
    """So many subjects.

    Each has another pose and shape, gamma, grey value of each structure, shading and noise. With the same seed, a deformed
    subject is the undeformed one after a further deformation: 15 to 30 degrees, scales 0.8 to 1.25, a shift, a smooth flow.

    Args:
        count, seed: the first subjects of a longer list with the same seed are the same.
        deformed: with the further deformation.
        template: as for :func:`read_template`.

    Returns:
        ``image`` (N, 1, *SIZE) in [0, 1], ``label`` (N, 1, *SIZE) with the index in ``CLASSES``, ``ddf`` (N, 3, *SIZE) of the
        further deformation, zero without one.
    """
    maps, images, labels, ddfs = read_template(template), [], [], []
    for i in range(count):
        shape, looks, further = (torch.Generator().manual_seed(seed * 10**6 + 10 * i + k) for k in range(3))
        ddf = deformations(1, shape, angle=(0.0, 8.0), scale=0.08, shift=2.0, flow=0.09)
        more = torch.zeros_like(ddf)
        if deformed:
            more = deformations(1, further, angle=(15.0, 30.0), scale=0.2, shift=4.0, flow=0.12)
            ddf = compose(ddf, more)
        moved = warp(maps, ddf, padding_mode="zeros")
        images.append(_scanned(moved, looks))
        labels.append(moved[:, 1:].argmax(1, keepdim=True))
        ddfs.append(more)
    return {"image": torch.cat(images), "label": torch.cat(labels), "ddf": torch.cat(ddfs)}


def brain_datalist(split: str, count: int, template: str | Path | None = None) -> list[dict[str, Tensor]]:
    """Undeformed subjects of ``"train"``, ``"val"`` or ``"test"`` as items of a MONAI dataset: ``image`` and ``label``.

    Raises:
        ValueError: for another split.
    """
    if split not in SEEDS:
        raise ValueError(f"brain_datalist(): 'split' must be one of {sorted(SEEDS)}, got {split!r}.")
    found = brains(count, SEEDS[split], template=template)
    return [{"image": image, "label": label} for image, label in zip(found["image"], found["label"])]


def write_volumes(folder: str | Path, images: Iterable[Tensor], kind: str = "brain", affine: np.ndarray = AFFINE) -> list[Path]:
    """Write images in [0, 1], or labels, each ``(1, *S)``, as NIfTI of 8 bits: ``<kind>_00.nii.gz`` and so on.

    ``affine`` is by default that of the frame: a volume whose axes were permuted then carries a header that is wrong.
    """
    import nibabel

    folder, paths = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        values = (image[0] * 255 if image.is_floating_point() else image[0]).round().byte().numpy()
        paths.append(folder / f"{kind}_{i:02d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(values, affine), paths[-1])
    return paths


def _uniform(shape: int | Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform between -1 and 1."""
    return 2 * torch.rand(shape, generator=generator) - 1


def _scanned(maps: Tensor, generator: torch.Generator) -> Tensor:
    """An image ``(1, 1, *SIZE)`` of moved maps ``(1, 1 + K, *SIZE)``: gamma, grey values by structure, shading, noise."""
    image = maps[:, :1] ** math.exp(0.3 * float(torch.randn((), generator=generator)))
    grey = 0.06 * torch.randn(1, len(CLASSES) - 1, 1, 1, 1, generator=generator)
    image = image + (grey * maps[:, 2:]).sum(1, keepdim=True)
    shading = F.interpolate(torch.randn(1, 1, 3, 3, 3, generator=generator), SIZE, mode="trilinear", align_corners=True)
    noise = 0.03 * torch.randn(image.shape, generator=generator)
    image = (image * (1 + 0.12 * shading) + noise).clamp(min=0)
    return image / image.amax()


def nilearn_volumes() -> list[np.ndarray]:
    """T1, grey and white matter of the MNI152 template, each ``(197, 233, 189)`` in [0, 1], from the files of ``nilearn``.

    Raises:
        FileNotFoundError: if ``nilearn`` is not installed.
    """
    try:
        files = {file.name: file for file in metadata.files("nilearn") or ()}
    except metadata.PackageNotFoundError:
        message = "nilearn_volumes(): they come with nilearn: pip install 'monai-diffeo[experiments]', or give 'template'."
        raise FileNotFoundError(message) from None
    import nibabel

    names = (f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm"))
    return [np.asarray(nibabel.load(str(files[name].locate())).dataobj).astype(np.float32) / 255 for name in names]


def _nilearn_template() -> Tensor:
    """The maps of :func:`read_template` without its first axis, from the files of ``nilearn``."""
    from scipy import ndimage

    t1, grey, white = nilearn_volumes()
    solid = ndimage.binary_fill_holes(t1 > 0.1)
    x, y, z = np.ogrid[tuple(slice(o, o + n) for o, n in zip(_ORIGIN, t1.shape))]  # mm
    below = z < np.minimum(0, 0.9 * (y + 49)) - 0.25 * abs(x)  # the tentorium as two planes
    hindbrain = solid & below & (y < -6) & (abs(x) < 20 + np.maximum(0, -34 - y))
    fluid = solid & (grey + white < 0.5) & (((x / 36) ** 2 + ((y + 12) / 52) ** 2 + ((z - 10) / 26) ** 2) < 1) & ~hindbrain
    central = solid & (((x / 34) ** 2 + ((y + 8) / 34) ** 2 + ((z - 4) / 18) ** 2) < 1) & ~hindbrain & ~fluid
    core = solid & (white > 0.5) & ~hindbrain & ~central & ~fluid
    cortex = solid & ~hindbrain & ~fluid & ~central & ~core
    maps = [ndimage.gaussian_filter(part.astype(np.float32), 1.0) for part in (cortex, core, central, fluid, hindbrain)]
    pads = [(-first, int(first + n * SPACING) - m) for first, n, m in zip(_FIRST, SIZE, t1.shape)]
    framed = F.pad(torch.from_numpy(np.stack([t1, *maps])), [edge for pair in reversed(pads) for edge in pair])
    small = F.avg_pool3d(framed[None], int(SPACING))[0]
    return torch.cat([small[:1], 1 - small[1:].sum(0, keepdim=True), small[1:]]).clamp(0, 1)
