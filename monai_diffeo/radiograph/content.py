"""What a file is, by its first bytes: a format of films, or something else that has a name."""

from __future__ import annotations

__all__ = ["ARCHIVES", "FILM_FORMATS", "HEAD_BYTES", "content_of_head"]

HEAD_BYTES = 352  # a NIfTI-1 header and its extension flag

FILM_FORMATS = ("dicom", "png", "jpeg", "nifti")
ARCHIVES = (
    "a zip archive",
    "a 7z archive",
    "a rar archive",
    "a tar archive",
    "an xz archive",
    "a bzip2 archive",
    "a gzip archive",
)

_MAGIC = [
    ("dicom", 128, b"DICM"),
    ("dicom", 0, b"DICM"),
    ("png", 0, b"\x89PNG\r\n\x1a\n"),
    ("jpeg", 0, b"\xff\xd8\xff"),
    ("nifti", 344, b"n+1\0"),
    ("nifti", 4, b"n+2\0"),
    ("a zip archive", 0, b"PK\x03\x04"),
    ("a zip archive", 0, b"PK\x05\x06"),
    ("a 7z archive", 0, b"7z\xbc\xaf\x27\x1c"),
    ("a rar archive", 0, b"Rar!\x1a\x07"),
    ("a tar archive", 257, b"ustar"),
    ("an xz archive", 0, b"\xfd7zXZ\0"),
    ("a bzip2 archive", 0, b"BZh"),
    ("a PDF document", 0, b"%PDF-"),
    ("an XML document", 0, b"<?xml"),
    ("a TIFF picture", 0, b"II*\0"),
    ("a TIFF picture", 0, b"MM\0*"),
    ("a GIF picture", 0, b"GIF8"),
    ("a JPEG 2000 picture", 0, b"\0\0\0\x0cjP  "),
    ("a JPEG 2000 picture", 0, b"\xff\x4f\xff\x51"),
    ("one half of a NIfTI pair", 344, b"ni1\0"),
]
_TEXT = bytes({9, 10, 12, 13, *range(32, 127), *range(128, 256)})


def content_of_head(head: bytes) -> str:
    """One of `FILM_FORMATS`, the name of something else, or ``""``; ``head`` are the first `HEAD_BYTES` bytes of a file.

    Example:
        >>> content_of_head(b"PK" + bytes([3, 4])), content_of_head(b"Dear colleague"), content_of_head(bytes(200))
        ('a zip archive', 'text', '')
    """
    named = next((name for name, at, magic in _MAGIC if head.startswith(magic, at)), "")
    if named:
        return named
    if _begins_as_dicom(head):
        return "dicom"
    return "" if head.translate(None, _TEXT) else "text"


def _begins_as_dicom(head: bytes) -> bool:
    """Whether this may be DICOM without preamble: an element of group 2 or 8 with a VR, or with a length that fits."""
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    short = int.from_bytes(head[4:8], "little") < 2**16
    little = head[:2] in (b"\x02\0", b"\x08\0") and (explicit or short)
    return len(head) > 8 and (little or (head[:2] == b"\0\x08" and explicit))
