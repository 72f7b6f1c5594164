"""The network and the preprocessing of a bundle, for fitting a canonicaliser to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from monai_diffeo.cli.bundle import bundle_parser
from monai_diffeo.errors import ConfigError
from monai_diffeo.fit import NetworkUnderTest
from monai_diffeo.networks import load_weights

__all__ = ["network_of_bundle"]

_PREPROCESSING = ("preprocessing", "dataset::transform", "validate::preprocessing")


def network_of_bundle(
    root: Path, weights: Path | None, activation: str | None, trusted: bool, who: str = "fit"
) -> tuple[NetworkUnderTest, Callable[[Any], Any]]:
    """The network of ``configs/inference.json`` with its weights, and the preprocessing.

    Args:
        root: folder of the bundle.
        weights: of the network; None takes ``models/model.pt``.
        activation: of its output; None reads it from the postprocessing.
        trusted: allow any code.
        who: the sub-command that asks.

    Raises:
        ConfigError: if the bundle has no preprocessing or network, or something in it is not allowed.
        WeightsError: if the weights do not load.
    """
    try:
        parser = bundle_parser(root, {}, trusted)
    except ConfigError as error:
        raise ConfigError(str(error).replace("segment:", f"{who}:", 1)) from error
    preprocessing = next((id for id in _PREPROCESSING if id in parser), None)
    definition = next((id for id in ("network_def", "network") if id in parser), None)
    if preprocessing is None or definition is None:
        missing = " or ".join(_PREPROCESSING) if preprocessing is None else "network_def or network"
        raise ConfigError(f"{who}: the bundle's inference configuration must have {missing}, {str(root)!r} has none.")
    network = parser.get_parsed_content(definition)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{who}: {definition!r} of the bundle must be a network, got {type(network).__name__}.")
    load_weights(network, root / "models" / "model.pt" if weights is None else weights)
    inner = "inferer::inferer" if "inferer::inferer" in parser else "inferer"
    inferer = parser.get_parsed_content(inner) if inner in parser else None
    read = _activation(parser) if activation is None else activation
    said = f"{type(network).__name__} of {root.resolve().name}"
    return NetworkUnderTest(network, inferer, read, said), parser.get_parsed_content(preprocessing)


def _activation(parser: ConfigParser) -> str | None:
    """What the postprocessing applies to the output; an argmax says softmax, too."""
    for entry in _mappings(parser.get("postprocessing")):
        if entry.get("softmax") is True or entry.get("argmax") is True:
            return "softmax"
        if entry.get("sigmoid") is True:
            return "sigmoid"
    return None


def _mappings(config: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(config, Mapping):
        yield config
        yield from (inner for part in config.values() for inner in _mappings(part))
    elif isinstance(config, list):
        yield from (inner for part in config for inner in _mappings(part))
