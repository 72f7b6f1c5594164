"""How many pixels a compressed frame declares itself: a decoder would obey it, whatever the DICOM header says."""

from __future__ import annotations

__all__ = ["declared_pixels"]

_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def declared_pixels(frame: bytes) -> int | None:
    """Width times height of an encapsulated JPEG, JPEG-LS or JPEG 2000 frame; None if it is of another kind or says nothing."""
    if frame.startswith(b"\xff\x4f\xff\x51"):
        right, bottom, left, top = (_number(frame, at, 4) for at in (8, 12, 16, 20))
        return (right - left) * (bottom - top)
    if frame.startswith(b"\xff\xd8"):
        at = 2
        while at + 9 <= len(frame) and frame[at] == 0xFF:
            if frame[at + 1] in _START_OF_FRAME:
                return _number(frame, at + 5, 2) * _number(frame, at + 7, 2)
            at += 1 if frame[at + 1] == 0xFF else 2 + _number(frame, at + 2, 2)
    return None


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")
