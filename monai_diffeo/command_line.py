"""Options of ``python -m monai.bundle run``: none is misread, and none that a bundle does not know is passed over."""

from __future__ import annotations

import difflib
import inspect
import re
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, run
from monai.utils import optional_import

from monai_diffeo.errors import DiffeoError

__all__ = [
    "check_options",
    "end_plainly",
    "end_with",
    "option_choice",
    "option_text",
    "parse_share",
    "parse_switch",
    "typed_configuration",
]

_SAME_MASKS = "bundle_root config_file dataset_dir debug dicom_output figures logging_file meta_file network_weights "
_SAME_MASKS += "output_dir progress pseudonymize_names resume trust_model workflow_type"
"""Options that change no mask; the hashes of weights and of the trust model count elsewhere."""
_EVALUATED = ("$", "@", "%", "'", '"')  # MONAI or Fire reads more than a word here


def parse_switch(value: bool | str | int | None) -> bool:
    """True or false, also from the words that a command line hands on, in any case.

    Raises:
        ValueError: for any other word.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if word not in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
            raise ValueError(f"parse_switch(): expected true or false, got {value!r}.")
        return word in {"true", "1", "yes", "on"}
    return bool(value)


def parse_share(value: float | str, name: str) -> float:
    """A number between 0 and 1, also from a command line's text; ``name`` is that of its option.

    Raises:
        ValueError: for anything else.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 < number < 1:
        raise ValueError(
            f"parse_share(): --{name} must be a number between 0 and 1, got {value!r}. Leave it out for the usual one."
        )
    return number


def check_options(argv: Sequence[str] | None = None) -> None:
    """Refuse a command line that MONAI would accept and not obey; call it first in a bundle's ``initialize``.

    Nothing is checked outside ``python -m monai.bundle run``. There, an option must be an id of the config files (nested ids
    with ``#`` or ``::``) or one of MONAI's own arguments, may come once, and needs a value unless it is a switch.

    Raises:
        ValueError: for an unknown, repeated or empty option, or a word that belongs to none; it names the nearest option.
    """
    words, options = _typed(argv)
    given = dict(options)
    parser, defaults = _configuration(given)
    if parser is None:
        return
    for word in words:
        if word not in parser:
            raise ValueError(f"check_options(): {word!r} belongs to no option. Quote a name with blanks or wildcards.")
    for name in [*given, *(name for name in defaults if name not in given)]:
        _check_known(name, parser)
    for name, times in Counter(name for name, _ in options).items():
        if times > 1:
            raise ValueError(f"check_options(): --{name} is given {times} times, and only one would count.")
    for name, value in given.items():
        if value == "" or (value is None and name not in _monai_arguments() and not isinstance(parser.get(name), bool)):
            remedy = "a shell variable may be unset. Leave it out or give one."
            raise ValueError(f"check_options(): --{name} has no value; {remedy}")


def option_text(name: str, value: Any, argv: Sequence[str] | None = None) -> Any:
    """The value of an option as it was typed. MONAI reads words as Python: ``None`` as not given, ``2024.10`` as a number.

    Args:
        name: of the option.
        value: what MONAI made of it; returned where the option was not typed, or asks for evaluation by ``$``, ``@``, ``%`` or
            quotation marks.
        argv: the command line, ``sys.argv`` by default.

    Example:
        >>> argv = ["monai/bundle/__main__.py", "run", "--dataset_dir", "None"]
        >>> option_text("dataset_dir", None, argv), option_text("output_dir", "out", argv)
        ('None', 'out')
    """
    word = dict(_typed(argv)[1]).get(name)
    return value if word is None or word.startswith(_EVALUATED) else word


def option_choice(name: str, value: Any, choices: Mapping[str, Any]) -> Any:
    """What the value of an option stands for.

    Raises:
        ValueError: for another value than the keys of ``choices``.
    """
    if value not in choices:
        raise ValueError(f"option_choice(): --{name} must be {' or '.join(map(repr, choices))}, got {value!r}.")
    return choices[value]


