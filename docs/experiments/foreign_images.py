"""Images that are no chest films, by kind: from packages that bring their data, of films, or made here; nothing is fetched."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from docs.experiments.film_data import generator_of, load_films

SIZE = (256, 256)
_EACH = 20  # images of a kind, where there is no end of them


def as_film(image: object) -> Tensor:
    """Grey values ``(H, W)`` or colours ``(H, W, C)`` as a film ``(1, 1, 256, 256)`` in [0, 1]."""
    grey = torch.from_numpy(np.array(image, dtype=np.float32))
    grey = grey[..., :3].mean(-1) if grey.ndim == 3 else grey
    low, high = grey.aminmax()
    grey = (grey - low) / (high - low).clamp(min=1e-6)
    return F.interpolate(grey[None, None], SIZE, mode="bilinear", antialias=True)


def _skimage(*names: str) -> Callable[[Path], Iterator[np.ndarray]]:
    def read(_: Path) -> Iterator[np.ndarray]:
        import skimage
        from skimage.io import imread

        for name in names:
            image = imread(Path(skimage.__file__).parent / "data" / name)
            yield image
            h, w = (n // 2 for n in image.shape[:2])
            yield from (image[:h, :w], image[-h:, -w:])

    return read


def _photographs(_: Path) -> Iterator[np.ndarray]:
    import matplotlib.cbook
    from sklearn.datasets import load_sample_images

    yield from load_sample_images().images
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        from matplotlib.image import imread

        yield imread(file, "jpg")
    yield from _skimage("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")(_)


def _faces(_: Path) -> Iterator[np.ndarray]:
    import skimage

    yield from np.load(Path(skimage.__file__).parent / "data" / "lfw_subset.npy")[:100:7]


def _maps(_: Path) -> Iterator[np.ndarray]:
    import matplotlib.cbook

    for name, key in (("topobathy.npz", "topo"), ("jacksboro_fault_dem.npz", "elevation")):
        image = matplotlib.cbook.get_sample_data(name)[key]
        h, w = (n // 2 for n in image.shape)
        yield from (image, image[:h, :w], image[h:, w:], image[:h, w:])


def _brains(_: Path) -> Iterator[np.ndarray]:
    import nibabel
    import nilearn

    path = Path(nilearn.__file__).parent / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    volume = np.asarray(nibabel.load(path).dataobj)
    for axis in range(3):
        for share in (0.3, 0.38, 0.46, 0.54, 0.62, 0.7):
            yield np.rot90(np.take(volume, int(share * volume.shape[axis]), axis))


def _views(image: np.ndarray) -> Iterator[np.ndarray]:
    """An image as it is, turned, upside down, as a negative, and two parts of it."""
    h, w = (n // 2 for n in image.shape[:2])
    yield from (image, np.rot90(image), image[::-1], image.max() - image, image[:h], image[h // 2 : -h // 2, w // 2 : -w // 2])


def _dicom(*names: str, frames: int = 1, views: int = 3) -> Callable[[Path], Iterator[np.ndarray]]:
    """Pictures of pydicom's test files: ``frames`` of each, evenly spaced, and the first ``views`` of each frame."""

    def read(_: Path) -> Iterator[np.ndarray]:
        from pydicom import dcmread
        from pydicom.data import get_testdata_file

        for name in names:
            path = get_testdata_file(name, download=False)
            if path:
                file = dcmread(path)
                pixels = file.pixel_array.astype(np.float32)
                colours = file.SamplesPerPixel > 1
                for one in pixels[:: -(-len(pixels) // frames)] if pixels.ndim > 2 + colours else [pixels]:
                    yield from itertools.islice(_views(one), views)

    return read


def _segmentations(_: Path) -> Iterator[np.ndarray]:
    """Maps of tissue, and masks of a liver."""
    import nibabel
    import nilearn

    for tissue in ("gm", "wm"):
        name = f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz"
        volume = np.asarray(nibabel.load(Path(nilearn.__file__).parent / "datasets" / "data" / name).dataobj)
        for axis in range(3):
            for share in (0.4, 0.5, 0.6):
                yield np.rot90(np.take(volume, int(share * volume.shape[axis]), axis))
    yield from _dicom("liver.dcm", frames=3, views=2)(_)


def _head(_: Path) -> Iterator[np.ndarray]:
    """A sagittal MR slice."""
    import matplotlib.cbook

    with matplotlib.cbook.get_sample_data("s1045.ima.gz") as file:
        content = file.read()
    yield from _views(np.frombuffer(content, np.uint16).reshape(256, 256).astype(np.float32))


def _logos(_: Path) -> Iterator[np.ndarray]:
    import matplotlib.cbook
    from matplotlib.image import imread

    for name in ("logo2.png", "Minduka_Present_Blue_Pack.png"):
        with matplotlib.cbook.get_sample_data(name) as file:
            yield from itertools.islice(_views(imread(file)[..., :3].mean(-1)), 4)
    yield from _skimage("logo.png", "color.png")(_)


def _depths(_: Path) -> Iterator[np.ndarray]:
    import skimage

    image = np.load(Path(skimage.__file__).parent / "data" / "motorcycle_disp.npz")["arr_0"]
    yield from _views(np.where(np.isfinite(image), image, 0))


def _films(split: str, count: int, change: Callable[[Tensor, torch.Generator], Tensor]) -> Callable:
    """Pictures made of ``count`` films of a split of shenzhen."""

    def read(data: Path) -> Iterator[np.ndarray]:
        films = load_films(data, "shenzhen", split, count, size=SIZE)
        for i, name in enumerate(films.ids):
            yield change(films.images[[i, i - 1], 0], generator_of(f"{change.__name__}/{name}")).numpy()

    return read


def _piece(films: Tensor, draw: torch.Generator) -> Tensor:
    """A small part of a film."""
    top, left = (int(torch.randint(SIZE[0] * 3 // 4, (), generator=draw)) for _ in range(2))
    return films[0, top : top + SIZE[0] // 4, left : left + SIZE[1] // 4]


def _shuffled(films: Tensor, draw: torch.Generator) -> Tensor:
    """The 16 squares of a film in another order."""
    side = SIZE[0] // 4
    squares = films[0].unfold(0, side, side).unfold(1, side, side).flatten(0, 1)
    rows = squares[torch.randperm(16, generator=draw)].view(4, 4, side, side)
    return rows.transpose(1, 2).reshape(SIZE)


def _side_by_side(films: Tensor, draw: torch.Generator) -> Tensor:
    return torch.cat([films[0], films[1]], 1)


def _double_exposure(films: Tensor, draw: torch.Generator) -> Tensor:
    """Two films on top of each other, one of them moved by a quarter of the frame and upside down."""
    return films[0] + films[1].flip(0).roll(SIZE[1] // 4, 1)


def _digits(data: Path) -> Iterator[np.ndarray]:
    yield from np.load(data.parent / "mnist" / "mnist.npz")["x_test"][:_EACH]


def _drawn(draw: Callable) -> Callable[[Path], Iterator[np.ndarray]]:
    """Pictures that matplotlib draws; ``draw(axes, rng)``."""

    def read(_: Path) -> Iterator[np.ndarray]:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        for seed in range(_EACH):
            rng = np.random.default_rng(seed)
            figure = Figure(figsize=(2.56, 2.56), dpi=100)
            canvas = FigureCanvasAgg(figure)
            draw(figure, rng)
            canvas.draw()
            yield np.asarray(canvas.buffer_rgba())[..., :3]

    return read


def _text(figure, rng) -> None:
    words = "report of the film lungs clear no effusion heart size normal impression technique".split()
    lines = "\n".join(" ".join(rng.choice(words, 6)) for _ in range(14))
    figure.text(0.02, 0.98, lines, va="top", size=rng.integers(5, 10))


def _plot(figure, rng) -> None:
    axes = figure.add_subplot()
    for _ in range(3):
        axes.plot(rng.normal(size=60).cumsum())
    if rng.random() < 0.5:
        axes.bar(range(8), rng.random(8) * 5)


def _polygons(figure, rng) -> None:
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for _ in range(6):
        axes.fill(rng.random(4), rng.random(4), color=str(rng.random()))


def _cartoon(figure, rng) -> None:
    """Two dark ellipses in a light body: what a bad film might be taken for."""
    from matplotlib.patches import Ellipse

    axes = figure.add_axes((0, 0, 1, 1), facecolor="black")
    axes.add_patch(Ellipse((0.5, 0.5), 0.9, 1.1, color="0.75"))
    for x in (0.3, 0.7):
        axes.add_patch(Ellipse((x + rng.normal(0, 0.02), 0.55), 0.25, rng.uniform(0.4, 0.7), color=str(rng.uniform(0.1, 0.4))))


def _made(make: Callable[[torch.Generator], Tensor], name: str) -> Callable[[Path], Iterator[np.ndarray]]:
    return lambda _: (make(generator_of(f"{name}/{i}")).numpy() for i in range(_EACH))


def _white(draw: torch.Generator) -> Tensor:
    return torch.rand(SIZE, generator=draw)


def _cloud(draw: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with the frequency, as that of clouds."""
    y, x = torch.meshgrid(torch.fft.fftfreq(SIZE[0]), torch.fft.fftfreq(SIZE[1]), indexing="ij")
    power = 1 + torch.rand((), generator=draw)
    return torch.fft.ifft2(torch.fft.fft2(torch.randn(SIZE, generator=draw)) / (x.hypot(y) + 1 / 256) ** power).real


def _gradient(draw: torch.Generator) -> Tensor:
    angle = 2 * math.pi * torch.rand((), generator=draw)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE[0]), torch.linspace(-1, 1, SIZE[1]), indexing="ij")
    return math.cos(angle) * y + math.sin(angle) * x + 0.2 * torch.rand((), generator=draw) * (x * x + y * y)


def _stripes(draw: torch.Generator) -> Tensor:
    angle, waves = (6.28 * torch.rand((), generator=draw), 3 + 40 * torch.rand((), generator=draw))
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE[0]), torch.linspace(-1, 1, SIZE[1]), indexing="ij")
    return torch.sin(waves * (math.cos(angle) * y + math.sin(angle) * x))


def _checks(draw: torch.Generator) -> Tensor:
    side = int(torch.randint(8, 60, (), generator=draw))
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    return ((y // side + x // side) % 2).float()


def _blank(draw: torch.Generator) -> Tensor:
    image = torch.full(SIZE, 0.5) + 1e-3 * torch.randn(SIZE, generator=draw)
    image[0, 0] = 1.0
    return image


def _blobs(draw: torch.Generator) -> Tensor:
    noise = torch.rand(1, 1, *SIZE, generator=draw)
    for _ in range(3):
        noise = F.avg_pool2d(noise, 25, 1, 12)
    return (noise > noise.median()).float()[0, 0]


FITTED: Mapping[str, Callable[[Path], Iterator[np.ndarray]]] = {
    "textures": _skimage("brick.png", "grass.png", "gravel.png"),
    "drawn text": _drawn(_text),
    "digits": _digits,
    "white noise": _made(_white, "white"),
    "gradients": _made(_gradient, "gradients"),
    "polygons": _drawn(_polygons),
    "photographs": _photographs,
    "microscopy": _skimage("cell.png", "ihc.png"),
    "MR, one body": _dicom("MR_small.dcm", "MR2_UNCR.dcm"),
}
"""Kinds on which the decision is fitted."""

TESTED: Mapping[str, Callable[[Path], Iterator[np.ndarray]]] = {
    "brain slices": _brains,
    "CT": _dicom("CT_small.dcm", "693_UNCR.dcm", "explicit_VR-UN.dcm", "bad_sequence.dcm", "eCT_Supplemental.dcm"),
    "CT of a head": _dicom("J2K_pixelrep_mismatch.dcm", views=6),
    "MR, other bodies": _dicom("examples_overlay.dcm", "MR-SIEMENS-DICOM-WithOverlays.dcm", "emri_small.dcm", frames=3),
    "MR of a head": _head,
    "X-ray film of a leg": _dicom("RG3_UNCR.dcm", views=6),
    "scintigram": _dicom("JPEG2000_UNC.dcm", views=6),
    "test pattern": _dicom("mlut_18.dcm", views=6),
    "ultrasound": _dicom(
        "US1_UNCR.dcm",
        "examples_palette.dcm",
        "JPGLosslessP14SV1_1s_1f_8b.dcm",
        "gdcm-US-ALOKA-16.dcm",
        "color-px.dcm",
        "OBXXXX1A.dcm",
        "color3d_jpeg_baseline.dcm",
        frames=3,
    ),
    "segmentations": _segmentations,
    "faces": _faces,
    "retina": _skimage("retina.jpg", "microaneurysms.png"),
    "sky": _skimage("hubble_deep_field.jpg", "moon.png"),
    "things": _skimage("coins.png", "clock_motion.png", "horse.png", "camera.png"),
    "scanned text": _skimage("page.png", "text.png"),
    "maps": _maps,
    "depth map": _depths,
    "logos": _logos,
    "plots": _drawn(_plot),
    "cartoons of a chest": _drawn(_cartoon),
    "clouds of noise": _made(_cloud, "clouds"),
    "stripes": _made(_stripes, "stripes"),
    "blobs": _made(_blobs, "blobs"),
    "blank": _made(_blank, "blank"),
    "head phantom": _skimage("phantom.png"),
    "two films side by side": _films("test", 15, _side_by_side),
    "double exposure": _films("test", 15, _double_exposure),
    "pieces of films": _films("test", 15, _piece),
    "shuffled films": _films("test", 15, _shuffled),
    "chequers": _made(_checks, "chequers"),
}
"""Kinds that the decision is not fitted on."""

ALIKE = ("cartoons of a chest", "clouds of noise", "stripes", "head phantom", "two films side by side", "double exposure")
ALIKE += ("pieces of films", "shuffled films", "chequers")
"""Those that resemble a kind of :func:`monai_diffeo.augmentation.random_outliers`, from which the outlier detector learned."""


def foreign_images(kind: str, data: Path) -> Tensor:
    """All images of a kind, ``(N, 1, 256, 256)``; ``data`` is the folder of the films, MNIST lies beside it."""
    return torch.cat([as_film(image) for image in {**FITTED, **TESTED}[kind](data)])
