"""A real viewer: OHIF in Chromium shows the SEG of an archive over its film, within two pixels of the screen."""

import base64
import io
import time

import numpy as np
import pytest

for package in ("dicomweb_client", "highdicom", "ignite", "nibabel", "PIL", "scipy"):
    pytest.importorskip(package)

import pydicom  # noqa: E402
from dicomweb_client.api import DICOMwebClient  # noqa: E402
from PIL import Image  # noqa: E402
from pydicom.uid import generate_uid  # noqa: E402
from scipy.ndimage import distance_transform_edt  # noqa: E402

from monai_diffeo.report.cxr import LungReporter  # noqa: E402
from tests.dicom_output.chromium import CHROMIUM, chromium  # noqa: E402
from tests.dicom_output.films import film  # noqa: E402
from tests.dicom_output.ohif import PAGES, open_study, show_seg, viewer  # noqa: E402
from tests.dicom_output.orthanc import ORTHANC, PLUGIN, orthanc  # noqa: E402
from tests.dicom_output.test_runs import Drawn  # noqa: E402
from tests.report.runs import run  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not (ORTHANC and PLUGIN), reason="needs apt-get install orthanc orthanc-dicomweb"),
    pytest.mark.skipif(not CHROMIUM, reason="needs apt-get install chromium"),
    pytest.mark.skipif(not PAGES.is_dir(), reason="needs the pages of OHIF: python tests/dicom_output/ohif.py, with npm"),
]
TOLERANCE = 2  # pixels of the screen
FILMS = {
    "without frame of reference": ((240, 320), {}, ["Right lung", "Left lung"]),
    "mirrored, with frame of reference": (
        (320, 200),
        {"modality": "DX", "frame_of_reference": True, "PatientOrientation": ["R", "F"], "ImagerPixelSpacing": [0.4, 0.5]},
        ["Left lung", "Right lung"],
    ),
    "without sides and spacing": ((200, 320), {"PatientOrientation": None, "ImagerPixelSpacing": None}, ["Lungs", "Lungs"]),
}
SEEN = """(() => {
    const shown = window.services.cornerstoneViewportService.getCornerstoneViewport('default')
    const { imageData, dimensions: [width, height] } = shown.getImageData()
    const place = ([x, y]) => shown.worldToCanvas(imageData.indexToWorld([x - 0.5, y - 0.5, 0]))
    const { state, config } = window.cornerstoneTools.segmentation
    const [{ segmentationId }] = window.services.segmentationService.getSegmentationRepresentations('default')
    const { segments } = state.getSegmentation(segmentationId)
    const colour = part => config.color.getSegmentIndexColor('default', segmentationId, part.segmentIndex).slice(0, 3)
    return {
        corners: [[0, 0], [width, 0], [0, height]].map(place),
        colours: Object.fromEntries(Object.values(segments).map(part => [part.label, colour(part)])),
        canvas: shown.getCanvas().toDataURL(),
    }
})()"""


class DrawnLungs(Drawn, LungReporter):
    """Right and left lung, pictures in no time."""


def regions(rows, columns):
    """The lung at the left of the film, the one at its right, and markers in two corners: a turn or a mirror changes each."""
    row, column = np.ogrid[:rows, :columns]
    row, column = row / rows, column / columns
    left = (row > 0.2) & (row < 0.8) & (column > 0.1) & (column < 0.4) & ~((row > 0.5) & (column < 0.2))
    right = (row > 0.3) & (row < 0.75) & (column > 0.55) & (column < 0.9) & ~((row < 0.45) & (column > 0.75))
    return left, right, ((row < 0.05) & (column < 0.07)) | ((row > 0.96) & (column > 0.9))


def chroma(colour):
    """What is left of colours ``(..., 3)`` on grey, ``(..., 2)``."""
    return np.diff(np.asarray(colour, dtype=float), axis=-1)


