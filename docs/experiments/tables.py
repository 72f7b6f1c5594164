"""Tables in Markdown, under the command that wrote them."""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import monai
import numpy
import torch

PLACES = {"dataset_dir": "DIR", "weights_dir": "KEEP"}

__all__ = ["command_text", "markdown_table", "write_page"]


def command_text(name: str, parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The command of the experiment ``name`` that these options came from: folders as DIR and KEEP, and what is not the default."""
    words = [f"python -m docs.experiments.{name}"]
    for option, value in vars(options).items():
        if option in PLACES:
            words += [f"--{option} {PLACES[option]}"] if value is not None else []
        elif value is True:
            words.append(f"--{option}")
        elif value != parser.get_default(option):
            words.append(f"--{option} {shlex.join(map(str, value if isinstance(value, (list, tuple)) else [value]))}")
    return " ".join(words)


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a Markdown table; columns are the keys of all rows in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def write_page(path: str | Path, title: str, command: str, parts: Sequence[str], seed: int | None = None) -> None:
    """Write a page of results: title, command, seed, versions and date, then the parts.

    The page is written as a whole, so that a run that breaks off leaves the old one.
    """
    versions = (
        f"monai {monai.__version__}, torch {torch.__version__}, numpy {numpy.__version__}, Python {platform.python_version()}"
    )
    seed_text = "" if seed is None else f"Seed {seed}; "
    head = [
        f"# {title}",
        "Written by",
        f"```\n{command}\n```",
        f"{seed_text}{versions}; {torch.get_num_threads()} threads; {datetime.date.today().isoformat()}.",
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join([*head, *parts]) + "\n")
