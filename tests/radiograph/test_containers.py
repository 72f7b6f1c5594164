"""Files around films: DICOM without preamble, directories, archives, headers without end, and words for what cannot be read."""

import gzip
import io
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph import dicom_file
from monai_diffeo.radiograph.reader import read_film

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from pydicom.data import get_testdata_file  # noqa: E402

from tests.radiograph.dicom_factory import CR, corner_film, dataset  # noqa: E402

IMPLICIT, EXPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2"))
FILM = corner_film()


def content_of(pixels=FILM, syntax=EXPLICIT, **elements):
    if syntax == BIG:
        elements["PixelData"] = pixels.astype(">u2").tobytes()
    stream = io.BytesIO()
    dataset(pixels, syntax=syntax, **elements).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def without_meta(content):
    """From the first element of the dataset on."""
    return content[144 + int.from_bytes(content[140:144], "little") :]


def refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FilmError) as caught:
        read_film(path)
    return caught.value


# ---- DICOM without preamble ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.dcm", "a.DICOM", "IM0001", "1.2.840.5"])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
@pytest.mark.parametrize("cut", ["128 bytes", "and DICM", "and group 2"])
def test_dicom_without_preamble_is_the_same_film(tmp_path, name, syntax, cut):
    content = content_of(syntax=syntax)
    (tmp_path / name).write_bytes({"128 bytes": content[128:], "and DICM": content[132:]}.get(cut, without_meta(content)))
    if (syntax, cut) == (DEFLATED, "and group 2"):
        with pytest.raises(FilmError, match="NotAFilm"):
            read_film(tmp_path / name)
        return
    film = read_film(tmp_path / name)
    np.testing.assert_array_equal(film.pixels, FILM)
    assert film.details["transfer_syntax"] == syntax and film.details["modality"] == "CR"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"])
def test_compressed_without_preamble(tmp_path, syntax):
    ds = dataset(np.tile(FILM, (4, 4)))
    ds.compress(syntax, generate_instance_uid=False)
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    (tmp_path / "a.dcm").write_bytes(stream.getvalue()[132:])
    np.testing.assert_array_equal(read_film(tmp_path / "a.dcm").pixels, np.tile(FILM, (4, 4)))
    bare = without_meta(stream.getvalue())
    assert refused(tmp_path, "b.dcm", bare).code == "DamagedFile"  # no one knows how they are compressed


def test_faults_of_a_film_without_preamble_keep_their_codes(tmp_path):
    for code, elements in {
        "MissingElement": {"Rows": None},
        "TooLarge": {"Rows": 65535, "Columns": 65535},
        "NoPixelData": {"PixelData": None},
        "TruncatedPixels": {"PixelData": FILM.tobytes()[:-2]},
    }.items():
        assert refused(tmp_path, "a.dcm", without_meta(content_of(**elements))).code == code
    assert refused(tmp_path, "b.dcm", content_of()[132:-40]).code == "TruncatedPixels"


def meta_without_syntax():
    content = content_of()
    at = content.find(b"\x02\0\x10\0UI")
    return content[:at] + content[at + 8 + content[at + 6] :]


def test_a_missing_transfer_syntax_is_said(tmp_path):
    for content in (meta_without_syntax(), meta_without_syntax()[132:], content_of()[:132] + without_meta(content_of())):
        error = refused(tmp_path, "a.dcm", content)
        assert error.code == "MissingElement" and "TransferSyntaxUID" in error.sentence


@pytest.mark.parametrize("shift", [1, 2, 3, 60, 129, 131, 133, 134, 140])
def test_a_shifted_file_is_no_film(tmp_path, shift):
    assert refused(tmp_path, "a.dcm", content_of()[shift:]).code == "NotAFilm"


