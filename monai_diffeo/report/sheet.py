"""A page of images, lines and words, all placed in pixels from its top left corner."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__: list[str] = []

_DPI = 100  # px per inch; widths of lines and sizes of letters are in points, 72 an inch
_HALO = 0.55  # opacity of the dark rim that keeps an outline legible on white bone


class Sheet:
    """A page of one colour: images are painted on ``pixels`` ``(H, W, 4)`` at once, lines and then words above them at the end.

    Raises:
        ImportError: if matplotlib is not installed.
    """

    def __init__(self, width: int, height: int, colour: str) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("Sheet(): needs matplotlib. Install it: pip install 'monai-diffeo[report]'.") from error
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, frameon=False)
        self.canvas = FigureCanvasAgg(self.figure)
        self.pixels = np.asarray(self.canvas.get_renderer().buffer_rgba())
        self.pixels[0] = *_bytes(rgb(colour)), 255
        self.pixels[1:] = self.pixels[0]
        self.texts: list[tuple[tuple[float, float], str, Any, dict[str, Any]]] = []

    @property
    def whole(self) -> Panel:
        """All of the page."""
        return Panel(self, 0, 0, self.pixels.shape[1], self.pixels.shape[0])

    def png(self) -> bytes:
        """The page as a PNG."""
        from PIL import Image, ImageDraw

        self.figure.draw(self.canvas.get_renderer())
        image = Image.fromarray(self.pixels).convert("RGB")
        pen = ImageDraw.Draw(image)
        for place, text, font, style in self.texts:
            pen.text(place, text, font=font, **style)
        stream = io.BytesIO()
        image.save(stream, "png", compress_level=1)
        return stream.getvalue()


@dataclass(frozen=True)
class Panel:
    """A rectangle of a sheet, in pixels; images fill it, and points of a panel of ``shape`` are voxels of the image."""

    sheet: Sheet
    left: int
    top: int
    width: int
    height: int
    shape: tuple[int, int] = (1, 1)

    def fitted(self, shape: tuple[int, int]) -> Panel:
        """The largest panel of the proportions of an image ``(H, W)``, at the left and half way down."""
        scale = min(self.height / shape[0], self.width / shape[1])
        height, width = (max(round(n * scale), 1) for n in shape)
        return Panel(self.sheet, self.left, self.top + (self.height - height) // 2, width, height, shape)

    @property
    def _pixels(self) -> np.ndarray:
        return self.sheet.pixels[self.top : self.top + self.height, self.left : self.left + self.width, :3]

    def grey(self, image: np.ndarray) -> None:
        """Paint an image ``(H, W)`` of 0 to 1, interpolated."""
        from PIL import Image

        shown = Image.fromarray(_bytes(image)).resize((self.width, self.height), Image.Resampling.BILINEAR)
        self._pixels[:] = np.asarray(shown)[..., None]

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """The value ``(H, W)`` of each pixel of the panel."""
        rows, columns = ((np.arange(n) + 0.5) * size / n for n, size in zip((self.height, self.width), values.shape))
        return values[rows.astype(int)[:, None], columns.astype(int)]

    def paint(self, colours: np.ndarray) -> None:
        """Paint a colour, 0 to 1, on each pixel of the panel."""
        self._pixels[:] = _bytes(colours)

    def tint(self, colour: str, opacity: np.ndarray) -> None:
        """Paint one colour over what is there, ``opacity`` ``(H, W)`` of each voxel 0 to 1."""
        covered = self.nearest(opacity).astype(np.float32)[..., None]
        self._pixels[:] = (1 - covered) * self._pixels + covered * _bytes(rgb(colour))

    def lines(
        self, points: Sequence[np.ndarray], colour: Any, width: float, dashed: bool = False, rim: bool = False, alpha: float = 1
    ) -> None:
        """Draw lines through points ``(N, 2)``, x and y in voxels, inside the panel."""
        from matplotlib.collections import LineCollection
        from matplotlib.patheffects import Normal, Stroke
        from matplotlib.transforms import Affine2D, Bbox

        per_row, per_column = self.height / self.shape[0], self.width / self.shape[1]
        bottom = len(self.sheet.pixels) - self.top
        place = Affine2D().translate(0.5, 0.5).scale(per_column, -per_row).translate(self.left, bottom)
        style: dict[str, Any] = {"linestyles": [(0, (4, 2.5)) if dashed else "solid"], "zorder": 5, "alpha": alpha}
        drawn = LineCollection(list(points), colors=[colour], linewidths=[width], transform=place, **style)
        if rim:
            drawn.set_path_effects([Stroke(linewidth=width + 1.4, foreground="black", alpha=_HALO), Normal()])
        self.sheet.figure.add_artist(drawn)
        drawn.set_clip_box(Bbox.from_extents(self.left, bottom - self.height, self.left + self.width, bottom))

    def words(
        self, x: float, y: float, text: str, colour: str, size: float, bold: bool = False, anchor: str = "lm", rim: bool = False
    ) -> None:
        """Text of a size in points at a place in the panel, (0, 0) its lower left, (1, 1) its upper right.

        ``anchor`` says which part of the text lies there: left, middle or right, then above, middle or below, as in Pillow.
        """
        place = self.left + x * self.width, self.top + (1 - y) * self.height
        style = {"fill": colour, "anchor": anchor} | ({"stroke_width": 1.5, "stroke_fill": "#000000"} if rim else {})
        self.sheet.texts.append((place, text, _font(size, bold), style))


def rgb(colour: str) -> np.ndarray:
    """Red, green and blue, 0 to 1, of ``"#rrggbb"``."""
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _bytes(shares: np.ndarray) -> np.ndarray:
    return (shares * 255 + 0.5).astype(np.uint8)


@cache
def _font(points: float, bold: bool) -> Any:
    """The font that comes with matplotlib."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    file = Path(get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' if bold else ''}.ttf")
    return ImageFont.truetype(str(file), points * _DPI / 72)
