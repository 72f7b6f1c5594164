"""The command ``monai-diffeo``: its sub-commands, its exit status, and its last line."""

from __future__ import annotations

import signal
import sys
from typing import Any, NoReturn

import click

from monai_diffeo import __version__
from monai_diffeo.cli.fit import fit
from monai_diffeo.cli.segment import segment

__all__ = ["program"]

NOTHING_RUN, INTERRUPTED, TERMINATED = 1, 130, 143
_LEFT = "The films without a line in report.jsonl have no mask; --resume goes on."


class _Program(click.Group):
    """A command line that is wrong ends with 1, as README says, not with click's 2."""

    def main(self, *args: Any, **settings: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, _terminated)
        try:
            status = super().main(*args, **{**settings, "standalone_mode": False}) or 0
        except click.ClickException as error:
            error.show()
            status = NOTHING_RUN
        except click.Abort:
            click.echo(f"Interrupted. {_LEFT}", err=True)
            status = INTERRUPTED
        sys.exit(status)


def _terminated(number: int, frame: Any) -> NoReturn:
    click.echo(f"Terminated. {_LEFT}", err=True)
    sys.exit(TERMINATED)


@click.group(
    cls=_Program,
    no_args_is_help=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "token_normalize_func": lambda word: word.replace("-", "_"),
    },
)
@click.version_option(__version__, message="monai-diffeo %(version)s")
def program() -> None:
    """Make a trained network robust to deformation of the anatomy. For research, not for diagnosis."""


program.add_command(segment)
program.add_command(fit)
