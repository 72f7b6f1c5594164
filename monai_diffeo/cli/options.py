"""Options of every sub-command, and what is said when one fails."""

from __future__ import annotations

from typing import Any

import click

__all__ = ["SWITCH", "option", "sentence", "sizes"]

SWITCH = click.Choice(["true", "false"], case_sensitive=False)


def option(name: str, meaning: str, kind: Any = str, metavar: str | None = None) -> Any:
    """An option that may be given once and needs a word, None if it is not given; a switch may stand alone, for ``true``."""
    alone: Any = {"is_flag": False, "flag_value": "true"} if kind is SWITCH else {}
    return click.option(f"--{name}", type=kind, metavar=metavar, help=meaning, multiple=True, callback=_once, **alone)


def sizes(text: str) -> tuple[int, ...]:
    """The type of an option such as ``--size 128,112``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"--size must be numbers such as 128,112, got {text!r}.") from None


def _once(context: click.Context, option: click.Parameter, values: tuple[Any, ...]) -> Any:
    """The only value of an option, None if it was not given; an option that is repeated or has no word is refused."""
    if len(values) > 1:
        raise click.UsageError(f"--{option.name} is given {len(values)} times, and only one would count.")
    value = values[0] if values else None
    if value == "":
        raise click.UsageError(f"--{option.name} has no value; a shell variable may be unset. Leave it out or give one.")
    if value in {word for other in context.command.params for word in other.opts}:
        raise click.UsageError(f"--{option.name} has no value; {value} is an option. For a file of that name write ./{value}.")
    return value == "true" if option.type is SWITCH and value is not None else value


def sentence(error: BaseException, who: str, extra: str = "demo") -> str:
    """What went wrong, in one line, without MONAI's wrapping.

    Args:
        error: whatever was raised.
        who: the sub-command.
        extra: the packages to install if a module is missing.
    """
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(line.strip() for line in str(error).splitlines()) or type(error).__name__
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, ImportError):
        return f'{who}: {text}. The missing packages come with: pip install "monai-diffeo[{extra}]"'
    return f"{who}: no entry {text}" if isinstance(error, KeyError) else text
