"""Pixels of compressed films: no bit above BitsStored, no frame without its end, no frame that contradicts its header."""

import io
import struct
import zlib

import numpy as np
import pytest

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph import dicom_pixels
from monai_diffeo.radiograph.codestream import codestream, rle_is_short, with_noise
from monai_diffeo.radiograph.reader import read_film

pydicom = pytest.importorskip("pydicom")
image_module = pytest.importorskip("PIL.Image")
pytest.importorskip("libjpeg")
openjpeg = pytest.importorskip("openjpeg")

from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.encaps import encapsulate, get_frame  # noqa: E402

from tests.radiograph.dicom_factory import CR, corner_film, dataset  # noqa: E402

UNCOMPRESSED, BIG, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"
BASELINE, EXTENDED, LOSSLESS, JPEG_LS, NEAR, J2K, J2K_LOSSY, HTJ2K = (
    f"1.2.840.10008.1.2.4.{end}" for end in ("50", "51", "70", "80", "81", "90", "91", "201")
)
FILM = np.tile(corner_film(), (4, 3))
NOISE = np.random.default_rng(5).integers(0, 4096, (40, 56)).astype(np.uint16)
GREY = (NOISE // 16).astype(np.uint8)
ITEM = b"\xfe\xff\x00\xe0"
OVERLAY = (np.indices(FILM.shape).sum(0) % 3 == 0) * np.uint16(0x5000)


def write(path, stored, frame=None, **elements):
    """A film; with ``frame`` it is encapsulated as it stands."""
    ds = stored if isinstance(stored, pydicom.Dataset) else dataset(stored, **elements)
    if frame is not None:
        fragments = frame if isinstance(frame, list) else [frame]
        ds.PixelData = b"".join(ITEM + len(part).to_bytes(4, "little") + part for part in [b"", *fragments])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    ds.save_as(path, enforce_file_format=True)
    return path


def code_of(path):
    with pytest.raises(FilmError) as caught:
        read_film(path)
    return caught.value.code


def jpeg(pixels, **options):
    stream = io.BytesIO()
    image_module.fromarray(pixels).save(stream, "JPEG", **{"quality": 92} | options)
    return stream.getvalue()


def jpeg_2000(pixels, **options):
    stream = io.BytesIO()
    image_module.fromarray(pixels).save(stream, "JPEG2000", **{"no_jp2": True} | options)
    return stream.getvalue()


def lossless_jpeg(pixels, precision):
    """JPEG process 14 with the left neighbour as prediction, and one table of codes with five bits each."""
    values = pixels.astype(np.int64) & (2**precision - 1)
    before = np.hstack([np.vstack([[[2 ** (precision - 1)]], values[:-1, :1]]), values[:, :-1]])
    difference = (values - before + 2**15) % 2**16 - 2**15
    bits = []
    for number in difference.ravel().tolist():
        size = abs(number).bit_length()
        low = number if number > 0 else number + 2**size - 1
        bits.append(f"{size:05b}" + (f"{low:0{size}b}" if 0 < size < 16 else ""))
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")
    table = b"\xff\xc4\0\x24\0" + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    size = b"\xff\xc3\0\x0b" + bytes([precision]) + struct.pack(">HH", *pixels.shape) + b"\x01\x01\x11\0"
    return b"\xff\xd8" + size + table + b"\xff\xda\0\x08\x01\x01\0\x01\0\0" + scan + b"\xff\xd9"


def rle(pixels):
    """Each byte of the values is a segment, the highest first, in pieces that are copied."""
    planes = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(-1, 1).view(np.uint8).T
    segments = []
    for plane in planes:
        pieces = [plane[at : at + 128].tobytes() for at in range(0, len(plane), 128)]
        segment = b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)
        segments.append(segment + b"\x80" * (len(segment) % 2))
    starts = np.cumsum([64, *map(len, segments[:-1])]).tolist()
    return struct.pack("<16L", len(segments), *starts, *[0] * (15 - len(starts))) + b"".join(segments)