def test_other_content_is_no_film(tmp_path):
    random = np.random.default_rng(1)
    for head in (
        b"",
        b"\x08\0",
        b"\x02\0\0\0",
        b"\0\x08\0\x16UI",
        b"\x08\0\x05\0CS",
        b"\x08\0\x16\0UI\x1a\0",
        b"\x02\0\0\0UL\4\0",
    ):
        for size in (4, 60, 3000):
            assert refused(tmp_path, "a.dcm", head + random.bytes(size)).code == "NotAFilm"
            assert refused(tmp_path, "a.dcm", head + bytes(size)).code == "NotAFilm"
    nifti = nibabel.Nifti1Image(FILM.T.astype(np.int16), np.eye(4)).to_bytes()
    assert refused(tmp_path, "a.dcm", nifti).code == "UnsupportedFile"
    assert refused(tmp_path, "a.nii", without_meta(content_of())).code == "UnsupportedFile"
    assert refused(tmp_path, "a.dcm", nifti[1:]).code == "NotAFilm"


def test_nothing_about_the_patient_is_parsed_without_preamble(tmp_path):
    (tmp_path / "a.dcm").write_bytes(without_meta(content_of(PatientName="SECRET^NAME", PatientID="SECRET")))
    film = read_film(tmp_path / "a.dcm")
    assert "SECRET" not in repr(film.details)


# ---- directories, archives, documents ------------------------------------------------------------------------------


def test_a_dicomdir_has_its_own_code(tmp_path):
    with open(get_testdata_file("DICOMDIR"), "rb") as stream:
        directory = stream.read()
    for name in ("DICOMDIR", "dicomdir", "index.dcm", "IM0001"):
        error = refused(tmp_path, name, directory)
        assert error.code == "DicomDirectory" and "table of contents" in error.sentence
    assert refused(tmp_path, "x.dcm", directory[132:]).code == "DicomDirectory"  # without preamble
    assert refused(tmp_path, "DICOMDIR", b"anything").code == "DicomDirectory"  # by its name


