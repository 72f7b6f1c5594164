"""``monai-diffeo segment``: run a bundle on a folder of films. Values are words, and code of others does not run."""

from __future__ import annotations

import json
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

import click

__all__ = ["default_bundle", "segment"]

_ENDS = {3: "Some films have no mask; report.jsonl says which and why.", 4: "No film has a mask; report.jsonl says why."}
_SWITCH = click.Choice(["true", "false"], case_sensitive=False)


def default_bundle() -> Path:
    """Folder of the lung bundle: of the clone that the package is in, else of the clone that is the current folder.

    Raises:
        click.UsageError: if there is neither.
    """
    for clone in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root := clone / "bundles" / "cxr_lung_segmentation").is_dir():
            return root
    raise click.UsageError("--bundle_root must name a bundle: there is none beside monai_diffeo or in the current folder.")


def _once(context: click.Context, option: click.Parameter, values: tuple[Any, ...]) -> Any:
    """The only value of an option, None if it was not given; an option that is repeated or has no word is refused."""
    if len(values) > 1:
        raise click.UsageError(f"--{option.name} is given {len(values)} times, and only one would count.")
    value = values[0] if values else None
    if value == "":
        raise click.UsageError(f"--{option.name} has no value; a shell variable may be unset. Leave it out or give one.")
    if value in {word for other in context.command.params for word in other.opts}:
        raise click.UsageError(f"--{option.name} has no value; {value} is an option. For a file of that name write ./{value}.")
    return value == "true" if option.type is _SWITCH and value is not None else value


def _option(name: str, meaning: str, kind: Any = str, metavar: str | None = None) -> Any:
    """A switch may stand alone, for ``true``."""
    alone: Any = {"is_flag": False, "flag_value": "true"} if kind is _SWITCH else {}
    return click.option(f"--{name}", type=kind, metavar=metavar, help=meaning, multiple=True, callback=_once, **alone)


@click.command(
    epilog="""\b
Exit status:
  0    every film has a mask
  1    nothing was run; the last line on stderr says why
  3    finished; some films failed, and report.jsonl says which and why
  4    no film has a mask
  130  interrupted"""
)
@_option("dataset_dir", "A folder of films, or one film. Without it, the packaged film.", metavar="DIR")
@_option("output_dir", "Folder of the results. Without it, 'output' in the bundle.", metavar="DIR")
@_option("bundle_root", "Folder of the bundle. Without it, the lung bundle of the clone or the current folder.", metavar="DIR")
@_option("enabled", "'false' uses the plain network.", _SWITCH)
@_option("mode", "How the canonicaliser searches: single_pass, refine or faithful.", metavar="MODE")
@_option("tta_samples", "Number of poses of the test-time augmentation.", click.IntRange(min=1), "N")
@_option("device", "'cpu' or 'cuda'.", metavar="DEVICE")
@_option("network_weights", "Weights of the network.", metavar="FILE")
@_option("figures", "'false' draws no pictures.", _SWITCH)
@_option("progress", "Show a progress bar of the optimisation.", _SWITCH)
@_option("resume", "Do only the films that the results in --output_dir lack.", _SWITCH)
@_option("pseudonymize_names", "Name outputs by the content of the film, not by its file name.", _SWITCH)
@_option("debug", "Print the traceback of what fails.", _SWITCH)
@_option("trust_bundle", "Run any code of the bundle, with your rights. Only for a bundle whose makers you trust.", _SWITCH)
def segment(bundle_root: str | None, trust_bundle: bool | None, **options: Any) -> int:
    """Segment films with a bundle of MONAI.

    A value is taken as it is typed: a folder may be named 20240115, None or $x. A configuration that could run code which is
    not on an allow-list is refused before anything runs.
    """
    root = default_bundle() if bundle_root is None else Path(bundle_root)
    given = {name: value for name, value in options.items() if value is not None}
    try:
        _check_packages(root)
        from monai_diffeo.cli.bundle import run_bundle  # imports torch

        status = run_bundle(root, given, trusted=bool(trust_bundle))
    except Exception as error:
        if given.get("debug"):
            traceback.print_exc()
        raise click.ClickException(_sentence(error)) from error
    if status in _ENDS:
        click.echo(_ENDS[status], err=True)
    return status


def _check_packages(root: Path) -> None:
    """Refuse a bundle whose metadata names packages that are not installed."""
    file = root / "configs" / "metadata.json"
    needed = json.loads(file.read_text(encoding="utf-8")).get("required_packages_version", {}) if file.is_file() else {}
    missing = [name for name in needed if name != "monai-diffeo" and not any(metadata.distributions(name=name))]
    if missing:
        raise click.ClickException(
            f"segment: the bundle needs packages that are not installed: {missing}. "
            'Those of our lung bundles come with: pip install "monai-diffeo[demo]"'
        )


def _sentence(error: BaseException) -> str:
    """What went wrong, in one line, without MONAI's wrapping."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, ImportError):
        return f'segment: {text}. The packages of our lung bundles come with: pip install "monai-diffeo[demo]"'
    return f"segment: no entry {text}" if isinstance(error, KeyError) else text