def packed(syntax, stored, bits):
    """The dataset of a film that is compressed with all its bits."""
    ds = dataset(stored, bits=bits)
    if syntax == LOSSLESS:
        ds = dataset(stored, bits=bits, syntax=LOSSLESS)
        ds.PixelData = encapsulate([lossless_jpeg(stored.view(f"u{stored.dtype.itemsize}"), bits)])
        ds["PixelData"].is_undefined_length = True
    elif syntax == BIG:
        ds = dataset(stored, bits=bits, syntax=BIG, PixelData=stored.astype(stored.dtype.newbyteorder(">")).tobytes())
    elif syntax == RLE:
        ds.PixelData, ds.file_meta.TransferSyntaxUID = encapsulate([rle(stored)]), RLE
        ds["PixelData"].is_undefined_length = True
    elif syntax != UNCOMPRESSED:
        ds.compress(J2K if syntax == HTJ2K else syntax, generate_instance_uid=False)
        ds.file_meta.TransferSyntaxUID = syntax
    return ds


def of_pydicom(name, **elements):
    ds = pydicom.dcmread(get_testdata_file(name))
    ds.Modality, ds.SOPClassUID = "CR", CR
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds, get_frame(ds.PixelData, 0, number_of_frames=1)


# ---- bits above BitsStored -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [UNCOMPRESSED, BIG, RLE, LOSSLESS, J2K, HTJ2K])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_bits_stored_are_no_grey_values(tmp_path, syntax, signed):
    """An overlay in the unused bits, or the lost sign of negative values: 12 bits are stored, 16 are compressed."""
    right = FILM.astype(np.int16) - 2048 if signed else FILM
    stored = (right & 0xFFF) | OVERLAY
    ds = packed(syntax, stored.astype(right.dtype), 16)
    ds.BitsStored, ds.HighBit = 12, 11
    film = read_film(write(tmp_path / "a.dcm", ds))
    np.testing.assert_array_equal(film.pixels, right)
    assert "bits above BitsStored were taken off" in film.details["notes"]


@pytest.mark.parametrize("syntax", [UNCOMPRESSED, RLE, LOSSLESS, J2K])
def test_no_bits_above_no_note(tmp_path, syntax):
    film = read_film(write(tmp_path / "a.dcm", packed(syntax, FILM, 12)))
    np.testing.assert_array_equal(film.pixels, FILM)
    assert film.details["notes"] == ""


@pytest.mark.parametrize("allocated, bits", [(8, 6), (32, 12), (32, 20)])
@pytest.mark.parametrize("syntax", [UNCOMPRESSED, BIG, RLE])
@pytest.mark.parametrize("signed", [False, True])
def test_other_sizes_of_a_pixel(tmp_path, allocated, bits, syntax, signed):
    if (allocated, syntax) == (8, BIG):
        pytest.skip("bytes have no order")
    right = corner_film(bits=bits).astype(np.int64) % 2**bits - (2 ** (bits - 1) if signed else 0)
    garbage = right & (2**bits - 1) | (1 << (allocated - 2))
    stored = garbage.astype(f"u{allocated // 8}").view(f"{'i' if signed else 'u'}{allocated // 8}")
    ds = packed(syntax, stored, allocated)
    ds.BitsStored, ds.HighBit = bits, bits - 1
    np.testing.assert_array_equal(read_film(write(tmp_path / "a.dcm", ds)).pixels, right)


