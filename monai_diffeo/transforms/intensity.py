"""Grey values of a film to [0, 1], by the film itself: not by a border around it, nor by a marker on it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ScaleIntensityRange, ScaleIntensityRangePercentiles, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy, convert_to_tensor
from torch import Tensor

from monai_diffeo.radiograph.film import joined_notes, middle_ninth
from monai_diffeo.transforms.resize import resizing

__all__ = ["ScaleFilmIntensity", "ScaleFilmIntensityD", "ScaleFilmIntensityDict", "ScaleFilmIntensityd"]

_PERCENTILES = (0.5, 99.5)  # of the film, that become 0 and 1
_MONAI_SORTS = 1_000_000  # up to so many values MONAI takes torch's percentiles, which round otherwise
_SAMPLE = 20_000  # values that tell about where the percentiles of a large film lie
_SIDE = 320  # of the lattice on which a film is judged, pixels at most
_LAYERS = 8  # of a border: its sides, and one inside the other
_SHARE = 0.01  # of the film that a border covers at least
_WHOLE = 0.95  # of a side that it covers
_SOFT = 0.08  # width of a border's soft edge at most, share of the lattice

# In spreads. A spread is the distance of the percentiles 10 and 90 in the middle ninth of the film.
_TOLERANCE = 0.03, 0.002  # within which a border is constant, at most and at least; one grey level is always allowed
_DARKER, _LIGHTER = 3.0, 0.25  # distances from the film's dark end at which a border matters
_EDGE = 0.5  # by which the soft edge of a light border is lighter than the film inside
_DARK_GAP, _LIGHT_GAP = 1.5, 0.75  # between the film's values and extreme ones; dark ones do less harm

_EXTREME = (0.0025, 0.1)  # shares of the film that extreme values have, at least and at most
_IN_GAP = 2e-4  # share of the film that may lie in the gap
_LIGHT = (128, 128)  # size of a white film in the metadata, so that films of any size make a batch


class FilmRange(NamedTuple):
    """What of a lattice is no film: a border ``(h, w)``, bool; the percentiles of the film; a note."""

    border: np.ndarray
    low: float
    high: float
    note: str


def film_range(grey: np.ndarray) -> FilmRange | None:
    """Find what is no film in grey values ``(h, w)``; None where all is film, or where it cannot be judged.

    A border is constant, reached from the frame along a row or a column, and covers a whole side or three corners. It matters
    where it is lighter, or much darker, than the dark end of the film. Extreme values, such as those of a marker, are few, and
    a wide gap separates them from the others.
    """
    spread = float(np.subtract(*np.percentile(grey[middle_ninth(grey.shape)], [90, 10])))
    if not spread > 0:  # or NaN
        return None
    border = _with_soft_edge(grey, _border(grey, spread), _EDGE * spread)
    film = np.sort(grey[~_grown(border, 1)])
    dark, light = _extreme(film, _DARK_GAP * spread), _extreme(-film[::-1], _LIGHT_GAP * spread)
    left = [f"a border of {border.mean():.0%} of the film was"] if border.any() else []
    left += [f"extreme values of {(dark + light) / len(film):.1%} of the film were"] if dark + light else []
    low, high = np.percentile(film[dark : len(film) - light], _PERCENTILES)
    note = joined_notes(*(f"{part} left out of the grey scale" for part in left))
    return FilmRange(border, float(low), float(high), note) if left else None


def _border(grey: np.ndarray, spread: float) -> np.ndarray:
    """The layers of the border that matter, ``(h, w)``, bool."""
    border, box, middle = np.zeros(grey.shape, bool), tuple(slice(0, n) for n in grey.shape), middle_ninth(grey.shape)
    level = float(np.diff(np.unique(grey[middle])).min())
    most, least = (max(share * spread, 1.2 * level) for share in _TOLERANCE)
    for _ in range(_LAYERS):  # the purest first: a film may have almost the value of the border beside it
        inner = grey[box]
        for tolerance, value in sorted(_commonest(side, most, least) for side in (*inner[[0, -1]], *inner.T[[0, -1]])):
            layer = np.zeros(grey.shape, bool)
            layer[box] = _from_frame(abs(inner - value) <= tolerance)
            if layer.mean() >= _SHARE and _surrounds(layer[box]) and not layer[middle].any():
                break
        else:
            return border
        above = value - np.percentile(inner[~_grown(layer[box], round(_SOFT * max(grey.shape)))], _PERCENTILES[0])
        if not -_DARKER * spread <= above <= _LIGHTER * spread:
            border |= layer
        ends = [np.flatnonzero((~layer[box]).any(axis))[[0, -1]] for axis in (1, 0)]
        box = tuple(slice(span.start + first, span.start + last + 1) for span, (first, last) in zip(box, ends))
    return border


def _commonest(side: np.ndarray, most: float, least: float) -> tuple[float, float]:
    """How far a constant border's values on one side of a film ``(N,)`` lie from the commonest value, and that value."""
    side = np.sort(side)
    common = np.searchsorted(side, side + 2 * most, "right") - np.arange(len(side))
    first = int(common.argmax())
    value, low, high = np.percentile(side[first : first + common[first]], [50, 25, 75])
    return float(np.clip(2 * (high - low), least, most)), float(value)


