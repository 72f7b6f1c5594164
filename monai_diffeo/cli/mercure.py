"""``monai-diffeo mercure``: a processing module of mercure, which routes DICOM images to containers and takes their results."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from monai_diffeo.cli.segment import opened_bundle
from monai_diffeo.errors import ConfigError
from monai_diffeo.files import write_atomically

__all__ = ["mercure"]

_SETTINGS = {"bundle_root", "enabled", "mode", "tta_samples", "convention", "device", "figures"}


@click.command(
    epilog="""\b
Exit status:
  0  there are results; result.json says which films have none, and why
  1  nothing was run; the last line on stderr says why
  4  no film has a result"""
)
@click.argument("in_dir", envvar="MERCURE_IN_DIR", metavar="[IN_DIR")
@click.argument("out_dir", envvar="MERCURE_OUT_DIR", metavar="OUT_DIR]")
def mercure(in_dir: str, out_dir: str) -> int:
    """Segment the DICOM films of a folder, as a module of mercure.

    The folders are those of MERCURE_IN_DIR and MERCURE_OUT_DIR, or the two arguments. DICOM results and result.json are
    written. The file task.json of the first folder may have the settings mode, enabled, tta_samples, convention, device,
    figures and bundle_root under "process" and "settings".
    """
    given = _settings(Path(in_dir) / "task.json")
    films = sorted(path for path in Path(in_dir).glob("*.dcm") if path.is_file())
    with opened_bundle("mercure", given.pop("bundle_root", None), given) as root, tempfile.TemporaryDirectory() as folder:
        from monai_diffeo.cli.film_by_film import FilmByFilm  # imports torch
        from monai_diffeo.report.decision import ACTIONS, NO_RESULT, OK, decision

        segment = FilmByFilm(root, {**given, "output_dir": folder, "dicom_output": True}, Path(in_dir))
        lines = [segment(film) for film in films]
        told = [str(decision(line)) if line.get("dicom") else NO_RESULT for line in lines]
        for name in (name for line in lines for name in line.get("dicom", ())):
            write_atomically(Path(out_dir) / name, (Path(folder) / name).read_bytes())
        text = (
            ", ".join(f"{told.count(each)} {words}" for each, words in ACTIONS.items() if each in told) or "no DICOM film came"
        )
        notice = {"text": f"Lungs: {text}.", "requested": set(told) != {OK}}
        result = {"films": [{**line, "decision": each} for line, each in zip(lines, told)], "__mercure_notification": notice}
        write_atomically(Path(out_dir) / "result.json", json.dumps(result, indent=1).encode())
    return 0 if set(told) - {NO_RESULT} else 4


def _settings(task: Path) -> dict[str, Any]:
    """The settings of a task, none without it; ConfigError for one that a task may not have."""
    try:
        found = json.loads(task.read_bytes())["process"]["settings"] if task.is_file() else {}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError('mercure: task.json must have "settings" in "process". Check the module\'s settings.') from None
    for name, value in (found or {}).items():
        if name not in _SETTINGS or not isinstance(value, (str, int)):
            allowed = f"may be {', '.join(sorted(_SETTINGS))}, with a word, a number, true or false"
            raise ConfigError(f"mercure: settings {allowed}, got {name!r}. Correct the module's settings.")
    return dict(found or {})