def zip_of(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("film.dcm", content)
    return stream.getvalue()


def tar_of(content, mode="w"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        entry = tarfile.TarInfo("film.dcm")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize(
    "name, content, code, words",
    [
        ("a.zip", lambda: zip_of(content_of()), "UnsupportedFile", "zip archive. Unpack it first"),
        ("a.dcm", lambda: zip_of(content_of()), "UnsupportedFile", "zip archive. Unpack it first"),
        ("a", lambda: b"PK\5\6" + bytes(18), "UnsupportedFile", "zip archive"),
        ("a.tar", lambda: tar_of(content_of()), "UnsupportedFile", "Unpack it first"),
        ("a.tar.gz", lambda: tar_of(content_of(), "w:gz"), "UnsupportedFile", "Unpack it first"),
        ("a.dcm.gz", lambda: gzip.compress(content_of()), "UnsupportedFile", "gzip archive. Unpack it first"),
        ("a.dcm", lambda: gzip.compress(content_of()), "UnsupportedFile", "gzip archive. Unpack it first"),
        ("a.7z", lambda: b"7z\xbc\xaf\x27\x1c" + bytes(99), "UnsupportedFile", "Unpack it first"),
        ("a.rar", lambda: b"Rar!\x1a\x07\x01\0" + bytes(99), "UnsupportedFile", "Unpack it first"),
        ("a.pdf", lambda: b"%PDF-1.7\n", "UnsupportedFile", "suffix"),
        ("a.dcm", lambda: b"%PDF-1.7\n", "NotAFilm", "PDF document"),
        ("a.dcm", lambda: b'\xef\xbb\xbf<?xml version="1.0"?>', "NotAFilm", "XML document"),
        ("a", lambda: "Sehr geehrte Frau Müller".encode(), "NotAFilm", "is text"),
        ("a", lambda: bytes(400), "NotAFilm", "unknown kind"),
        ("a.dcm", lambda: b"II*\0" + bytes(400), "NotAFilm", "picture of another format"),
        ("a.nii.gz", lambda: gzip.compress(b"hello"), "NotAFilm", "gzip of text"),
    ],
)
def test_other_containers_are_named(tmp_path, name, content, code, words):
    error = refused(tmp_path, name, content())
    assert error.code == code and words in error.sentence


def test_documents_inside_dicom_are_named(tmp_path):
    pdf = content_of(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1", PixelData=None, EncapsulatedDocument=b"%PDF-1.7")
    error = refused(tmp_path, "a.dcm", pdf)
    assert error.code == "NotARadiograph" and "Encapsulated PDF Storage" in error.sentence
    error = refused(tmp_path, "b.dcm", content_of(SOPClassUID="1.2.3.SECRET", PixelData=None))
    assert error.code == "NoPixelData" and "SECRET" not in error.sentence


# ---- words for transfer syntaxes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax, words",
    [
        ("1.2.840.10008.1.2.4.110", "JPEG XL"),
        ("1.2.840.10008.1.2.4.112", "JPEG XL"),
        ("1.2.840.10008.1.2.4.100", "MPEG2"),
        ("1.2.840.10008.1.2.4.107", "HEVC"),
        ("1.2.840.10008.1.2.4.94", "JPIP Referenced"),
        ("1.2.840.10008.1.2.4.95", "JPIP Referenced Deflate"),
        ("1.2.840.10008.1.2.7.1", "SMPTE"),
        ("1.2.840.10008.1.2.1.98", "Encapsulated Uncompressed"),
        ("1.2.840.10008.1.2.8.1", "Deflated Image Frame"),
        ("1.2.840.10008.1.2.4.52", "JPEG Extended (Process 3 and 5)"),
        ("1.2.840.10008.1.2.6.2", "XML"),
        ("1.2.840.113619.5.2", "unknown"),
        ("1.2.840.10008.1.2.77", "unknown"),
        (CR, "Computed Radiography Image Storage"),
        ("SECRET", "unknown"),
    ],
)
def test_a_transfer_syntax_without_decoder_is_named(tmp_path, syntax, words):
    content, filler = content_of(), b"\x02\0\x10\0UI" + struct.pack("<H", 20) + EXPLICIT.encode() + b"\0"
    assert filler in content
    stated = syntax.encode() + b"\0" * (len(syntax) % 2)
    content = content.replace(filler, b"\x02\0\x10\0UI" + struct.pack("<H", len(stated)) + stated)
    error = refused(tmp_path, "a.dcm", content)
    assert error.code == "UnreadablePixels" and words in error.sentence and "SECRET" not in error.sentence


def test_float_pixels(tmp_path):
    assert refused(tmp_path, "a.dcm", content_of(PixelData=None, FloatPixelData=bytes(4 * FILM.size))).code == "UnsupportedFile"


# ---- headers without end -------------------------------------------------------------------------------------------

SEQUENCE, ITEM, END = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\0\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
NO_LENGTH = b"\xff\xff\xff\xff"


def with_sequence(items, content=None):
    """A film with this at the start of its dataset: a sequence of studies, which is not read."""
    content = content or content_of()
    start = len(content) - len(without_meta(content))
    return content[:start] + SEQUENCE + items + END + content[start:]


def test_a_header_of_millions_of_items_is_not_parsed(tmp_path, monkeypatch):
    """16 MB of empty items: pydicom makes an object of each."""
    (tmp_path / "few.dcm").write_bytes(with_sequence((ITEM + bytes(4)) * 2000))
    np.testing.assert_array_equal(read_film(tmp_path / "few.dcm").pixels, FILM)
    bomb = with_sequence((ITEM + bytes(4)) * 2**21)
    made, born = [], pydicom.Dataset.__init__
    monkeypatch.setattr(pydicom.Dataset, "__init__", lambda *a, **k: (made.append(1), born(*a, **k))[1])
    start = time.process_time()
    assert refused(tmp_path, "a.dcm", bomb).code == "TooLarge"
    assert time.process_time() - start < 5 and len(made) < 2**16
    assert refused(tmp_path, "b.dcm", bomb[132:]).code == "TooLarge"


def test_whichever_read_is_the_last_one(tmp_path, monkeypatch):
    """pydicom catches what some of its reads raise."""
    bomb = with_sequence((ITEM + bytes(4)) * 3000)
    for reads in range(500, 510):
        monkeypatch.setattr(dicom_file, "_MAX_READS", reads)
        assert refused(tmp_path, "a.dcm", bomb).code == "TooLarge"


def test_a_deflated_header_of_millions_of_items_is_not_parsed(tmp_path, monkeypatch):
    content = content_of(syntax=DEFLATED)
    start = len(content) - len(without_meta(content))
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = squeeze.compress(SEQUENCE + (ITEM + bytes(4)) * 2**21) + squeeze.flush()
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: pytest.fail("pydicom inflated it"))
    assert refused(tmp_path, "a.dcm", content[:start] + body).code == "TooLarge"


@pytest.mark.parametrize("depth", [300, 100_000])
def test_deep_nesting_is_a_film_error(tmp_path, depth):
    error = refused(tmp_path, "a.dcm", with_sequence((ITEM + NO_LENGTH + SEQUENCE) * depth))
    assert error.code == "DamagedFile" and "nested too deep" in error.sentence


def test_giant_private_elements_are_passed_over(tmp_path):
    content = content_of()
    start = len(content) - len(without_meta(content))
    private = b"\x07\0\x10\0LO\4\0ACME" + b"\x07\0\x01\x10OB\0\0" + struct.pack("<I", 2**25) + bytes(2**25)
    tracemalloc.start()
    (tmp_path / "a.dcm").write_bytes(content[:start] + private + content[start:])
    np.testing.assert_array_equal(read_film(tmp_path / "a.dcm").pixels, FILM)
    endless = private[:12] + b"\x07\0\x01\x10OB\0\0" + NO_LENGTH + bytes(2**22)
    assert refused(tmp_path, "b.dcm", content[:start] + endless).code in ("DamagedFile", "NoPixelData", "TruncatedPixels")
    tracemalloc.stop()


def test_an_element_longer_than_the_file(tmp_path):
    content = content_of(ImageComments="x" * 40)
    at = content.find(b"\x20\0\x00\x40LT")
    error = refused(tmp_path, "a.dcm", content[: at + 6] + b"\xff\xff" + content[at + 8 :])
    assert error.code in ("NoPixelData", "MissingElement", "DamagedFile")


def test_extra_bytes_after_the_pixels(tmp_path):
    (tmp_path / "a.dcm").write_bytes(content_of(PixelData=FILM.tobytes() + bytes(100)))
    np.testing.assert_array_equal(read_film(tmp_path / "a.dcm").pixels, FILM)
    assert refused(tmp_path, "b.dcm", content_of(PixelData=FILM.tobytes() * 2)).code == "UnreadablePixels"


# ---- NIfTI bombs ---------------------------------------------------------------------------------------------------


def nifti_with_extension(size, offset=400):
    header = bytearray(nibabel.Nifti1Image(FILM.T.astype(np.int16), np.eye(4)).to_bytes()[:348])
    struct.pack_into("<f", header, 108, offset)
    pixels = FILM.T.astype("<i2").tobytes(order="F")
    return bytes(header) + b"\1\0\0\0" + struct.pack("<ii", size, 6) + bytes(40) + pixels


def test_nifti_extensions(tmp_path):
    (tmp_path / "a.nii").write_bytes(nifti_with_extension(48))
    np.testing.assert_array_equal(read_film(tmp_path / "a.nii").pixels, FILM)
    for size in (0, 7, -16, 64, 2**31 - 16):
        bomb = gzip.compress(nifti_with_extension(size) + bytes(2**22), 1)
        start = time.process_time()
        assert refused(tmp_path, "b.nii.gz", bomb).code == "DamagedFile"
        assert time.process_time() - start < 3
    assert (
        refused(tmp_path, "c.nii.gz", gzip.compress(nifti_with_extension(2**30, offset=0) + bytes(2**22))).code == "DamagedFile"
    )


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_shape((20_000, 20_000))
    header.set_data_dtype(np.int16)
    bomb = gzip.compress(header.binaryblock + bytes(4 + 2**25), 1)
    tracemalloc.start()
    assert refused(tmp_path, "a.nii.gz", bomb).code == "TooLarge"
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
