"""The grey scale of a film: no window spoils it, the header's contradictions are named, and grey stored as colour is grey."""

import io

import numpy as np
import pytest

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph import dicom, voi
from monai_diffeo.radiograph.dicom_file import dataset_of_file
from monai_diffeo.radiograph.film import DETAILS
from monai_diffeo.radiograph.packaged import packaged_film
from monai_diffeo.radiograph.reader import read_film

pydicom = pytest.importorskip("pydicom")
image_module = pytest.importorskip("PIL.Image")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

from tests.radiograph.dicom_factory import dataset, lut_item, save  # noqa: E402

_GREY = np.random.default_rng(0).normal(size=(60, 50)).cumsum(0).cumsum(1)
SMOOTH = np.rint(200 + 3500 * (_GREY - _GREY.min()) / np.ptp(_GREY)).astype(np.uint16)
"""A film of 12 bits without symmetry, between 200 and 3700."""
BYTES = (SMOOTH // 16).astype(np.uint8)
FULL, WINDOW = "the full range was used", {"WindowCenter": 2000, "WindowWidth": 4000}
RAMP = np.linspace(0, 4095, 4096)
WHITE = np.where(np.arange(4096) < 250, RAMP * 16, 4095)
LITTLE, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
JPEG = "1.2.840.10008.1.2.4.50"


def notes(film):
    return film.details["notes"].split("; ") if film.details["notes"] else []


def same_picture(film, expected):
    """The same grey scale up to scale and offset."""
    return np.corrcoef(film.pixels.ravel(), expected.ravel())[0, 1] == pytest.approx(1, abs=1e-5)


def item(**elements):
    """One item of a sequence; a dataset among the elements becomes a sequence of its own."""
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, Sequence([value]) if isinstance(value, Dataset) else value)
    return made


# ---- windows and tables that spoil a film --------------------------------------------------------------------------


def cut(table):
    """A table that is shorter than it declares."""
    table.LUTData = table.LUTData[:100]
    return table


