"""A DICOM file and its elements: with or without preamble, and within limits, before anything is known of the film."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

from monai_diffeo.errors import FilmError
from monai_diffeo.radiograph.film import EXPORT, MAX_FILE_BYTES, PASSED

__all__ = ["DIRECTORY", "dataset_of_file"]

DIRECTORY = "A DICOMDIR is a table of contents, no film. The films are the files that it names; they are read one by one."

_BIG_ENDIAN, _DEFLATED, _DIRECTORY_CLASS = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.3.10"
_GUESSED = {(True, True): "1.2.840.10008.1.2", (False, True): "1.2.840.10008.1.2.1", (False, False): _BIG_ENDIAN}
_NEWER = {"1.2.840.10008.1.2.4.11": "JPEG XL", "1.2.840.10008.1.2.8.": "Deflated Image Frame Compression"}
"""Transfer syntaxes that pydicom has no name for, by their beginning."""

_MAX_READS = 2**16  # of a header: pydicom takes one or more for each element and for each item of a sequence
_ITEM_TAG = b"\xfe\xff\x00\xe0"
_BARE = "The content begins as DICOM without preamble,"


def dataset_of_file(pydicom, path: Path, tags: list[str]):
    """The pydicom dataset of a file, with these elements only; `FilmError` for what is none, anything else for a damaged one.

    Without preamble and without group 2, the transfer syntax is the uncompressed one that the elements are written in.
    """
    with _Stream(path) as stream:
        bare = pydicom.filereader.read_preamble(stream, force=True) is None
        try:
            return _dataset(pydicom, stream, bare, tags)
        except RecursionError:
            raise FilmError("DamagedFile", f"The sequences of the DICOM header are nested too deep. {EXPORT}") from None
        except PASSED:
            raise
        except Exception:
            stream.check()  # pydicom hides what a read raises
            if bare:
                raise FilmError("NotAFilm", f"{_BARE} but cannot be read as such.") from None
            raise


class _Stream(io.BufferedReader):
    """A file that counts its reads: of millions of sequence items pydicom would make gigabytes of objects.

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


def _dataset(pydicom, stream: _Stream, bare: bool, tags: list[str]):
    meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    syntax = meta.get("TransferSyntaxUID")
    if meta.get("MediaStorageSOPClassUID") == _DIRECTORY_CLASS:
        raise FilmError("DicomDirectory", DIRECTORY)
    if syntax:
        _check_syntax(pydicom, syntax)
    elif not bare or "MediaStorageSOPClassUID" in meta:
        raise FilmError("MissingElement", f"The DICOM element TransferSyntaxUID is missing. {EXPORT}")
    if syntax == _DEFLATED:
        _check_deflated(stream)
    stream.seek(0)
    dataset = pydicom.dcmread(stream, force=True, specific_tags=[*tags, "SOPClassUID"])
    known = str(dataset.get("SOPClassUID")).startswith("1.2.840.10008.")
    if bare and not known and "Rows" not in dataset and "PixelData" not in dataset:
        raise FilmError("NotAFilm", f"{_BARE} but has no element of a film.")
    if not syntax:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(_GUESSED[dataset.original_encoding])
    return dataset


def _check_syntax(pydicom, syntax) -> None:
    """Refuse a transfer syntax that no decoder is known for; its text is never given, it could be anything."""
    try:
        pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        known = syntax.name if syntax.keyword else "unknown"
        name = next((name for start, name in _NEWER.items() if syntax.startswith(start)), known)
        came = f"No decoder is known for this transfer syntax ({name})."
        raise FilmError("UnreadablePixels", f"{came} Export the film again, uncompressed.") from None


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
    if not inflate.eof:
        raise FilmError("TruncatedPixels", "The deflated DICOM file ends before its last pixel. Copy it again.")
