"""Run a bundle in this process: what ``python -m monai.bundle run`` does, with values as words and a checked configuration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_diffeo.cli.allowed import allow
from monai_diffeo.errors import ConfigError

__all__ = ["bundle_parser", "run_bundle"]


def bundle_parser(root: Path, given: Mapping[str, Any], trusted: bool = False) -> ConfigParser:
    """``configs/inference.json`` (or ``.yaml``, ``.yml``) of a bundle, ready to build what it describes; nothing is built yet.

    Args:
        root: folder of the bundle.
        given: values by id of the configuration; text is taken as it is, whatever it begins with.
        trusted: allow any code.

    Raises:
        ConfigError: if there is no configuration, it does not know an id, or something in it is not allowed.
    """
    file = next((file for kind in ConfigParser.suffixes if (file := root / "configs" / f"inference.{kind}").is_file()), None)
    if file is None:
        raise ConfigError(
            f"segment: a bundle must have configs/inference.json or .yaml, {str(root)!r} has not. Check --bundle_root."
        )
    parser = ConfigParser()
    parser.read_config(file)
    for name in given:
        if name not in parser and name != "debug":  # our own option too
            raise ConfigError(f"segment: the configuration of {str(root)!r} has no option --{name}. Leave it out.")
    parser.update({n: _literal(value) for n, value in {"bundle_root": str(root), **given}.items() if n in parser})
    if not trusted:
        allow(parser)
    return parser


def run_bundle(root: Path, given: Mapping[str, Any], trusted: bool = False) -> int:
    """Run a bundle and give its exit status; arguments and errors as for :func:`bundle_parser`.

    The status is that with which the bundle exits, or else the number that its ``finalize`` gives last.
    Unlike MONAI's workflow it does not apply the bundle's ``logging.conf``, and only a trusted bundle's folder becomes a place
    where Python looks for modules.
    """
    parser = bundle_parser(root, given, trusted)
    if trusted:
        sys.path.insert(1, str(root))
    status: Any = None
    try:
        for step in ("initialize", "run", "finalize"):
            entries, status = parser.get(step, []), None
            for id in [f"{step}::{i}" for i in range(len(entries))] if isinstance(entries, list) else [step]:
                status = parser.get_parsed_content(id)
                parser.ref_resolver.remove_resolved_content(id)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return status if type(status) is int else 0


def _literal(value: Any) -> Any:
    """An entry of a configuration that stands for a value. In plain text, MONAI would read ``$``, ``@``, ``%`` and ``#``."""
    if not isinstance(value, str):
        return value
    return f"$bytes.fromhex('{value.encode('utf-8', 'surrogateescape').hex()}').decode('utf-8', 'surrogateescape')"