def _from_frame(same: np.ndarray) -> np.ndarray:
    """Where all voxels between a voxel and the frame, along its row or its column, are true."""
    reached = np.zeros(same.shape, bool)
    for turns in range(4):  # rot90 gives views
        turned = np.rot90(same, turns)
        length = np.where(turned.all(1), turned.shape[1], turned.argmin(1))
        np.rot90(reached, turns)[:] |= np.arange(turned.shape[1]) < length[:, None]
    return reached


def _surrounds(layer: np.ndarray) -> bool:
    sides = max(side.mean() for side in (layer[0], layer[-1], layer[:, 0], layer[:, -1]))
    return bool(sides >= _WHOLE or layer[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3)


def _with_soft_edge(grey: np.ndarray, border: np.ndarray, step: float) -> np.ndarray:
    """The border and its edge, as far as that is ``step`` lighter than the film inside, or as dark as its darkest tenth."""
    if not border.any():
        return border
    width = round(_SOFT * max(grey.shape))
    film = grey[~_grown(border, width)]
    light = np.median(grey[border]) > np.median(film)
    limit = np.median(film) + step if light else np.percentile(film, 10)
    for _ in range(width):
        grown = _grown(border, 1)
        if (np.median(grey[grown & ~border]) > limit) != light:
            break
        border = grown
    return border


def _grown(mask: np.ndarray, width: int) -> np.ndarray:
    """A mask and all voxels at most ``width`` rows and columns away."""
    for _ in range(2):
        reach = 0
        while reach < width:
            step = min(reach + 1, width - reach)
            grown = mask.copy()
            grown[step:] |= mask[:-step]
            grown[:-step] |= mask[step:]
            mask, reach = grown, reach + step
        mask = mask.T
    return mask


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Both percentiles of many values ``(N,)``; only those beyond a sample's percentiles, somewhat further in, are sorted."""
    sample, last, ends = np.sort(values[:: len(values) // _SAMPLE | 1]), len(values) - 1, []
    for share, sign in zip((_PERCENTILES[0], 100 - _PERCENTILES[1]), (1, -1)):
        rank, bound = share / 100 * last, sample[::sign][int(1.5 * share / 100 * len(sample)) + 1]
        some = values[values <= bound] if sign > 0 else -values[values >= bound]
        some = some if len(some) > rank + 1 else sign * values
        ends.append(sign * float(np.percentile(some, 100 * rank / (len(some) - 1))))
    return ends[0], ends[1]


def _extreme(values: np.ndarray, gap: float) -> int:
    """How many of the smallest of the sorted ``values`` (N,) lie apart from the others."""
    inside = int(_IN_GAP * len(values))
    cut = np.arange(max(int(_EXTREME[0] * len(values)), inside + 1), int(_EXTREME[1] * len(values)))
    apart = cut[values[cut] - values[cut - 1 - inside] >= gap]
    return int(apart[-1]) if len(apart) else 0


class ScaleFilmIntensity(Transform):
    """Scale a film to [0, 1] between its percentiles 0.5 and 99.5, and clip; a border becomes 0.

    Where all is film, it is MONAI's ``ScaleIntensityRangePercentiles``, bit for bit. A border of another value than the dark
    end of the film, and extreme values such as those of a marker, are left out of the percentiles. Then ``film_notes`` of the
    metadata says so. Images of several channels or of three axes count as all film.

    Example:
        >>> film = torch.linspace(100, 200, 64) + torch.linspace(0, 50, 64)[None, :, None]
        >>> framed = torch.nn.functional.pad(film, (8, 8, 8, 8), value=4095.0)
        >>> [round(value, 2) for value in ScaleFilmIntensity()(framed)[0, 40, [0, 9, 40, 79]].tolist()]
        [0.0, 0.14, 0.51, 0.0]
    """

    backend = [TransformBackends.TORCH]

    def __init__(self) -> None:
        self.whole = ScaleIntensityRangePercentiles(*_PERCENTILES, b_min=0.0, b_max=1.0, clip=True)

    def __call__(self, img: Any) -> Any:
        """The film ``img``, ``(1, H, W)``, float32, as tensor or array as it came."""
        return self.scaled(img)[0]

    def scaled(self, img: Any) -> tuple[Any, str]:
        """The scaled film and what was left out, in words; nothing is ``""``."""
        step = -(-max(img.shape) // _SIDE)
        found = film_range(convert_to_numpy(img[0, ::step, ::step])) if img.ndim == 3 and len(img) == 1 else None
        if found is None:
            return _noted(self._all_film(img)), ""
        film = convert_to_tensor(img, dtype=torch.float32, track_meta=False)
        film = ScaleIntensityRange(found.low, found.high, 0.0, 1.0, clip=True)(film)
        border = _grown(found.border, 1)
        shown = border.repeat(step, 0).repeat(step, 1)[: film.shape[1], : film.shape[2]]
        film = convert_to_tensor(film, track_meta=False).masked_fill(torch.from_numpy(shown).to(film.device), 0.0)
        return _noted(convert_to_dst_type(film, img, dtype=torch.float32)[0], border, found.note), found.note

    def _all_film(self, img: Any) -> Any:
        """What MONAI gives; of a large film the percentiles are found by :func:`_ends`, and the rest is done in place."""
        film = convert_to_tensor(img, track_meta=False)
        if film.dtype != torch.float32 or film.device.type != "cpu" or film.numel() <= _MONAI_SORTS:
            return self.whole(img)
        low, high = _ends(film.numpy().ravel())
        if not (high > low and film.sum().isfinite()):
            return self.whole(img)
        return convert_to_dst_type((film - low).div_(high - low).clamp_(0, 1), img)[0]


def _noted(film: Any, border: np.ndarray | None = None, note: str = "") -> Any:
    """The film, its metadata with one more note, and with a white film in this border."""
    if isinstance(film, MetaTensor):
        rows, columns = (resizing(n, m).sum(1) for n, m in zip(film.shape[-2:], _LIGHT))
        light = rows[:, None] * columns
        if border is not None:
            light *= F.interpolate(torch.from_numpy(~border)[None, None].float(), _LIGHT, mode="area")[0, 0]
        notes = {"film_notes": joined_notes(film.meta.get("film_notes", ""), note)} if note else {}
        film.meta = {**film.meta, **notes, "film_light": light.numpy()}
    return film


def inverted_film(images: Tensor) -> Tensor:
    """Films in [0, 1], ``(B, 1, H, W)``, scaled and resized, as if their grey values had been inverted before.

    A border that was left out of the scale stays 0, such as the light air beside the patient of a negative, and so does what
    resizing adds around a film. Films without ``film_light`` are taken from 1.
    """
    light = getattr(images, "meta", {}).get("film_light")
    if light is None:
        return 1 - images
    whole = F.interpolate(torch.as_tensor(light).reshape(-1, 1, *_LIGHT), images.shape[2:], mode="bilinear", antialias=True)
    return (whole.to(images.device) - images).clamp(0, 1)


class ScaleFilmIntensityd(MapTransform):
    """Dictionary version of `ScaleFilmIntensity`.

    Args:
        keys: films, shape ``(1, H, W)``.
        film_key: key under which the film before scaling is kept, for pictures. It is an array: what is no tensor never reaches
            a network as a further input. The notes are in the metadata of the scaled film.
        allow_missing_keys: leave absent keys alone.
    """

    backend = ScaleFilmIntensity.backend

    def __init__(self, keys: KeysCollection, film_key: str | None = None, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.film_key, self.scaler = film_key, ScaleFilmIntensity()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            if self.film_key is not None:
                out[self.film_key] = convert_to_numpy(out[key])
            out[key] = self.scaler(out[key])
        return out


ScaleFilmIntensityD = ScaleFilmIntensityDict = ScaleFilmIntensityd