@pytest.mark.parametrize("bits", [9, 12])
def test_jpeg_ls(tmp_path, bits):
    ds, _ = of_pydicom("MR_small_jpeg_ls_lossless.dcm")
    whole = ds.pixel_array.astype(np.int64)
    ds.BitsStored, ds.HighBit = bits, bits - 1
    span = 2**bits
    right = (whole + span // 2) % span - span // 2
    assert (right != whole).any()
    del ds.WindowCenter, ds.WindowWidth
    np.testing.assert_array_equal(read_film(write(tmp_path / "a.dcm", ds)).pixels, right)


def test_bits_stored_that_is_too_small_is_noted(tmp_path):
    """12 bits of data and 8 declared: the picture is broken, as it is everywhere, and the report says why."""
    film = read_film(write(tmp_path / "a.dcm", FILM, bits=8))
    np.testing.assert_array_equal(film.pixels, FILM & 255)
    share = np.mean(FILM > 255)
    assert f"taken off {share:.1%} of the pixels" in film.details["notes"]


@pytest.mark.parametrize("signed", [False, True])
def test_what_a_lossy_codec_adds_to_white_does_not_become_black(tmp_path, signed):
    """12 bits in a codestream of 16: noise beside saturated pixels leaves the range of 12 bits."""
    white = np.kron(np.random.default_rng(2).integers(0, 2, (12, 12)), np.ones((5, 5))) * 4095 - (2048 if signed else 0)
    white = white.astype(np.int16 if signed else np.uint16)
    ds = dataset(white, bits=16)
    ds.compress(J2K_LOSSY, j2k_cr=[6], generate_instance_uid=False)
    decoded = openjpeg.decode(get_frame(ds.PixelData, 0, number_of_frames=1))
    assert decoded.max() > white.max() + 2
    ds.BitsStored, ds.HighBit = 12, 11
    film = read_film(write(tmp_path / "a.dcm", ds))
    np.testing.assert_array_equal(film.pixels, np.clip(decoded, white.min(), white.max()))


def test_overlay_in_a_lossy_codestream(tmp_path):
    ds = dataset(FILM // 2 | (np.indices(FILM.shape)[0] > 40) * np.uint16(0x4000), bits=16)
    ds.compress(J2K_LOSSY, j2k_cr=[2], generate_instance_uid=False)
    ds.BitsStored, ds.HighBit = 12, 11
    shown = read_film(write(tmp_path / "a.dcm", ds)).pixels
    assert np.median(np.abs(shown - FILM // 2)) < 9 and np.mean(np.abs(shown - FILM // 2) > 100) < 0.02


def test_jpeg_of_8_bits_in_16_bits_allocated(tmp_path):
    stored = GREY.astype(np.uint16)
    for syntax, frame in ((LOSSLESS, lossless_jpeg(GREY, 8)), (BASELINE, jpeg(GREY))):
        film = read_film(write(tmp_path / "a.dcm", stored, frame, syntax=syntax, bits=8))
        expected = GREY if syntax == LOSSLESS else np.asarray(image_module.open(io.BytesIO(frame)))
        assert np.abs(film.pixels - expected).max() <= (0 if syntax == LOSSLESS else 1)


# ---- frames that end early -----------------------------------------------------------------------------------------

FRAMES = {
    "baseline": (GREY, 8, BASELINE, lambda: jpeg(GREY)),
    "baseline with restarts": (GREY, 8, BASELINE, lambda: jpeg(GREY, restart_marker_blocks=5)),
    "progressive": (GREY, 8, BASELINE, lambda: jpeg(GREY, progressive=True)),
    "lossless": (NOISE, 12, LOSSLESS, lambda: lossless_jpeg(NOISE, 12)),
    "jpeg 2000": (NOISE, 12, J2K, lambda: get_frame(packed(J2K, NOISE, 12).PixelData, 0)),
    "jpeg 2000 in tiles": (GREY, 8, J2K, lambda: jpeg_2000(GREY, tile_size=(16, 16))),
    "jpeg 2000 in a box": (GREY, 8, J2K, lambda: jpeg_2000(GREY, no_jp2=False)),
    "high-throughput": (NOISE, 12, HTJ2K, lambda: get_frame(packed(J2K, NOISE, 12).PixelData, 0)),
    "rle": (NOISE, 12, RLE, lambda: get_frame(packed(RLE, NOISE, 12).PixelData, 0)),
}
FILES = {"extended": "JPGExtended.dcm", "jpeg-ls": "MR_small_jpeg_ls_lossless.dcm", "near": "JPEGLSNearLossless_16.dcm"}


def whole(name):
    if name in FILES:
        return of_pydicom(FILES[name])
    stored, bits, syntax, make = FRAMES[name]
    return dataset(stored, bits=bits, syntax=syntax), make()


def marked(frame):
    """The frame without its end marker, and the marker; RLE has none."""
    at = frame.rfind(b"\xff\xd9")
    return (frame[:at], b"\xff\xd9") if frame[:2] in (b"\xff\xd8", b"\xff\x4f") or frame[4:8] == b"jP  " else (frame, b"")


@pytest.mark.parametrize("name", [*FRAMES, *FILES])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.85, 0.97])
@pytest.mark.parametrize("end", ["", "marker", "zeros"])
def test_a_frame_that_ends_early_is_no_film(tmp_path, name, share, end):
    """Cut anywhere inside intact DICOM framing; also with an end marker after the cut, or filled up with zeros."""
    ds, frame = whole(name)
    body, marker = marked(frame)
    if name == "extended":
        body = body[: int(0.9 * len(body))] if share > 0.9 else body  # its last tenth is one black area, which zeros give too
    cut = body[: int(share * len(body))].rstrip(b"\xff")
    cut += {"": b"", "marker": marker, "zeros": bytes(len(frame) - len(cut))}[end]
    assert code_of(write(tmp_path / "a.dcm", ds, cut)) == "TruncatedPixels"


@pytest.mark.parametrize("name", [*FRAMES, *FILES])
@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff", bytes(1000), b"\0\xff" * 9])
def test_a_whole_frame_may_have_padding_and_fragments(tmp_path, name, padding):
    ds, frame = whole(name)
    expected = read_film(write(tmp_path / "a.dcm", ds, frame)).pixels
    frame += padding
    np.testing.assert_array_equal(read_film(write(tmp_path / "b.dcm", ds, frame + b"\0" * (len(frame) % 2))).pixels, expected)
    third = len(frame) // 6 * 2
    fragments = [frame[:third], frame[third : 2 * third], frame[2 * third :] + b"\0" * (len(frame) % 2)]
    np.testing.assert_array_equal(read_film(write(tmp_path / "c.dcm", ds, fragments)).pixels, expected)


def test_a_lost_fragment(tmp_path):
    ds, frame = whole("lossless")
    assert code_of(write(tmp_path / "a.dcm", ds, [frame[:2000], frame[2000:3000]])) == "TruncatedPixels"


def test_a_lost_restart_interval(tmp_path):
    """The end marker is there and each interval is whole; only their number tells."""
    ds, frame = whole("baseline with restarts")
    starts = [at for at in range(len(frame) - 1) if frame[at] == 0xFF and 0xD0 <= frame[at + 1] <= 0xD7]
    assert len(starts) == 6  # 35 blocks
    for first, last in ((1, 2), (-1, None)):
        lost = frame[: starts[first]] + (frame[starts[last] :] if last else b"\xff\xd9")
        assert code_of(write(tmp_path / "a.dcm", ds, lost)) == "TruncatedPixels"


def test_lost_tiles(tmp_path):
    ds, frame = whole("jpeg 2000 in tiles")
    last = frame.rfind(b"\xff\x90\0\x0a")
    assert openjpeg.decode(frame[:last] + b"\xff\xd9").shape == GREY.shape  # the decoder fills them up
    assert code_of(write(tmp_path / "a.dcm", ds, frame[:last] + b"\xff\xd9")) == "TruncatedPixels"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}, {"optimize": True}])
