"""The overlay: a configuration file that wraps the inferer of any bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_diffeo.errors import ConfigError
from monai_diffeo.inferers.diffeo import DiffeoInferer

__all__ = ["overlaid_inferer", "overlay_path"]

_LAST = "the overlay must be the last of the configuration files"  # MONAI's error says it where a later file has an inferer
_QUOTED = "configs/inference.json"


def overlay_path() -> str:
    """Path of the overlay configuration. It puts a :class:`DiffeoInferer` around ``inferer`` of a bundle, under the same id.

    Stack it behind the bundle's ``inference.json``, in the bundle's folder. The ids ``diffeo_folder`` (a folder for
    :func:`load_canonicalizer`), ``diffeo_mode``, ``diffeo_outputs`` (see :class:`DiffeoInferer`) and ``diffeo_enabled`` can be
    set on the command line. ``diffeo_inner`` says where the bundle's own inferer is, from the working directory::

        python -m monai.bundle run --config_file "['configs/inference.json', '$OVERLAY']" --diffeo_folder FOLDER ...

    ``monai-diffeo wrap`` prints this command, with options for a bundle that has other ids.
    """
    return str(Path(__file__).with_name("diffeo_overlay.json"))


def overlaid_inferer(bundle_root: Any = None, **arguments: Any) -> DiffeoInferer:
    """The inferer of the overlay.

    Args:
        bundle_root: of the bundle whose inferer is wrapped.
        arguments: of :class:`DiffeoInferer`.

    Raises:
        ConfigError: if the inferer was taken from another bundle, the one in the working directory.
    """
    arguments.pop(_LAST, None)
    here, there = Path(_QUOTED), Path(str(bundle_root or "."), _QUOTED)
    if here.is_file() and there.is_file() and not here.samefile(there):
        remedy = "Run in the bundle's own folder, or write one file for it: `monai-diffeo wrap BUNDLE --write`."
        raise ConfigError(
            f"overlaid_inferer(): the working directory must be 'bundle_root', {there.parents[1]}, for the overlay reads "
            f"{_QUOTED} there, got another bundle: {Path.cwd()}. {remedy}"
        )
    return DiffeoInferer(**arguments)
