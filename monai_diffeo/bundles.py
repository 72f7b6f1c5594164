"""The bundles that come with the package: where they are, and by which names they are found."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from monai_diffeo.errors import WeightsError

__all__ = ["bundle_names", "bundles_folder", "canonicalizer_folder", "find_bundle"]

_SHORT = {"cxr_lung_segmentation": "cxr", "mnist_genus": "mnist"}
_METADATA, _CANONICALIZER = Path("configs", "metadata.json"), Path("models", "energy", "canonicalizer.json")


def bundles_folder() -> Path:
    """Folder of the bundles: in the package that a wheel installed, or beside the package in a clone."""
    package = Path(__file__).resolve().parent
    return installed if (installed := package / "_bundles").is_dir() else package.parent / "bundles"


def bundle_names(content: Path = _METADATA) -> dict[str, Path]:
    """Folders of the bundles that have a certain file, by their name: a short one, such as ``cxr``, or that of the folder."""
    folders = sorted(path for path in bundles_folder().glob("*") if (path / content).is_file())
    return {_SHORT.get(folder.name, folder.name): folder for folder in folders}


def find_bundle(name: str | PathLike[str], who: str = "find_bundle()", content: Path = _METADATA) -> Path:
    """The folder that a path names; without such a folder, the bundle of that name, short or long, which has a certain file.

    So a folder ``cxr`` in the current folder comes before the bundle ``cxr``.

    Raises:
        WeightsError: if there is neither; it lists the names.
    """
    if (folder := Path(name)).is_dir():
        return folder
    names = bundle_names(content)
    if found := names.get(str(name)) or next((path for path in names.values() if path.name == str(name)), None):
        return found
    listed = f"the name of a bundle ({', '.join(names)})"
    raise WeightsError(f"{who}: expected a folder or {listed}, got {str(name)!r}. Check the path or the name.")


def canonicalizer_folder(name: str | PathLike[str], who: str = "canonicalizer_folder()") -> Path:
    """The folder of a canonicaliser: the one that is named, or ``models/energy`` of the bundle that is named by path or name.

    Raises:
        WeightsError: as :func:`find_bundle`.
    """
    folder = find_bundle(name, who, _CANONICALIZER)
    below = not (folder / _CANONICALIZER.name).is_file() and (folder / _CANONICALIZER).is_file()
    return (folder / _CANONICALIZER).parent if below else folder