def typed_configuration(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The configuration files of the command line and its options, without those that only say where, or how to report.

    So two runs with the same content segment in the same way. It is empty outside ``python -m monai.bundle run``.
    """
    given = dict(_typed(argv)[1])
    parser, defaults = _configuration(given)
    options = {name: value for name, value in {**defaults, **given}.items() if name not in _SAME_MASKS.split()}
    return {} if parser is None else {"files": parser[""], "options": options}


def end_plainly(argv: Sequence[str] | None = None) -> None:
    """Ctrl-C ends the process with status 130 and SIGTERM with 143, without traceback; an error of ours is its sentence alone.

    Nothing changes outside ``python -m monai.bundle run``, nor for errors with ``--debug true``.
    """
    options = dict(_typed(argv)[1])
    if not options:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a job in the background ignores Ctrl-C
            signal.signal(number, _end)
    if not parse_switch(options.get("debug", False) or False):
        sys.excepthook = _say


def end_with(status: int, argv: Sequence[str] | None = None) -> int:
    """End ``python -m monai.bundle run`` with an exit status. A workflow that runs within another program gets the status."""
    if _typed(argv)[1]:
        sys.exit(status)
    return status


class _Ended(SystemExit):
    """Status 128 + signal, as shells give it."""

    def __str__(self) -> str:
        return "stopped by a signal"


def _end(number: int, frame: Any) -> None:
    raise _Ended(128 + number)


def _say(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DiffeoError):
        cause = cause.__cause__
    if cause is None:
        traceback.print_exception(kind, error, trace)
    else:
        print(f"{type(cause).__name__}: {cause}", file=sys.stderr)


def _configuration(given: Mapping[str, str | None]) -> tuple[ConfigParser | None, dict[str, Any]]:
    """The configuration files that a command line names, read; and the defaults of its options."""
    args_file, config_file = given.get("args_file"), given.get("config_file")
    defaults = ConfigParser.load_config_file(args_file) if args_file else {}
    files = optional_import("fire.parser")[0].DefaultParseValue(config_file) if config_file else defaults.get("config_file")
    if files is None:
        return None, defaults
    parser = ConfigParser()
    parser.read_config(files)
    return parser, defaults


def _typed(argv: Sequence[str] | None) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Words without an option, and options with their words, split as Fire splits them; None for an option without a word."""
    argv = sys.argv if argv is None else argv
    if Path(argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or list(argv[1:2]) != ["run"]:
        return [], []
    end = len(argv) - argv[::-1].index("--") - 1 if "--" in argv else len(argv)  # Fire's own options follow
    words: list[str] = []
    options: list[tuple[str, str | None]] = []
    rest = list(argv[2:end])
    while rest:
        word = rest.pop(0)
        if not _is_option(word):
            words.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_").replace("#", "::")
        if equals or (rest and not _is_option(rest[0])):
            options.append((name, value if equals else rest.pop(0)))
        else:  # a switch, or its opposite
            opposite = name.startswith("no") and name not in _monai_arguments()
            options.append((name[2:] if opposite else name, None))
    return words, options


def _is_option(word: str) -> bool:
    return re.match("--|-[a-zA-Z]", word) is not None


def _monai_arguments() -> set[str]:
    takes = (run, create_workflow, ConfigWorkflow)
    return {name for some in takes for name in inspect.signature(some).parameters} - {"override", "kwargs"}


def _check_known(name: str, parser: ConfigParser) -> None:
    path = name.removeprefix("+").replace("#", "::")
    parent = path.rpartition("::")[0]
    if path in _monai_arguments() or path in parser or path.startswith(f"{parser.meta_key}::"):
        return
    known = [*parser[""], *sorted(_monai_arguments())]
    beside = parser[parent] if parent and parent in parser else None
    if isinstance(beside, dict):
        if "_target_" in beside:  # a further argument; its component checks it
            return
        known = [f"{parent}::{key}" for key in beside]
    (nearest,) = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    raise ValueError(f"check_options(): there is no option --{name}; did you mean --{nearest}?")