def test_jpeg_files(tmp_path, options):
    content = jpeg(GREY, **options)
    (tmp_path / "a.jpg").write_bytes(content + b"\0trailing bytes")
    np.testing.assert_array_equal(read_film(tmp_path / "a.jpg").pixels, image_module.open(io.BytesIO(content)))
    for share in (0.5, 0.8, 0.95):
        cut = content[: int(share * len(content))].rstrip(b"\xff")
        for end in (b"", b"\xff\xd9", bytes(3000)):
            (tmp_path / "b.jpg").write_bytes(cut + end)
            assert code_of(tmp_path / "b.jpg") == "TruncatedPixels"


def test_noise_before_the_end_is_never_seen_in_a_whole_frame():
    for name in ("baseline", "baseline with restarts", "progressive"):
        frame = whole(name)[1]
        assert len(with_noise(frame)) > len(frame) + 50
        noisy = image_module.open(io.BytesIO(with_noise(frame)))
        np.testing.assert_array_equal(noisy, image_module.open(io.BytesIO(frame)))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows, head=b"", width=56, height=40, bits=8, interlaced=0, tail=None):
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + size + head + chunk(b"IDAT", rows) + (chunk(b"IEND", b"") if tail is None else tail)


ROWS = b"".join(b"\0" + row.tobytes() for row in GREY)
BOMB = zlib.compress(bytes(2**27), 9)


@pytest.mark.parametrize(
    "content, code",
    [
        (png(zlib.compress(ROWS[:-57])), "TruncatedPixels"),  # a whole stream of 39 rows; Pillow makes the last one black
        (png(zlib.compress(ROWS)[:-200]), "TruncatedPixels"),
        (png(zlib.compress(ROWS), tail=b""), "TruncatedPixels"),
        (png(zlib.compress(ROWS)[:-4] + b"\1\2\3\4"), "UnreadablePixels"),  # the checksum of the rows
        (png(zlib.compress(ROWS), width=9000, height=9000), "TooLarge"),
        (png(zlib.compress(ROWS), chunk(b"zTXt", b"a\0\0" + BOMB)), "UnreadablePixels"),
        (png(zlib.compress(ROWS), chunk(b"iCCP", b"a\0\0" + BOMB)), "UnreadablePixels"),
        (png(BOMB, width=56, height=40), None),
    ],
)
def test_png_files(tmp_path, content, code):
    (tmp_path / "a.png").write_bytes(content)
    if code:
        assert code_of(tmp_path / "a.png") == code
    else:  # more rows than declared are left out, and not unpacked
        assert code_of(tmp_path / "a.png") == "ConstantImage"


