"""An experiment's options, and the page of results that it writes: Markdown tables under the command that made them."""

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


class Experiment:
    """The options of the experiment ``name``, read from a command line ``argv`` (None: the program's own), and its page in
    docs/results.

    ``defaults`` are the options. A type in place of a value says that there is none, a list that there are many, False that the
    option is a switch. ``dataset_dir`` must be given.
    """

    def __init__(self, name: str, description: str | None, argv: Sequence[str] | None = None, **defaults: object) -> None:
        self.name, self.defaults = name, {}
        parser = argparse.ArgumentParser(description=description)
        for option, default in {**defaults, "output": f"docs/results/{name}.md"}.items():
            many = "+" if isinstance(default, (list, tuple)) else None
            first = default[0] if many else default
            self.defaults[option] = None if isinstance(first, type) else default
            kind = first if isinstance(first, type) else type(first)
            settings = {"action": "store_true"} if first is False else {"type": kind, "nargs": many}
            parser.add_argument(f"--{option}", default=self.defaults[option], required=option == "dataset_dir", **settings)
        self.options = parser.parse_args(argv)

    def command(self, **changes: object) -> str:
        """The command of these options, or of ``changes`` of them: folders as DIR and KEEP, and what is not the default."""
        words = [f"python -m docs.experiments.{self.name}"]
        for option, value in {**vars(self.options), **changes}.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            if option in PLACES:
                words += [f"--{option} {PLACES[option]}"] if value is not None else []
            elif value != self.defaults[option]:
                words.append(f"--{option}" if value is True else f"--{option} {shlex.join(map(str, values))}")
        return " ".join(words)

    def write(self, title: str, parts: Sequence[str], seed: int | None = None, **changes: object) -> None:
        """Write the page as a whole, so that a run that breaks off leaves the old one: title, command with ``changes`` of its
        options, seed, versions, date, then the parts."""
        versions = [f"{package.__name__} {package.__version__}" for package in (monai, torch, numpy)]
        versions = ", ".join([*versions, f"Python {platform.python_version()}"])
        date = f"{torch.get_num_threads()} threads; {datetime.date.today().isoformat()}."
        head = [f"# {title}", "Written by", f"```\n{self.command(**changes)}\n```"]
        path = Path(self.options.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join([*head, f"{'' if seed is None else f'Seed {seed}; '}{versions}; {date}", *parts]) + "\n")


def note(name: str, **values: object) -> list[str]:
    """The parts of ``notes/name.txt``, which lines of three dashes divide, with ``values`` in the places of their names."""
    text = (Path(__file__).parent / "notes" / f"{name}.txt").read_text()
    return [part.strip() for part in text.format(**values).split("\n---\n")]


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a Markdown table; columns are the keys of all rows in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def section(heading: str, rows: Sequence[Mapping[str, object]]) -> str:
    """A heading, or text, and a table; printed too."""
    print(f"{heading}\n\n{markdown_table(rows)}", flush=True)
    return f"{heading}\n\n{markdown_table(rows)}"


def judged(what: str, asked: str, measured: str, met: bool) -> dict[str, str]:
    """A row of a table that sets what was asked beside what was measured."""
    return {"what": what, "asked": asked, "measured": measured, "met": "yes" if met else "**no**"}
