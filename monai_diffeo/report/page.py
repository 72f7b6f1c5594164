"""One page and one table of all films of a run, made of its report: to sort, to filter, and to hand on."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote

from monai_diffeo.errors import ConfigError
from monai_diffeo.files import printable, write_atomically
from monai_diffeo.radiograph.outputs import PAGE_NAME, REPORT_NAME, TABLE_NAME, film_lines, recorded_outputs
from monai_diffeo.report.decision import ACTIONS, DECISION_COLOURS, decision, least_agreement, outcome, remarks
from monai_diffeo.report.figure import DISCLAIMER
from monai_diffeo.report.panels import motion
from monai_diffeo.report.strip_plot import strip_plot

__all__ = ["report_page"]

_MOST_EMBEDDED = 500  # pictures, about 60 kB each
_EMBEDDED_SIZE = (1200, 800)
_HEADS = (
    "",
    "Film",
    "What to do",
    "What happened",
    "Distance before",
    "Distance after",
    "Motion",
    "Area",
    "Agreement",
    "Seconds",
)
_SORTS = {"film": (1, 1), "what to do": (2, 0), "distance, largest first": (5, 0), "motion, largest first": (6, 0)}
_SORTS |= {"area, smallest first": (7, 1), "agreement, lowest first": (8, 1), "time, longest first": (9, 0)}


def report_page(folder: str | PathLike[str], embed: bool | None = None) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.csv`` beside the ``report.jsonl`` of a run, and give their paths.

    The page loads nothing from a network. Its pictures are in it, so it can be sent alone. Those of a large run are links to
    the files beside it, so the folder may be moved as a whole. Names are those of the report: pseudonyms stay pseudonyms.

    Args:
        folder: the output folder of a run, also of one that is under way or was killed.
        embed: hold the pictures in the page; None does it for at most 500 films.

    Raises:
        ConfigError: if the folder has no report with films.
        OutputError: if a file cannot be written.
    """
    report = Path(folder) / REPORT_NAME
    records = list({line["input"]: line for line in film_lines(report)}.values())  # of each film the last
    if not records:
        came = f"there is none in {report.parent}"
        raise ConfigError(
            f"report: expected a {REPORT_NAME} with films, but {came}. Give the folder of a run, its --output_dir."
        )
    embed = len(records) <= _MOST_EMBEDDED if embed is None else embed
    page = _page(report, records, embed).encode("utf-8", "backslashreplace")
    table = _table(records).encode("utf-8", "backslashreplace")
    return write_atomically(report.with_name(PAGE_NAME), page), write_atomically(report.with_name(TABLE_NAME), table)


