"""What a file is, by its first bytes: a format of films, or something else that has a name."""

from __future__ import annotations

import re

__all__ = ["FILM_FORMATS", "HEAD_BYTES", "content_of_head"]

HEAD_BYTES = 352  # a NIfTI-1 header and its extension flag
FILM_FORMATS = ("dicom", "png", "jpeg", "nifti")

_KINDS = {
    # with preamble, without its 128 bytes, or an element of group 2 or 8 with a VR or a length that fits
    "dicom": rb".{128}DICM|DICM|[\x02\x08]\0..(?:[A-Z]{2}|..\0\0)|\0\x08..[A-Z]{2}",
    "png": rb"\x89PNG\r\n\x1a\n",
    "jpeg": rb"\xff\xd8\xff",
    "nifti": rb".{344}n\+1\0|.{4}n\+2\0",
    "a zip archive": rb"PK\x03\x04|PK\x05\x06",
    "a packed archive": rb"7z\xbc\xaf|Rar!\x1a|.{257}ustar|\xfd7zXZ|BZh\d",
    "a PDF document": rb"%PDF-",
    "an XML document": rb"(?:\xef\xbb\xbf)?\s*<\?xml",
    "a picture of another format": rb"II\*\0|MM\0\*|GIF8|\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "one half of a NIfTI pair": rb".{344}ni1\0",
    "text": rb"[\t\n\r\f -~\x80-\xff]+\Z",
}


def content_of_head(head: bytes) -> str:
    """One of `FILM_FORMATS`, the name of something else, or ``""``; ``head`` are the first `HEAD_BYTES` bytes of a file.

    Example:
        >>> content_of_head(b"PK" + bytes([3, 4])), content_of_head(b"Dear colleague"), content_of_head(bytes(200))
        ('a zip archive', 'text', '')
    """
    return next((kind for kind, pattern in _KINDS.items() if re.match(pattern, head, re.DOTALL)), "")