def drawn(canvas, colour):
    """Where a canvas has a colour that is blended into grey."""
    found, wanted = chroma(canvas), chroma(colour)
    return found @ wanted > np.maximum(0.9 * np.linalg.norm(found, axis=-1), 12) * np.linalg.norm(wanted)


def on_screen(mask, corners, shape):
    """A mask as a canvas has to show it, from the places of the film's top left, top right and bottom left corner."""
    origin, right, down = np.asarray(corners, dtype=float)
    steps = np.stack([(right - origin) / mask.shape[1], (down - origin) / mask.shape[0]], axis=1)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    column, row = np.floor(np.linalg.inv(steps) @ (np.stack([x, y]).reshape(2, -1) - origin[:, None])).astype(int)
    inside = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
    shown = np.zeros(shape, dtype=bool)
    shown.flat[inside] = mask[row[inside], column[inside]]
    return shown


def apart(one, other):
    """Greatest distance of a pixel of one region from the other, and of the pixels around them; infinite for an empty one."""
    pairs = [(one, other), (other, one), (~one, ~other), (~other, ~one)]
    return max(distance_transform_edt(~b)[a].max() if a.any() and b.any() else np.inf for a, b in pairs)


def pixels_of(seen):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(seen["canvas"].partition(",")[2]))).convert("RGB"))


def settled(page, seconds=30):
    """What the viewer shows as soon as it has colours and stays the same, or when the time is over."""
    end, before = time.monotonic() + seconds, None
    while (seen := page.value(SEEN)) != before or not chroma(pixels_of(seen)).any():
        if time.monotonic() > end:
            break
        before = seen
        time.sleep(0.5)
    return seen


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What the viewer shows of each film, whose results an archive holds: corners, colours by label, canvas."""
    folder, seen, study = tmp_path_factory.mktemp("viewer"), {}, generate_uid()
    (folder / "films").mkdir()
    for name, (size, elements, _) in FILMS.items():
        left, right, markers = regions(*size)
        pixels = (200 + 2800 * (left | right) + 1300 * markers).astype(
            np.uint16
        )  # a network at half of the range sees the lungs
        film(folder / "films" / f"{name}.dcm", pixels=pixels, StudyInstanceUID=study, **elements)
    assert run(folder / "films", folder / "out", kind=DrawnLungs, dicom=True)[0] == 0
    with orthanc(folder) as (archive, _), viewer(archive) as address, chromium(folder / "profile") as page:
        stored = [*(folder / "films").iterdir(), *(folder / "out").glob("*.dcm")]
        DICOMwebClient(f"{archive}/dicom-web").store_instances([pydicom.dcmread(path) for path in stored])
        open_study(page, address, study)
        for name in FILMS:
            show_seg(page, pydicom.dcmread(folder / "out" / f"{name}_lungs.seg.dcm").SeriesInstanceUID)
            seen[name] = settled(page)
            (folder / f"{name}.png").write_bytes(page.picture())
    return seen


@pytest.mark.parametrize("name", FILMS)
def test_the_viewer_draws_each_lung_where_the_film_has_it(shown, name):
    size, _, labels = FILMS[name]
    corners, colours = shown[name]["corners"], shown[name]["colours"]
    canvas, (*lungs, markers) = pixels_of(shown[name]), regions(*size)
    assert sorted(colours) == sorted(set(labels))
    for label in colours:
        lung = np.any([mask for mask, told in zip(lungs, labels) if told == label], axis=0)
        assert apart(drawn(canvas, colours[label]), on_screen(lung, corners, canvas.shape[:2])) <= TOLERANCE, label
    rows = on_screen(np.broadcast_to(np.abs(np.linspace(-1, 1, size[0]))[:, None] > 0.7, size), corners, canvas.shape[:2])
    assert apart((canvas.mean(-1) > 60) & rows, on_screen(markers, corners, canvas.shape[:2])) <= TOLERANCE, "the film itself"
