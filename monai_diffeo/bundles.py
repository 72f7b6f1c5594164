"""The bundles that come with the package: where they are, and by which names they are found."""

from __future__ import annotations

import json
import logging
import sys
from os import PathLike
from pathlib import Path

from monai_diffeo.errors import WeightsError

__all__ = ["bundle_names", "bundle_root", "bundles_folder", "canonicalizer_folder", "find_bundle"]

_log = logging.getLogger(__name__)
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


def bundle_root(given: str | PathLike[str], name: str) -> str:
    """The folder, absolute, of the bundle whose configuration says ``bundle_root``, wherever the working directory is.

    MONAI's command and MONAI Label set ``bundle_root``. MONAI Deploy does not: it stays ``"."``, and only Python's path names
    the folder of a bundle, or nothing where the bundle is one file. So for ``"."`` it is the first bundle with the title of our
    bundle ``name`` among the working directory and the folders of Python's path, or else our bundle, and a line of the log.
    """
    if str(given) != "." or _METADATA.is_file():
        return str(Path(given).absolute())
    ours = bundles_folder() / name
    title = _title(ours)
    for folder in map(Path, sys.path) if title is not None else ():
        if _title(folder) == title:
            return str(folder.absolute())
    _log.warning("bundle_root(): the working directory is no bundle; weights come from that of the package, %s.", name)
    return str(ours)


def _title(folder: Path) -> str | None:
    try:
        return json.loads((folder / _METADATA).read_bytes()).get("name")
    except (OSError, ValueError, AttributeError):
        return None


def canonicalizer_folder(name: str | PathLike[str], who: str = "canonicalizer_folder()") -> Path:
    """The folder of a canonicaliser: the one that is named, or ``models/energy`` of the bundle that is named by path or name.

    Raises:
        WeightsError: as :func:`find_bundle`.
    """
    folder = find_bundle(name, who, _CANONICALIZER)
    below = not (folder / _CANONICALIZER.name).is_file() and (folder / _CANONICALIZER).is_file()
    return (folder / _CANONICALIZER).parent if below else folder
