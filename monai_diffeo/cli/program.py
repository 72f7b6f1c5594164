"""The command ``monai-diffeo``: its sub-commands, its exit status, and its last line."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Any, NoReturn

import click

from monai_diffeo import __version__
from monai_diffeo.cli.bulk import bulk
from monai_diffeo.cli.calibrate import calibrate
from monai_diffeo.cli.export import export
from monai_diffeo.cli.fit import fit
from monai_diffeo.cli.mercure import mercure
from monai_diffeo.cli.options import sentence
from monai_diffeo.cli.report import report
from monai_diffeo.cli.segment import segment
from monai_diffeo.cli.show import show
from monai_diffeo.cli.watch import watch
from monai_diffeo.cli.wrap import wrap
from monai_diffeo.errors import DiffeoError

__all__ = ["program"]

NOTHING_RUN, INTERRUPTED, TERMINATED = 1, 130, 143
_LEFT = {
    "segment": " The films without a line in report.jsonl have no mask; --resume goes on.",
    "bulk": " The same command goes on.",
    "fit": " Where --output_dir has a fit.json, --resume goes on.",
}


class _Program(click.Group):
    """A command line that is wrong ends with 1, as README says, not with click's 2, and so does an error of ours."""

    asked = ""  # the sub-command that runs

    def main(self, *args: Any, **settings: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, self._terminated)
        try:
            status = super().main(*args, **{**settings, "standalone_mode": False}) or 0
        except click.ClickException as error:
            error.show()
            status = NOTHING_RUN
        except click.Abort:
            click.echo(f"Interrupted.{_LEFT.get(self.asked, '')}", err=True)
            status = INTERRUPTED
        except Exception as error:
            if not isinstance(error, (DiffeoError, ImportError)):
                traceback.print_exc()
            click.echo(f"Error: {sentence(error, self.asked, 'bundle')}", err=True)
            status = NOTHING_RUN
        sys.exit(status)

    def resolve_command(self, context: click.Context, words: list[str]) -> Any:
        found = super().resolve_command(context, words)
        self.asked = found[0] or ""
        return found

    def _terminated(self, number: int, frame: Any) -> NoReturn:
        click.echo(f"Terminated.{_LEFT.get(self.asked, '')}", err=True)
        sys.exit(TERMINATED)


@click.group(
    cls=_Program,
    no_args_is_help=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "token_normalize_func": lambda word: word.replace("-", "_"),
    },
    epilog="""\b
Exit status of every sub-command:
  0    done
  1    nothing was done; the last line on stderr says why
  130  interrupted by Ctrl-C
  143  stopped by SIGTERM
'segment', 'bulk', 'watch' and 'mercure' have more, see their --help.""",
)
@click.version_option(__version__, message="monai-diffeo %(version)s")
def program() -> None:
    """Make a trained network robust to deformation of the anatomy. For research, not for diagnosis."""


for command in (segment, bulk, watch, mercure, report, calibrate, fit, show, wrap, export):
    program.add_command(command)
