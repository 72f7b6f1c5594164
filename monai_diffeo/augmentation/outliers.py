"""Images that are no films: made of films, or drawn; for a network that learns to tell films from other images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_diffeo.augmentation.common import check_films_and_masks, uniform, unit_grid
from monai_diffeo.errors import ShapeError

__all__ = ["random_outliers"]


def random_outliers(films: Tensor, masks: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """As many images that are no films, in [0, 1]; each kind is equally likely.

    Made of films are: two on top of each other, the second rotated or mirrored; parts of two beside each other; the squares of
    one in another order; an enlarged piece; one with few flat grey values; one with random phases, which has a film's spectrum
    and nothing of its shape; one under a texture. Drawn are: the outlines of a mask, filled; ellipses, often in pairs; stripes;
    noise like clouds.

    Args:
        films: shape ``(B, 1, H, W)``, values in [0, 1], H and W at least 16.
        masks: of the films, shape ``(B, K, H, W)``, 0 or 1.
        generator: source of all random numbers.

    Returns:
        Shape ``(B, 1, H, W)``.

    Raises:
        ShapeError: if films or masks have another shape.

    Reference: Hendrycks et al. (2019), deep anomaly detection with outlier exposure, https://arxiv.org/abs/1812.04606
    """
    check_films_and_masks("random_outliers()", films, masks)
    if films.shape[1] != 1 or min(films.shape[2:]) < 16:
        remedy = "Give grey films, resampled to such a frame."
        raise ShapeError("random_outliers()", "films", "(B, 1, H, W), H and W at least 16", films.shape, remedy)
    draw, count = _Draw(generator), len(films)
    kinds = torch.randint(len(_KINDS), (count,), generator=generator).tolist()
    others = torch.randint(max(count, 1), (count,), generator=generator).tolist()
    made = [
        _KINDS[kind](draw, films[i : i + 1], films[other : other + 1], masks[i : i + 1, :1])
        for i, (kind, other) in enumerate(zip(kinds, others))
    ]
    images = torch.cat([films[:0], *made])
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-6)


class _Draw:
    """Random numbers of one generator."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator

    def number(self, low: float, high: float) -> float:
        return uniform(low, high, (1,), self.generator).item()

    def whole(self, low: int, high: int) -> int:
        """At least ``low``, less than ``high``."""
        return int(torch.randint(low, high, (), generator=self.generator))

    def happens(self, share: float) -> bool:
        return self.number(0, 1) < share

    def noise(self, image: Tensor) -> Tensor:
        return torch.randn(image.shape, generator=self.generator).to(image)

    def oriented(self, image: Tensor, least: int = 0) -> Tensor:
        """Rotated by quarter turns or mirrored, or both; with ``least`` 1 never left as it is. The frame stays."""
        number, size = self.whole(least, 8), image.shape[2:]
        image = torch.rot90(image, number % 4, (2, 3))
        return _resized(image.flip(3) if number >= 4 else image, size)


Kind = Callable[[_Draw, Tensor, Tensor, Tensor], Tensor]  # of numbers, a film, another film and the film's mask, batches of 1


