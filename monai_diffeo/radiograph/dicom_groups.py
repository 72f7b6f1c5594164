"""Functional groups: where an enhanced DICOM object of one frame keeps what a classic one keeps at its top level."""

from __future__ import annotations

__all__ = ["GROUP_TAGS", "functional_groups", "macro"]

GROUP_TAGS = ["PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"]


def functional_groups(dataset) -> list:
    """Items (pydicom datasets) that hold for the first frame: its own, then the shared one; empty for a classic object.

    pydicom's ``specific_tags`` bounds the top level only. What stands inside an item stays undecoded bytes until it is asked
    for by name, so ask for macros by name and never walk through an item.
    """
    return [dataset[keyword].value[0] for keyword in GROUP_TAGS if dataset.get(keyword)]


def macro(dataset, name: str):
    """First item of the macro, such as ``"PixelMeasuresSequence"``, that holds for the first frame; None if there is none."""
    return next((group[name].value[0] for group in functional_groups(dataset) if group.get(name)), None)
