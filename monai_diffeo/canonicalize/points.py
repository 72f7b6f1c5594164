"""Where points and boxes of one frame lie in another."""

from __future__ import annotations

import torch
from monai.data.box_utils import convert_box_mode
from torch import Tensor

from monai_diffeo.errors import ShapeError
from monai_diffeo.flow import warp_points

__all__ = ["move_boxes", "move_points"]

_SAMPLES = {2: 65, 3: 17}  # along each side of a box


def move_points(points: Tensor, ddf: Tensor, size: tuple[int, ...], moved: Tensor, who: str = "warp_points()") -> Tensor:
    """Send points through ``p -> p + ddf(p)``, measured from the centres of the two frames.

    Args:
        points: shape ``(B, N, D)``, voxel coordinates of the frame of ``ddf``, in axis order. Integers become float32. Outside
            the frame the displacement continues with its border value.
        ddf: shape ``(B, D, *S)``, voxels.
        size: the frame to which the points go.
        moved: rows to move, shape ``(B,)``; the others are returned bit for bit.

    Raises:
        ShapeError: if ``points`` has another shape.
    """
    expected = (len(ddf), "N", ddf.shape[1])
    if points.ndim != 3 or points.shape[::2] != expected[::2]:
        remedy = "Points are voxel coordinates in axis order, one row a point; add the batch axis with points[None]."
        raise ShapeError(who, "points", f"({', '.join(map(str, expected))})", points.shape, remedy)
    ddf, moved = ddf.to(points.device), moved.to(points.device)
    exact = points.to(ddf.dtype if points.dtype != torch.float64 else points.dtype)
    shift = exact.new_tensor([(n - m) / 2 for n, m in zip(size, ddf.shape[2:])])
    there, exact = ((t.to(points.dtype) if points.is_floating_point() else t) for t in (warp_points(exact, ddf) + shift, exact))
    return torch.where(moved.view(-1, 1, 1), there, exact) if bool(moved.any()) else points


def move_boxes(boxes: Tensor, ddf: Tensor, size: tuple[int, ...], moved: Tensor, box_mode: str | None = None) -> Tensor:
    """The smallest axis-aligned boxes around moved boxes.

    All edges (2D) or faces (3D) of a box are sampled, because a curved map may move their middle further than their corners.

    Args:
        boxes: shape ``(B, N, 2 * D)``. As in MONAI, a box around the whole image is from 0 to the number of voxels.
        ddf, size, moved: as for :func:`move_points`.
        box_mode: MONAI's name of the order of the numbers, such as ``"ccwh"``, see ``monai.data.box_utils.get_boxmode``; None
            is its standard: the lower corner, then the upper corner.

    Raises:
        ShapeError: if ``boxes`` has another shape.
    """
    dims = ddf.shape[1]
    if boxes.ndim != 3 or boxes.shape[0] != len(ddf) or boxes.shape[2] != 2 * dims:
        expected = f"({len(ddf)}, N, {2 * dims})"
        raise ShapeError(
            "warp_boxes()", "boxes", expected, boxes.shape, "A box has two corners; add the batch with boxes[None]."
        )
    if not boxes.numel():
        return boxes
    exact = boxes if boxes.dtype == torch.float64 else boxes.float()
    low, high = torch.as_tensor(convert_box_mode(exact.flatten(0, 1), box_mode)).view(exact.shape).split(dims, 2)
    axis = torch.linspace(0, 1, _SAMPLES[dims], dtype=exact.dtype, device=exact.device)
    share = torch.cartesian_prod(*[axis] * dims)
    share = share[((share == 0) | (share == 1)).any(1)]  # a homeomorphism maps the border of a box to the border of its image
    border = (
        low[:, :, None] + share * (high - low)[:, :, None] - 0.5
    )  # voxel 0 is from 0 to 1, and its centre is its coordinate
    there = move_points(border.flatten(1, 2), ddf, size, torch.ones_like(moved)).view(border.shape) + 0.5
    corners = torch.cat([there.amin(2), there.amax(2)], 2)
    after = torch.as_tensor(convert_box_mode(corners.flatten(0, 1), dst_mode=box_mode)).view(exact.shape)
    dtype = boxes.dtype if boxes.is_floating_point() else after.dtype
    return torch.where(moved.to(boxes.device).view(-1, 1, 1), after.to(dtype), boxes.to(dtype)) if bool(moved.any()) else boxes