def _resized(image: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    same = tuple(image.shape[2:]) == tuple(size)
    return image if same else F.interpolate(image, tuple(size), mode="bilinear", antialias=True)


def _places(image: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns in [-1, 1], each ``(H, W)``."""
    y, x = (2 * unit_grid(image.shape[2:])).to(image).T.unflatten(1, tuple(image.shape[2:]))
    return y, x


def _double_exposure(draw: _Draw, film: Tensor, other: Tensor, _: Tensor) -> Tensor:
    other, share = draw.oriented(other, least=1), draw.number(0.3, 0.7)
    if draw.happens(0.5):
        other = other.roll(tuple(draw.whole(0, n) for n in film.shape[2:]), (2, 3))
    return share * film + (1 - share) * other


def _joined(draw: _Draw, film: Tensor, other: Tensor, _: Tensor) -> Tensor:
    """One above the other, or side by side, whole or in halves."""
    h, w = film.shape[2:]
    if draw.happens(0.5):
        row = int(h * draw.number(0.3, 0.7))
        return torch.cat([film[:, :, :row], draw.oriented(other, least=1)[:, :, row:]], 2)
    whole = draw.happens(0.5)
    pair = torch.cat([film, other] if whole else [film[..., : w // 2], other[..., : w // 2]], 3)
    return _resized(pair, (h, w))


def _shuffled(draw: _Draw, film: Tensor, _: Tensor, __: Tensor) -> Tensor:
    count, size = (2, 4, 8)[draw.whole(0, 3)], film.shape[2:]
    side = [n // count * count for n in size]
    squares = film[..., : side[0], : side[1]].unflatten(3, (count, -1)).unflatten(2, (count, -1))  # (1, 1, c, h, c, w)
    order = torch.randperm(count**2, generator=draw.generator)
    order = order.roll(1) if torch.equal(order, torch.arange(count**2)) else order
    squares = squares.transpose(3, 4).flatten(2, 3)[:, :, order]
    return _resized(squares.unflatten(2, (count, count)).transpose(3, 4).flatten(4, 5).flatten(2, 3), size)


def _piece(draw: _Draw, film: Tensor, _: Tensor, __: Tensor) -> Tensor:
    side = [math.floor(n * draw.number(0.12, 0.4)) for n in film.shape[2:]]
    top, left = (draw.whole(0, n - m) for n, m in zip(film.shape[2:], side))
    return draw.oriented(_resized(film[..., top : top + side[0], left : left + side[1]], film.shape[2:]))


def _flattened(draw: _Draw, film: Tensor, _: Tensor, __: Tensor) -> Tensor:
    reach, count = draw.whole(1, 4), draw.whole(2, 5)
    for _again in range(2):
        film = F.avg_pool2d(F.pad(film, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)
    ends = torch.quantile(film.flatten(), torch.linspace(0, 1, count + 1)[1:-1].to(film))
    values = torch.rand(count, generator=draw.generator).to(film)
    return (values.sort().values if draw.happens(0.6) else values)[torch.bucketize(film.contiguous(), ends)]


def _random_phases(draw: _Draw, film: Tensor, _: Tensor, __: Tensor) -> Tensor:
    noise = torch.fft.fft2(draw.noise(film))
    return torch.fft.ifft2(torch.fft.fft2(film).abs() * noise / noise.abs().clamp(min=1e-6)).real


def _textured(draw: _Draw, film: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    texture, share = _cloud(draw, film, other, mask), draw.number(0.5, 0.8)
    low, high = texture.aminmax()
    return (1 - share) * film + share * (texture - low) / (high - low)


def _drawing(draw: _Draw, film: Tensor, _: Tensor, mask: Tensor) -> Tensor:
    outside, body, lungs = (draw.number(0, 1) for _ in range(3))
    image = torch.where(mask > 0.5, lungs, torch.full_like(film, body))
    y, x = _places(film)
    inside = (y / draw.number(0.8, 1.3)) ** 2 + (x / draw.number(0.7, 1.1)) ** 2 < 1
    return torch.where(inside, image, outside) if draw.happens(0.5) else image


def _ellipses(draw: _Draw, film: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """Up to six, or pairs, often in one around the middle; sharp or soft, with or without noise."""
    (y, x), image = _places(film), torch.full_like(film, draw.number(0, 1))

    def fill(centre: tuple[float, float], axes: tuple[float, float], angle: float, value: float) -> None:
        across, along = x - centre[1], y - centre[0]
        u, v = across * math.cos(angle) + along * math.sin(angle), along * math.cos(angle) - across * math.sin(angle)
        image[..., (u / axes[0]) ** 2 + (v / axes[1]) ** 2 < 1] = value

    def pair(low: float, high: float) -> tuple[float, float]:
        return draw.number(low, high), draw.number(low, high)

    if draw.happens(0.7):
        fill(pair(-0.1, 0.1), pair(0.6, 1.2), 0.0, draw.number(0, 1))
    in_pairs = draw.happens(0.5)
    for _again in range(draw.whole(1, 7)):
        centre, axes, angle, value = pair(-0.7, 0.7), pair(0.05, 0.6), draw.number(-0.5, 0.5), draw.number(0, 1)
        fill(centre, axes, angle, value)
        if in_pairs:
            fill((centre[0], -centre[1]), axes, -angle, value)
    if draw.happens(0.5):
        image = F.avg_pool2d(F.pad(image, (1,) * 4, mode="replicate"), 3, 1)
    return image + draw.number(0, 0.1) * draw.noise(image) if draw.happens(0.4) else image


def _stripes(draw: _Draw, film: Tensor, _: Tensor, __: Tensor) -> Tensor:
    (y, x), angle = _places(film), draw.number(0, 2 * math.pi)
    image = torch.sin(draw.number(2, 60) * (math.cos(angle) * y + math.sin(angle) * x) + draw.number(0, 2 * math.pi))
    if draw.happens(0.3):
        image = image * torch.sin(draw.number(2, 60) * (math.cos(angle) * x - math.sin(angle) * y))
    return (image > 0).to(film)[None, None] if draw.happens(0.3) else image[None, None]


def _cloud(draw: _Draw, film: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """Noise whose amplitude falls with a power of the frequency."""
    y, x = torch.meshgrid(*(torch.fft.fftfreq(n) for n in film.shape[2:]), indexing="ij")
    amplitude = (y.hypot(x) + 1 / max(film.shape[2:])) ** -draw.number(0.3, 2.2)
    return torch.fft.ifft2(torch.fft.fft2(draw.noise(film)) * amplitude.to(film)).real


_KINDS: tuple[Kind, ...] = (
    _double_exposure, _joined, _shuffled, _piece, _flattened, _random_phases, _textured, _drawing, _ellipses, _stripes, _cloud,
)  # fmt: skip
