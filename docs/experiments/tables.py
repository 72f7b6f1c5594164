"""An experiment's options, and the page of results that it writes: Markdown tables under the command that made them."""

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

__all__ = ["Experiment", "judged", "markdown_table", "note", "section"]

PLACES = {"dataset_dir": "DIR", "weights_dir": "KEEP"}


class Experiment:
    """The options of an experiment, read from its command line.

    Args:
        name: of the script, and of the page in docs/results.
        description: what ``--help`` says.
        argv: the command line; None takes the program's.
        defaults: of the options. A type in place of a value says that there is none, a list that an option has many values, False that
            it is a switch. ``dataset_dir`` must be given.
    """

    def __init__(self, name: str, description: str | None, argv: Sequence[str] | None = None, **defaults: object) -> None:
        self.name, self.defaults = name, {**defaults, "output": f"docs/results/{name}.md"}
        parser = argparse.ArgumentParser(description=description)
        for option, default in self.defaults.items():
            first = default[0] if isinstance(default, (list, tuple)) else default
            if first is False:
                parser.add_argument(f"--{option}", action="store_true")
                continue
            self.defaults[option] = None if isinstance(first, type) else default
            kind, many = first if isinstance(first, type) else type(first), "+" if first is not default else None
            required = option == "dataset_dir"
            parser.add_argument(f"--{option}", default=self.defaults[option], type=kind, nargs=many, required=required)
        self.options = parser.parse_args(argv)

    def command(self, **changes: object) -> str:
        """The command that these options, or ``changes`` of them, came from: folders as DIR and KEEP, and what is not the default."""
        words = [f"python -m docs.experiments.{self.name}"]
        for option, value in {**vars(self.options), **changes}.items():
            if option in PLACES:
                words += [f"--{option} {PLACES[option]}"] if value is not None else []
            elif value is True:
                words.append(f"--{option}")
            elif value != self.defaults[option]:
                words.append(f"--{option} {shlex.join(map(str, value if isinstance(value, (list, tuple)) else [value]))}")
        return " ".join(words)

    def write(self, title: str, parts: Sequence[str], seed: int | None = None, **changes: object) -> None:
        """Write the page as a whole: title, command, seed, versions, date, then the parts. A run that breaks off leaves the old page.

        Args:
            title, parts: Markdown.
            seed: of the experiment; None says none.
            changes: of the options in the command.
        """
        packages = ", ".join(f"{package.__name__} {package.__version__}" for package in (monai, torch, numpy))
        seed_text = "" if seed is None else f"Seed {seed}; "
        today = f"{torch.get_num_threads()} threads; {datetime.date.today().isoformat()}"
        head = [f"# {title}", "Written by", f"```\n{self.command(**changes)}\n```"]
        path = Path(self.options.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        versions = f"{seed_text}{packages}, Python {platform.python_version()}; {today}."
        path.write_text("\n\n".join([*head, versions, *parts]) + "\n")


def note(name: str, **values: object) -> list[str]:
    """The parts of ``notes/name.txt``, which lines of three dashes divide, with ``values`` in the places of their names."""
    text = (Path(__file__).parent / "notes" / f"{name}.txt").read_text()
    return [part.strip() for part in text.format(**values).split("\n---\n")]


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a Markdown table; columns are the keys of all rows in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def section(heading: str, rows: Sequence[Mapping[str, object]], text: str = "") -> str:
    """A heading, a text under it and a table; printed too."""
    part = "\n\n".join(filter(None, [heading, text, markdown_table(rows)]))
    print(part, flush=True)
    return part


def judged(what: str, asked: str, measured: str, met: bool) -> dict[str, str]:
    """A row of a table that sets what was asked beside what was measured."""
    return {"what": what, "asked": asked, "measured": measured, "met": "yes" if met else "**no**"}