SPOILT = [
    ({"WindowCenter": 128, "WindowWidth": 256}, ["window 1 ", FULL], "none"),
    ({"WindowCenter": [128, 2000], "WindowWidth": [256, 4000]}, ["window 1 ", "window 2 was used"], "window"),
    (
        {"WindowCenter": [1, 9, 2000], "WindowWidth": [2, 0, 4000]},
        ["window 1 leaves 1 grey value and", "window 2 is unusable and", "window 3 was used"],
        "window",
    ),
    ({"RescaleSlope": 16, "RescaleIntercept": 0, **WINDOW}, ["window 1 ", FULL], "none"),
    ({"RescaleSlope": 2, "RescaleIntercept": 0, **WINDOW}, ["window 1 clips", FULL], "none"),
    ({"VOILUTSequence": lut_item(WHITE), **WINDOW}, ["table 1 ", "window 1 was used"], "window"),
    ({"VOILUTSequence": lut_item(4095 - WHITE)}, ["table 1 ", FULL], "none"),
    ({"VOILUTSequence": Sequence([lut_item(WHITE), lut_item(RAMP)])}, ["table 1 ", "table 2 was used"], "lut"),
    ({"VOILUTSequence": lut_item(RAMP // 1024 * 1000)}, ["table 1 leaves 4 grey values and was not used", FULL], "none"),
    ({"VOILUTSequence": lut_item(RAMP.astype(np.uint16).byteswap())}, ["table 1 changes the order", FULL], "none"),
    ({"VOILUTSequence": lut_item(RAMP, first=60000)}, ["table 1 leaves 1 grey value and was not used", FULL], "none"),
    ({"VOILUTSequence": lut_item(RAMP, first=2500)}, ["table 1 clips", FULL], "none"),
    ({"VOILUTSequence": cut(lut_item(RAMP))}, ["table 1 is unusable and was not used", FULL], "none"),
    ({"WindowCenter": [128, 500, 2000], "WindowWidth": 256}, ["window 1 ", "window 2 is", "window 3 is", FULL], "none"),
    ({"WindowWidth": 256}, ["window 1 is unusable and was not used", FULL], "none"),
    ({"VOILUTFunction": "SIGMOID", "WindowCenter": 2000, "WindowWidth": 20}, ["window 1 clips", FULL], "none"),
]


@pytest.mark.parametrize("elements, said, kind", SPOILT)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_what_spoils_a_film_is_not_used_and_the_next_is_tried(tmp_path, elements, said, kind, photometric):
    film = read_film(save(tmp_path / "a.dcm", SMOOTH, PhotometricInterpretation=photometric, **elements))
    assert same_picture(film, SMOOTH if photometric == "MONOCHROME2" else -1.0 * SMOOTH)
    assert [note[: len(start)] for note, start in zip(notes(film), said, strict=True)] == said
    assert sum("was not used" in note for note in notes(film)) == len(said) - 1
    assert (film.details["voi"], film.details["voi_refused"]) == (kind, True)


@pytest.mark.parametrize("ends", [(0, 100), (2, 98), (5, 95), (10, 90), (-50, 150)])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_ordinary_windows_are_used_without_a_note(tmp_path, ends, function):
    low, high = (np.quantile(SMOOTH, np.clip(end / 100, 0, 1)) + 35 * min(end, 0) + 35 * max(end - 100, 0) for end in ends)
    window = {"WindowCenter": (low + high) / 2, "WindowWidth": high - low, "VOILUTFunction": function}
    film = read_film(save(tmp_path / "a.dcm", SMOOTH, **window))
    assert (film.details["voi"], film.details["voi_refused"], film.details["notes"]) == ("window", False, "")


@pytest.mark.parametrize("plateau", [0, 4000])
def test_collimation_and_direct_exposure_may_be_clipped(tmp_path, plateau):
    """Half of the frame is a noisy border: a window of the film inside it is an ordinary window."""
    framed = np.pad(SMOOTH // 8 + 2000, 12)
    framed[framed == 0] = plateau + np.random.default_rng(1).integers(0, 10, (framed == 0).sum())
    film = read_film(save(tmp_path / "a.dcm", framed, WindowCenter=2250, WindowWidth=520))
    assert film.details["voi"] == "window" and same_picture(
        read_film(save(tmp_path / "b.dcm", SMOOTH)), film.pixels[12:-12, 12:-12]
    )


def test_padding_is_no_part_of_what_is_clipped(tmp_path):
    padded = np.pad(SMOOTH, 40)
    padded[padded == 0] = np.random.default_rng(2).integers(3750, 4096, (padded == 0).sum())
    window = {"WindowCenter": 1900, "WindowWidth": 3600}
    film = read_film(save(tmp_path / "a.dcm", padded, PixelPaddingValue=4095, PixelPaddingRangeLimit=3750, **window))
    assert film.details["voi"] == "window" and film.details["padding_pixels"] == padded.size - SMOOTH.size


def test_line_of_the_rule_on_the_packaged_film():
    """Refused before a fifth is lost; all windows that a reader would set are kept."""
    try:
        film = read_film(packaged_film()).pixels[::4, ::4].ravel().astype(float)
    except FilmError:
        pytest.skip("pydicom-data is not installed")

    def fault(low, high):
        low, high = np.percentile(film, [low, high])
        return voi.fault(film, np.clip(film, low, high))[0]

    assert all(fault(low, high) == "" for low, high in ((0, 100), (1, 99), (5, 95), (10, 90), (0, 85), (15, 100)))
    assert all("clips" in fault(low, high) for low, high in ((0, 70), (30, 100), (0, 50), (50, 100), (30, 70)))


def test_the_rule_looks_at_a_sample_of_a_large_film(monkeypatch):
    large = np.tile(SMOOTH.ravel().astype(float), 100)
    assert voi.fault(large, np.minimum(large, np.quantile(large, 0.6)))[0] == "clips 37 % of the film"


@pytest.mark.parametrize("slope, intercept", [(1, 0), (1, -1024), (2, 0), (0.5, 7)])
def test_stored_values_are_rescaled(tmp_path, slope, intercept):
    film = read_film(save(tmp_path / "a.dcm", SMOOTH, RescaleSlope=slope, RescaleIntercept=intercept))
    np.testing.assert_array_equal(film.pixels, (SMOOTH.astype(np.float64) * slope + intercept).astype(np.float32))


def test_falling_tables_and_slopes_are_named(tmp_path):
    down = lut_item(RAMP[::-1])
    film = read_film(save(tmp_path / "a.dcm", SMOOTH, VOILUTSequence=down))
    assert same_picture(film, -1.0 * SMOOTH) and notes(film) == ["table 1 inverts the grey scale"]
    assert film.details["voi_refused"] is False
    film = read_film(save(tmp_path / "b.dcm", SMOOTH, ModalityLUTSequence=down))
    assert same_picture(film, -1.0 * SMOOTH) and notes(film) == ["modality table inverts the grey scale"]
    film = read_film(save(tmp_path / "c.dcm", SMOOTH, RescaleSlope=-1, RescaleIntercept=0))
    assert same_picture(film, -1.0 * SMOOTH) and notes(film) == ["negative RescaleSlope inverts the grey scale"]


@pytest.mark.parametrize(
    "photometric, shape, note, sign",
    [
        ("MONOCHROME2", "INVERSE", "PresentationLUTShape INVERSE contradicts MONOCHROME2 and was applied", -1),
        ("MONOCHROME1", "IDENTITY", "PresentationLUTShape IDENTITY contradicts MONOCHROME1, which was applied", -1),
        ("MONOCHROME1", "INVERSE", "", -1),
        ("MONOCHROME2", "IDENTITY", "", 1),
    ],
)
def test_contradictions_of_polarity_are_named(tmp_path, photometric, shape, note, sign):
    film = read_film(save(tmp_path / "a.dcm", SMOOTH, PhotometricInterpretation=photometric, PresentationLUTShape=shape))
    assert film.details["notes"] == note and same_picture(film, sign * SMOOTH.astype(float))


# ---- functional groups ---------------------------------------------------------------------------------------------

SLOPE = item(PixelValueTransformationSequence=item(RescaleSlope=-1, RescaleIntercept=4095))
TWO_WINDOWS = item(FrameVOILUTSequence=item(WindowCenter=[128, 2000], WindowWidth=[256, 4000]))


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", LITTLE])
def test_functional_groups_hold_slope_and_windows(tmp_path, groups, syntax):
    film = read_film(save(tmp_path / "a.dcm", SMOOTH, syntax=syntax, **{groups: SLOPE}))
    np.testing.assert_array_equal(film.pixels, 4095 - SMOOTH)
    assert notes(film) == ["negative RescaleSlope inverts the grey scale"]
    film = read_film(save(tmp_path / "b.dcm", SMOOTH, syntax=syntax, **{groups: TWO_WINDOWS}))
    assert film.details["voi"] == "window" and notes(film)[1:] == ["window 2 was used"]


def test_top_level_goes_before_functional_groups(tmp_path):
    options = {"RescaleSlope": 2, "RescaleIntercept": 0, "WindowCenter": 4000, "WindowWidth": 8000}
    plain = read_film(save(tmp_path / "a.dcm", SMOOTH, **options))
    both = item(**{sequence: SLOPE[sequence].value[0] for sequence in SLOPE.dir("Sequence")})
    both.FrameVOILUTSequence = TWO_WINDOWS.FrameVOILUTSequence
    grouped = read_film(save(tmp_path / "b.dcm", SMOOTH, SharedFunctionalGroupsSequence=both, **options))
    np.testing.assert_array_equal(grouped.pixels, plain.pixels)
    assert grouped.details == plain.details


def test_the_frame_goes_before_what_all_frames_share(tmp_path):
    shared = item(PixelValueTransformationSequence=item(RescaleSlope=3, RescaleIntercept=0))
    groups = {"SharedFunctionalGroupsSequence": shared, "PerFrameFunctionalGroupsSequence": SLOPE}
    np.testing.assert_array_equal(read_film(save(tmp_path / "a.dcm", SMOOTH, **groups)).pixels, 4095 - SMOOTH)


def test_patient_data_in_functional_groups_stays_undecoded(tmp_path):
    group = item(PixelValueTransformationSequence=item(RescaleSlope=-1, RescaleIntercept=4095), PatientName="SECRET^NAME")
    path = save(tmp_path / "a.dcm", SMOOTH, SharedFunctionalGroupsSequence=group)
    parsed = dataset_of_file(pydicom, path, dicom._TAGS)
    dicom.displayed(parsed, SMOOTH)
    left = parsed.SharedFunctionalGroupsSequence[0]._dict[pydicom.tag.Tag("PatientName")]
    assert isinstance(left, pydicom.dataelem.RawDataElement)
    assert "SECRET" not in repr(read_film(path))


# ---- bits above BitsStored (entry 13 of the catalogue) -------------------------------------------------------------


@pytest.mark.parametrize("syntax", [LITTLE, "1.2.840.10008.1.2.2"])
@pytest.mark.parametrize("bits", [8, 11])
def test_too_few_bits_stored_are_refused(tmp_path, bits, syntax):
    waves = np.rint(1900 + 1700 * np.sin(np.add.outer(np.arange(90) / 25, np.arange(80) / 40))).astype(np.uint16)
    content = waves.astype(">u2" if syntax.endswith(".2") else "<u2").tobytes()
    with pytest.raises(FilmError, match=r"DamagedFile: The grey values use more bits than BitsStored declares\."):
        read_film(save(tmp_path / "a.dcm", waves, syntax=syntax, bits=bits, PixelData=content))


def test_an_overlay_above_bits_stored_is_left_out_with_a_note(tmp_path):
    overlay = SMOOTH.copy()
    overlay[20:30, 10:25] |= 0x1000
    film = read_film(save(tmp_path / "a.dcm", overlay))
    np.testing.assert_array_equal(film.pixels, SMOOTH)
    assert notes(film) == ["bits above BitsStored were taken off 5.0% of the pixels"]


def test_signed_pixels_carry_their_sign_above_bits_stored(tmp_path):
    film = read_film(save(tmp_path / "a.dcm", SMOOTH.astype(np.int16) - 2048))
    assert film.details["notes"] == "" and film.pixels.min() < 0


# ---- grey as colour ------------------------------------------------------------------------------------------------

EQUAL, GREYS = "stored in colour with equal channels", "stored with a palette of greys"


def colour(*channels, planar=0, photometric="RGB", **options):
    pixels = np.stack(channels, -1)
    content = np.moveaxis(pixels, -1, 0).tobytes() if planar else pixels.tobytes()
    content = options.pop("PixelData", content)
    kind = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": planar, "PixelData": content}
    return dataset(pixels[None], bits=8 * pixels.itemsize, **kind, **options)


def written(path, made, compress=None):
    if compress:
        made.compress(compress, generate_instance_uid=False)
    made["PixelData"].VR = "OB" if made.BitsAllocated == 8 or compress else "OW"
    made.save_as(path, enforce_file_format=True)
    return path


def jpeg(pixels, **options):
    stream = io.BytesIO()
    image_module.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("compress, planar", [(None, 0), (None, 1), (RLE, 0), ("1.2.840.10008.1.2.4.90", 0)])
@pytest.mark.parametrize("pixels", [BYTES, SMOOTH])
def test_equal_channels_are_a_grey_film(tmp_path, compress, planar, pixels):
    if compress and not pydicom.pixels.get_encoder(compress).is_available:
        pytest.skip("no encoder: " + compress)
    film = read_film(written(tmp_path / "a.dcm", colour(pixels, pixels, pixels, planar=planar), compress))
    np.testing.assert_array_equal(film.pixels, pixels)
    assert notes(film) == [EQUAL] and film.details["inverted"] is False and set(film.details) == set(DETAILS)


def test_a_window_does_not_apply_to_colour(tmp_path):
    made = colour(BYTES, BYTES, BYTES, WindowCenter=2000, WindowWidth=4000, RescaleSlope=-1, PresentationLUTShape="INVERSE")
    np.testing.assert_array_equal(read_film(written(tmp_path / "a.dcm", made)).pixels, BYTES)


def test_ybr_with_a_grey_chroma(tmp_path):
    grey = np.full_like(BYTES, 128)
    film = read_film(written(tmp_path / "a.dcm", colour(BYTES, grey, grey, photometric="YBR_FULL")))
    np.testing.assert_allclose(film.pixels, BYTES, atol=1)
    pairs = np.stack([BYTES[:, ::2], BYTES[:, 1::2], grey[:, ::2], grey[:, ::2]], -1).tobytes()
    film = read_film(written(tmp_path / "b.dcm", colour(BYTES, grey, grey, photometric="YBR_FULL_422", PixelData=pairs)))
    np.testing.assert_allclose(film.pixels, BYTES, atol=1)
    rounded = colour(BYTES, grey - 1, grey - 1, photometric="YBR_FULL")
    np.testing.assert_allclose(read_film(written(tmp_path / "c.dcm", rounded)).pixels, BYTES, atol=2)
    with pytest.raises(FilmError, match="ColourImage"):
        read_film(written(tmp_path / "d.dcm", colour(BYTES, grey - 4, grey, photometric="YBR_FULL")))


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_of_equal_channels(tmp_path, subsampling):
    wide = np.kron(BYTES[:48, :48], np.ones((4, 4), np.uint8))
    frame = jpeg(np.stack([wide] * 3, -1), quality=60, subsampling=subsampling)
    options = {"syntax": JPEG, "photometric": "YBR_FULL_422", "PixelData": pydicom.encaps.encapsulate([frame])}
    film = read_film(written(tmp_path / "a.dcm", colour(wide, wide, wide, **options)))
    assert notes(film) == [EQUAL] and np.abs(film.pixels - wide).mean() < 6
    marked = np.stack([wide] * 3, -1)
    marked[60:80, 60:90] = 255, 200, 0
    options["PixelData"] = pydicom.encaps.encapsulate([jpeg(marked, quality=60, subsampling=subsampling)])
    with pytest.raises(FilmError, match="ColourImage"):
        read_film(written(tmp_path / "b.dcm", colour(wide, wide, wide, **options)))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_coloured_pixel_is_colour(tmp_path, channel):
    channels = [BYTES.copy() for _ in range(3)]
    channels[channel][5, 7] += 1
    with pytest.raises(FilmError, match="ColourImage"):
        read_film(written(tmp_path / "a.dcm", colour(*channels)))


def palette(red, green, blue, bits=16):
    elements = {}
    for name, entries in (("Red", red), ("Green", green), ("Blue", blue)):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        elements[f"{name}PaletteColorLookupTableData"] = np.asarray(entries, "<u2").tobytes()
    return elements


def test_a_palette_of_greys(tmp_path):
    greys = np.linspace(0, 65535, 256)[::-1].astype(np.uint16)
    film = read_film(
        save(tmp_path / "a.dcm", BYTES, bits=8, PhotometricInterpretation="PALETTE COLOR", **palette(*[greys] * 3))
    )
    np.testing.assert_array_equal(film.pixels, greys[BYTES])
    assert notes(film) == [GREYS]
    blue = greys.copy()
    blue[BYTES[3, 3]] += 900
    made = palette(greys, greys, blue)
    with pytest.raises(FilmError, match="ColourImage"):
        read_film(save(tmp_path / "b.dcm", BYTES, bits=8, PhotometricInterpretation="PALETTE COLOR", **made))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_pictures_of_equal_channels(tmp_path, mode):
    picture = image_module.fromarray(BYTES).convert(mode)
    picture.save(tmp_path / "a.png")
    film = read_film(tmp_path / "a.png")
    np.testing.assert_array_equal(film.pixels, BYTES)
    assert film.details["notes"] == (GREYS if mode == "P" else EQUAL)
    if mode != "P":
        picture.putpixel((3, 3), (9, 10, 9) if mode == "RGB" else (9, 9, 9, 100))
        picture.save(tmp_path / "b.png")
        with pytest.raises(FilmError, match="ColourImage"):
            read_film(tmp_path / "b.png")


def test_jpeg_pictures_of_equal_channels(tmp_path):
    wide = np.kron(BYTES, np.ones((4, 4), np.uint8))
    (tmp_path / "a.jpg").write_bytes(jpeg(np.stack([wide] * 3, -1), quality=95))
    film = read_film(tmp_path / "a.jpg")
    assert film.details["notes"] == EQUAL and np.abs(film.pixels - wide).mean() < 3
    image_module.fromarray(wide).convert("CMYK").save(tmp_path / "b.jpg")
    with pytest.raises(FilmError, match="ColourImage"):
        read_film(tmp_path / "b.jpg")


# ---- what the header says of the grey scale, and does not mean -----------------------------------------------------


@pytest.mark.parametrize(
    "entries, fault",
    [
        (np.r_[np.linspace(0, 65535, 2000), np.full(2096, 65535)], "clips"),
        (np.repeat([0, 65535], 2048), "leaves 2 grey values"),
        (np.tile(np.r_[np.arange(256), np.arange(256)[::-1]] * 256, 8), "changes the order of the grey values"),
    ],
)
def test_a_modality_table_that_leaves_no_picture_is_not_used(tmp_path, entries, fault):
    table = lut_item(np.asarray(entries).astype(int), bits=16)
    film = read_film(save(tmp_path / "a.dcm", SMOOTH, ModalityLUTSequence=table))
    np.testing.assert_array_equal(film.pixels, SMOOTH)
    assert notes(film)[0].startswith(f"modality table {fault}") and notes(film)[0].endswith("was not used")


def test_padding_that_names_the_anatomy_is_not_used(tmp_path):
    middle = int(np.median(SMOOTH))
    film = read_film(save(tmp_path / "a.dcm", SMOOTH, PixelPaddingValue=0, PixelPaddingRangeLimit=middle))
    np.testing.assert_array_equal(film.pixels, SMOOTH)
    assert "of the film's middle and was not used" in film.details["notes"] and film.details["padding_pixels"] == 0