def _page(report: Path, records: Sequence[Mapping[str, Any]], embed: bool) -> str:
    here = Path(__file__)
    script = here.with_suffix(".js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    last = records[-1]
    made = datetime.fromtimestamp(report.stat().st_mtime, timezone.utc)
    about = f"{len(records)} film{'' if len(records) == 1 else 's'}, written until {made:%Y-%m-%d %H:%M} UTC"
    about += f" by monai_diffeo {last.get('versions', {}).get('monai_diffeo', 'of unknown version')}"
    heads = [f'<th scope="col"><button>{head}</button></th>' if head else "<th></th>" for head in _HEADS]
    parts = {
        "script_hash": f"sha256-{digest}",
        "about": _text(about),
        "warning": "" if _ended(report) else '<p class="warn">The run has not come to its end: films may be missing.</p>',
        "filters": "".join(_filters(Counter(decision(record) for record in records))),
        "plots": "".join(_plots(records)),
        "sorts": "".join(f'<option value="{by} {up}">{name}</option>' for name, (by, up) in _SORTS.items()),
        "heads": "".join(heads),
        "rows": "\n".join(_rows(report, records, embed)),
        "disclaimer": DISCLAIMER,
        "script": script,
    }
    return re.sub(r"@([a-z_]+)@", lambda place: parts[place[1]], here.with_suffix(".html").read_text(encoding="utf-8"))


def _rows(report: Path, records: Sequence[Mapping[str, Any]], embed: bool) -> Iterator[str]:
    known = recorded_outputs(report)
    for number, record in enumerate(records):
        figure = report.parent / str(record.get("figure") or "")
        picture = figure if figure in known.get(record["input"], ()) else None
        done, (status, reason) = decision(record), outcome(record)
        told = f"{status}: {reason}" if reason else status
        colour, share = DECISION_COLOURS.get(done or "", "#9aa3ad"), record.get("displacement_share")
        areas = record.get("areas") or {}
        parts = [f"{_text(name)} {value:.1%}" for name, value in areas.items() if value is not None]
        total = areas.get("total", sum(value or 0 for value in areas.values()) if areas else None)
        cells = [
            '<td class="wide">' + (_picture(picture, report.parent, embed, record) if picture else "") + "</td>",
            _cell(record["input"], _text(record["input"]), "name wide"),
            _cell(list(ACTIONS).index(done) if done else None, f"<i></i>{ACTIONS.get(done or '', 'unknown')}", "say wide"),
            _cell(told, f"{_text(told)}<small>{_text(remarks(record))}</small>", "told wide"),
            *(_number(record.get(f"energy_{when}"), "{:.3g}", f"Distance {when}") for when in ("before", "after")),
            _cell(share, motion(record).replace(" · ", "<br>"), "number", "Motion"),
            _cell(total, "<br>".join(parts), "number", "Area, share of film"),
            _number(least_agreement(record), "{:.0%}", "Agreement"),
            _number(record.get("seconds"), "{:.2f}", "Seconds"),
        ]
        row = f'<tr id="f{number}" data-decision="{done or ""}" style="--c:{colour}">'
        yield row + "".join(cells) + "</tr>"


def _cell(value: Any, content: str, kind: str = "number", name: str = "") -> str:
    """A cell with the value that it is sorted by; ``name`` stands above it where the page is narrow."""
    named = f' data-name="{name}"' if name and content else ""
    return f'<td class="{kind}" data-value="{"" if value is None else _text(value)}"{named}>{content}</td>'


def _number(value: float | None, pattern: str, name: str) -> str:
    return _cell(value, "" if value is None else pattern.format(value), name=name)


def _picture(path: Path, folder: Path, embed: bool, record: Mapping[str, Any]) -> str:
    link = "./" + quote(os.fsencode(path.relative_to(folder).as_posix()))
    alt = _text(f"Picture of {record['input']}")
    return f'<a class="picture" href="{link}"><img src="{_embedded(path) if embed else link}" alt="{alt}" loading="lazy"></a>'


def _embedded(path: Path) -> str:
    """The picture as a URL that holds it, smaller; as it is, where Pillow cannot do that."""
    try:
        from PIL import Image

        stream, kind = io.BytesIO(), "webp"
        with Image.open(path) as whole:
            image = whole.convert("RGB")
        image.thumbnail(_EMBEDDED_SIZE)
        image.save(stream, "WEBP", quality=70, method=2)
        content = stream.getvalue()
    except (ImportError, OSError, KeyError):
        content, kind = path.read_bytes(), "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _filters(counts: Mapping[str | None, int]) -> Iterator[str]:
    yield f'<button value="" aria-pressed="true">All {sum(counts.values())}</button>'
    for name, words in ACTIONS.items():
        yield f'<button value="{name}" style="--c:{DECISION_COLOURS[name]}"><i></i>{words.capitalize()} {counts[name]}</button>'


def _plots(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Energies and areas of all films, a dot a film."""
    colours = [DECISION_COLOURS.get(decision(record) or "", "#9aa3ad") for record in records]
    names = [_text(record["input"]) for record in records]
    energies = {when: [record.get(f"energy_{when}") for record in records] for when in ("before", "after")}
    kinds = dict.fromkeys(kind for record in records for kind in record.get("areas") or {})
    areas = {_text(kind): [(record.get("areas") or {}).get(kind) for record in records] for kind in kinds}
    yield strip_plot("Distance from training images", "energy; lower is closer", energies, colours, names, "{:.3g}")
    yield strip_plot("Area", "share of the film", areas, colours, names, "{:.0%}")


def _ended(report: Path) -> bool:
    try:
        return bool(json.loads(report.read_bytes().splitlines()[-1]).get("end"))
    except (ValueError, AttributeError):
        return False


def _text(value: Any) -> str:
    """Text for the page: no letter of it is read as HTML, and what cannot be seen is spelt out."""
    return escape(printable(str(value)))


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    """CSV of all fields; nested ones have a dot in their names."""
    flat = [{"input": r["input"], "decision": decision(r), **dict(_flat(r))} for r in records]
    columns = dict.fromkeys(["input", "decision", "status", *(name for row in flat for name in row)])
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(columns), restval="")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _flat(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, _entry(value)


def _entry(value: Any) -> Any:
    """A list as JSON; a text that a spreadsheet would run as a formula behind an apostrophe."""
    value = json.dumps(value) if isinstance(value, list) else value
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
