"""``monai-diffeo mercure``: a module of mercure, which gives DICOM images to a container and takes its results."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from monai_diffeo.cli.segment import opened_bundle
from monai_diffeo.files import write_atomically

__all__ = ["mercure"]


@click.command(
    epilog="""\b
Exit status:
  0  there are results; result.json says which films have none, and why
  1  nothing was run; the last line on stderr says why
  4  no film has a result"""
)
@click.argument("in_dir", envvar="MERCURE_IN_DIR")
@click.argument("out_dir", envvar="MERCURE_OUT_DIR")
def mercure(in_dir: str, out_dir: str) -> int:
    """Segment the DICOM films of a folder as a module of mercure does.

    The folders are those of MERCURE_IN_DIR and MERCURE_OUT_DIR, or the arguments. DICOM results and result.json are written.
    The settings in IN_DIR/task.json are options of 'segment', such as mode, enabled and figures.
    """
    task = Path(in_dir) / "task.json"
    given = dict(json.loads(task.read_bytes())["process"].get("settings") or {}) if task.is_file() else {}
    with opened_bundle("mercure", given.pop("bundle_root", None), given) as root, tempfile.TemporaryDirectory() as folder:
        from monai_diffeo.cli.bundle import FilmByFilm  # imports torch
        from monai_diffeo.report.decision import ACTIONS, decision
        from monai_diffeo.trust import NO_RESULT, OK

        segment = FilmByFilm(root, {**given, "output_dir": folder, "dicom_output": True}, Path(in_dir))
        lines = [segment(film) for film in sorted(Path(in_dir).glob("*.dcm"))]
        told = [str(decision(line)) if line.get("dicom") else NO_RESULT for line in lines]
        for name in (name for line in lines for name in line.get("dicom", ())):
            write_atomically(Path(out_dir) / name, (Path(folder) / name).read_bytes())
        text = ", ".join(f"{told.count(each)} {words}" for each, words in ACTIONS.items() if each in told) or "no film came"
        notice = {"text": f"Lung films: {text}.", "requested": set(told) != {OK}}
        result = {"films": [{**line, "decision": each} for line, each in zip(lines, told)], "__mercure_notification": notice}
        write_atomically(Path(out_dir) / "result.json", json.dumps(result).encode())
    return 0 if set(told) - {NO_RESULT} else 4
