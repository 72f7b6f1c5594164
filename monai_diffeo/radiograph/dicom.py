"""Films as DICOM: one frame, one grey sample a pixel. Header, pixels, grey scale and geometry have modules of their own."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph import dicom_pixels
from monai_diffeo.radiograph.dicom_geometry import GEOMETRY_TAGS, pixel_spacing
from monai_diffeo.radiograph.dicom_header import HEADER_TAGS, check_header, stated_details
from monai_diffeo.radiograph.film import (
    DETAILS,
    EXPORT,
    MAX_FILE_BYTES,
    PASSED_ON,
    Film,
    check_values,
    in_plane_affine,
    library,
)
from monai_diffeo.radiograph.grayscale import GREY_TAGS, displayed

__all__ = ["DIRECTORY", "read_dicom"]

DIRECTORY = "A DICOMDIR is a table of contents, no film. The films are the files that it names; they are read one by one."

_BIG_ENDIAN, _DEFLATED, _DIRECTORY_CLASS = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.3.10"
_GUESSED = {(True, True): "1.2.840.10008.1.2", (False, True): "1.2.840.10008.1.2.1", (False, False): _BIG_ENDIAN}
_MAX_READS = 2**17  # of a header: pydicom takes one or more for each element and for each item of a sequence
_BARE = "The content begins as DICOM without preamble,"
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_TAGS = [*HEADER_TAGS, *GEOMETRY_TAGS, *GREY_TAGS, *dicom_pixels.PIXEL_TAGS, "SOPClassUID"]
"""Only these are read: no element about the patient is ever parsed."""


def read_dicom(path: Path) -> Film:
    """Read a DICOM radiograph as displayed: rescale, window or table, then one flip where the file asks for it.

    The preamble of the file may be missing. The spacing is the first usable one of PixelSpacing, ImagerPixelSpacing and
    NominalScannedPixelSpacing. Errors are those of `monai_diffeo.radiograph.reader.read_film`.
    """
    pydicom = library("pydicom", "Reading DICOM needs pydicom: pip install 'pydicom>=3.0.2'.")
    try:
        dataset = _dataset(pydicom, path)
        dicom_pixels.check_pixels_exist(dataset, path)
        check_header(dataset)
        dicom_pixels.check_pixel_data(pydicom, dataset)
    except (FilmError, *PASSED_ON):
        raise
    except EOFError:
        raise FilmError("TruncatedPixels", dicom_pixels.CUT) from None
    except Exception:
        raise FilmError("DamagedFile", f"The DICOM header is damaged or was cut. {EXPORT}") from None
    try:
        raw = dicom_pixels.stored_values(pydicom, dataset)
        check_values(raw)
        pixels, grey = displayed(dataset, raw)
        check_values(pixels)
        spacing, source = pixel_spacing(dataset)
        return Film(pixels, in_plane_affine(spacing), spacing, source, "dicom", DETAILS | grey | stated_details(dataset))
    except (FilmError, *PASSED_ON):
        raise
    except Exception:
        raise FilmError("UnreadablePixels", f"The pixels do not fit their DICOM header. {EXPORT}") from None


class _Stream(io.BufferedReader):
    """A DICOM file that counts its reads: of millions of sequence items pydicom would make gigabytes of objects.

    It begins at the preamble, or at the first element if that is missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(os.fspath(path)))
        self.left = _MAX_READS + path.stat().st_size // 2**12
        self.start = 4 if self.peek(4)[:4] == b"DICM" else 0
        self.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        self.check()
        return super().read(size)

    def check(self) -> None:
        if self.left < 0:
            raise FilmError("TooLarge", f"The DICOM header has too many elements and items. {EXPORT}") from None

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return super().seek(offset + (self.start if whence == 0 else 0), whence) - self.start

    def tell(self) -> int:
        return super().tell() - self.start


def _dataset(pydicom, path: Path):
    with _Stream(path) as stream:
        bare = pydicom.filereader.read_preamble(stream, force=True) is None
        try:
            return _parsed(pydicom, stream, bare)
        except RecursionError:
            raise FilmError("DamagedFile", f"The sequences of the DICOM header are nested too deep. {EXPORT}") from None
        except (FilmError, *PASSED_ON):
            raise
        except Exception:
            stream.check()  # pydicom hides what a read raises
            if bare:
                raise FilmError("NotAFilm", f"{_BARE} but cannot be read as such.") from None
            raise


def _parsed(pydicom, stream: _Stream, bare: bool):
    meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("MediaStorageSOPClassUID") == _DIRECTORY_CLASS:
        raise FilmError("DicomDirectory", DIRECTORY)
    stated = "TransferSyntaxUID" in meta
    if stated:
        dicom_pixels.check_syntax(pydicom, meta.TransferSyntaxUID)
    elif meta or not bare:
        raise FilmError("MissingElement", f"The DICOM element TransferSyntaxUID is missing. {EXPORT}")
    if stated and meta.TransferSyntaxUID == _DEFLATED:
        _check_deflated(stream)
    stream.seek(0)
    dataset = pydicom.dcmread(stream, force=True, specific_tags=_TAGS)
    if bare and not any(keyword in dataset for keyword in ("SOPClassUID", "Rows", "PixelData")):
        raise FilmError("NotAFilm", f"{_BARE} but has no element of a film.")
    if not stated:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(_GUESSED[dataset.original_encoding])
    return dataset


def _check_deflated(stream: _Stream) -> None:
    """Inflate in pieces that are thrown away: pydicom would inflate a bomb whole, and count neither bytes nor items."""
    inflate, size, items = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    piece = stream.read(2**20)
    while piece and not inflate.eof:
        inflated = inflate.decompress(piece, 2**22)
        size, items = size + len(inflated), items + inflated.count(_ITEM_TAG)
        if size > MAX_FILE_BYTES or items > _MAX_READS:
            raise FilmError("TooLarge", f"The deflated DICOM file grows over {MAX_FILE_BYTES} bytes or {_MAX_READS} items.")
        piece = inflate.unconsumed_tail or stream.read(2**20)