def test_whole_png_files(tmp_path):
    (tmp_path / "a.png").write_bytes(png(zlib.compress(ROWS)))
    np.testing.assert_array_equal(read_film(tmp_path / "a.png").pixels, GREY)
    for bits in (1, 2, 4):
        rows = b"".join(b"\0" + row.tobytes() for row in GREY[:, : 7 * bits])
        (tmp_path / "b.png").write_bytes(png(zlib.compress(rows), bits=bits))
        assert read_film(tmp_path / "b.png").pixels.shape == GREY.shape
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [GREY[row::rows, column::columns] for row, column, rows, columns in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    (tmp_path / "c.png").write_bytes(png(zlib.compress(rows), interlaced=1))
    np.testing.assert_array_equal(read_film(tmp_path / "c.png").pixels, GREY)


# ---- limits and contradictions before anything is decoded ----------------------------------------------------------


def patched(frame, marker, at, value):
    start = frame.find(marker) + at
    return frame[:start] + value + frame[start + len(value) :]


@pytest.mark.parametrize(
    "name, marker, at, value",
    [
        ("baseline", b"\xff\xc0", 5, b"\0\0"),  # the height comes later, after the scan
        ("baseline", b"\xff\xc0", 7, b"\0\0"),
        ("baseline", b"\xff\xc0", 5, b"\xff\xff"),
        ("baseline", b"\xff\xc0", 5, struct.pack(">HH", *GREY.T.shape)),
        ("baseline", b"\xff\xc0", 4, b"\x0c"),
        ("jpeg-ls", b"\xff\xf7", 5, b"\0\0"),
        ("jpeg-ls", b"\xff\xf7", 9, b"\x03"),
        ("lossless", b"\xff\xc3", 5, b"\0\0"),
        ("extended", b"\xff\xc1", 7, b"\0\0"),
        ("jpeg 2000", b"\xff\x51", 38, struct.pack(">H", 100)),
        ("jpeg 2000", b"\xff\x51", 38, struct.pack(">H", 16384)),
        ("jpeg 2000", b"\xff\x51", 40, b"\x25"),
        ("jpeg 2000 in a box", b"\xff\x51", 38, struct.pack(">H", 100)),
    ],
)
def test_a_frame_that_contradicts_its_header_is_not_decoded(tmp_path, monkeypatch, name, marker, at, value):
    ds, frame = whole(name)
    monkeypatch.setattr(dicom_pixels, "_decoded", lambda *a: pytest.fail("it was decoded"))
    assert code_of(write(tmp_path / "a.dcm", ds, patched(frame, marker, at, value))) == "DamagedFile"


@pytest.mark.parametrize("name", ["jpeg 2000", "jpeg 2000 in a box"])
def test_a_large_jpeg_2000_frame_is_not_decoded(tmp_path, monkeypatch, name):
    ds, frame = whole(name)
    monkeypatch.setattr(dicom_pixels, "_decoded", lambda *a: pytest.fail("it was decoded"))
    path = write(tmp_path / "a.dcm", ds, patched(frame, b"\xff\x51", 6, struct.pack(">II", 60000, 60000)))
    assert code_of(path) in ("DamagedFile", "TruncatedPixels")  # the tiles are too few, too


@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_box_without_length_does_not_hang(tmp_path, length):
    """pydicom looks for the codestream of a JP2 file without end."""
    ds, frame = whole("jpeg 2000 in a box")
    frame = frame[:12] + struct.pack(">I", length) + frame[16:]
    assert code_of(write(tmp_path / "a.dcm", ds, frame)) == "UnreadablePixels"


def test_another_kind_of_frame(tmp_path):
    assert code_of(write(tmp_path / "a.dcm", GREY, b"\x89PNG" * 99, syntax=BASELINE, bits=8)) == "UnreadablePixels"
    assert code_of(write(tmp_path / "b.dcm", GREY, b"SECRET" * 99, syntax=RLE, bits=8)) == "UnreadablePixels"
    path = write(tmp_path / "c.dcm", *whole("baseline"))
    path.write_bytes(path.read_bytes().replace(BASELINE.encode(), UNCOMPRESSED.ljust(len(BASELINE), "\0").encode()))
    assert code_of(path) == "DamagedFile"


def test_too_many_fragments(tmp_path):
    ds, frame = whole("baseline")
    assert code_of(write(tmp_path / "a.dcm", ds, [frame] + [b""] * 10_000)) == "TooLarge"
    ds.PixelData = b"\xfe\xff\x00\xe0" + struct.pack("<I", 2**20) + bytes(2**20) + ds.PixelData[8:]
    assert code_of(write(tmp_path / "b.dcm", ds)) == "TooLarge"


def test_panic_of_the_rle_decoder_is_a_film_error(tmp_path):
    """One flipped bit: a run is too long, and the decoder raises what is no Exception."""
    film = corner_film(4, 4)
    ds = dataset(film)
    ds.compress(RLE, generate_instance_uid=False)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    flipped = frame[:66] + bytes([frame[66] ^ 0x20]) + frame[67:]
    assert code_of(write(tmp_path / "a.dcm", film, flipped, syntax=RLE)) == "UnreadablePixels"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_no_fault_of_the_film_is_passed_on(tmp_path, monkeypatch, error):
    def fail(*a):
        raise error

    path = write(tmp_path / "a.dcm", FILM)
    for place in ("dicom_pixels.codestream", "dicom.displayed", "reader.read_dicom", "dicom_file._dataset"):
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(f"monai_diffeo.radiograph.{place}", fail)
            read_film(path)


def test_any_other_error_of_a_decoder_is_a_film_error(tmp_path, monkeypatch):
    class Panic(BaseException):
        pass

    def fail(*a):
        raise Panic("SECRET")

    monkeypatch.setattr("monai_diffeo.radiograph.reader.read_dicom", fail)
    with pytest.raises(FilmError, match="UnreadablePixels") as caught:
        read_film(write(tmp_path / "a.dcm", FILM))
    assert "SECRET" not in str(caught.value) and caught.value.__suppress_context__


@pytest.mark.parametrize(
    "syntax, package", [(BASELINE, "pylibjpeg-libjpeg"), (JPEG_LS, "pylibjpeg-libjpeg"), (J2K, "pylibjpeg-openjpeg")]
)
def test_a_missing_decoder_is_named(tmp_path, monkeypatch, syntax, package):
    name = {BASELINE: "baseline", JPEG_LS: "jpeg-ls", J2K: "jpeg 2000"}[syntax]
    path = write(tmp_path / "a.dcm", *whole(name))
    monkeypatch.setattr(pydicom.pixels.get_decoder(syntax), "_available", {})
    with pytest.raises(FilmError, match=f"UnreadablePixels.*pip install 'pylibjpeg.*{package}"):
        read_film(path)


# ---- the parsers themselves ----------------------------------------------------------------------------------------


def test_header_of_a_codestream():
    assert codestream(jpeg(GREY))[:5] == (40, 56, 1, 8, 0xC0)
    assert codestream(lossless_jpeg(NOISE, 12)) == (40, 56, 1, 12, 0xC3, True, None)
    assert codestream(jpeg_2000(GREY, no_jp2=False)) == codestream(jpeg_2000(GREY)) == (40, 56, 1, 8, 0, True, False)
    assert codestream(b"\1\0\0\0" + bytes(60)) is None and codestream(b"") is None
    assert codestream(b"\xff\xd8\xff\xd9") == (0, 0, 0, 0, 0, False, None)


def test_rle_segments():
    header = struct.pack("<16L", 2, 64, 69, *[0] * 13)
    full = b"\xfd\7\0\7\x80" + b"\x03abcd\x00e"  # 4 + 1 bytes and a byte that does nothing; 4 + 1 bytes
    assert not rle_is_short(header + full, 2, 5) and rle_is_short(header + full, 2, 6)
    assert rle_is_short(header + full[:-3], 2, 5) and rle_is_short(header + full[:3], 2, 5) and rle_is_short(header[:50], 2, 5)
    assert rle_is_short(struct.pack("<16L", 1, 64, *[0] * 14) + b"\x04abc", 1, 5)  # five bytes are promised
    assert not rle_is_short(b"SECRET" * 20, 2, 5)


@pytest.mark.parametrize("representation", [0, 1])
def test_a_sign_that_contradicts_the_codestream(tmp_path, representation):
    """With the wrong sign, white is black; below half of the scale both signs say the same."""
    for values, code in ((FILM, "DamagedFile" if representation else None), (FILM // 2, None)):
        ds = packed(J2K, values, 12)
        ds.PixelRepresentation = representation
        path = write(tmp_path / "a.dcm", ds)
        if code:
            assert code_of(path) == code
        else:
            np.testing.assert_array_equal(read_film(path).pixels, values)
