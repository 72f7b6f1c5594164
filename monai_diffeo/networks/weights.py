"""Weights from files and to files: weights only, strict, whole, or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_diffeo.command_line import parse_switch
from monai_diffeo.errors import NumericalError, WeightsError
from monai_diffeo.files import check_sha256, record_sha256, write_atomically
from monai_diffeo.networks.precision import Network, mixed_precision

__all__ = ["load_weights", "mean_weights", "save_weights", "trained_part"]


def load_weights(network: Network, path: str | Path, further: str | Path | None = None, *, amp: bool | str = False) -> Network:
    """Load a state dictionary into a network, with exactly its keys; set the network to eval mode and return it.

    Args:
        network: of the architecture that was trained.
        path: file written by ``torch.save(network.state_dict(), path)``.
        further: file of some of the weights, trained further from those in ``path``; None for none.
        amp: see :func:`mixed_precision`; also as a string.

    Raises:
        ValueError: for another word than true or false as ``amp``.
        WeightsError: if the file is missing, damaged, holds more than finite tensors, does not fit the network, or is not the
            one that its bundle names, see :func:`monai_diffeo.files.check_sha256`.
    """
    for file in (path, further):
        if file is not None:
            _load(network, _existing("load_weights", file), whole=file is path)
    return (mixed_precision(network) if parse_switch(amp) else network).eval()


def _load(network: nn.Module, path: Path, whole: bool) -> None:
    """All weights of a network from a file, or only those that the file holds."""
    check_sha256(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state if whole else {**network.state_dict(), **state}, strict=True)
        if broken := _not_finite(state):
            raise ValueError(f"{broken} hold NaN or infinite values; copy the file again or train anew")
    except Exception as error:
        raise WeightsError(f"load_weights(): {path.name} does not load into {type(network).__name__}: {error}") from error


def mean_weights(first: str | Path, second: str | Path, share: float) -> dict[str, Tensor]:
    """``(1 - share)`` of the weights in one file plus ``share`` of those in another that was trained on from it.

    Such a mean of a network and its further training often keeps what the first could do on other populations, and loses little
    of what the second has learned.

    Args:
        first, second: files of state dictionaries with the same keys and shapes.
        share: 0 gives the first, 1 the second; integers, such as counters of batch normalisation, are always the second's.

    Raises:
        WeightsError: if a file is missing, or they do not hold the same keys, shapes and dtypes.

    Reference: Wortsman et al. (2022), Robust fine-tuning of zero-shot models, https://arxiv.org/abs/2109.01903
    """
    paths = [_existing("mean_weights", path) for path in (first, second)]
    one, other = (torch.load(path, map_location="cpu", weights_only=True) for path in paths)
    if {k: (v.shape, v.dtype) for k, v in one.items()} != {k: (v.shape, v.dtype) for k, v in other.items()}:
        names = " and ".join(path.name for path in paths)
        raise WeightsError(f"mean_weights(): {names} are of different networks; give one network and its further training.")
    return {k: torch.lerp(v, other[k], share) if v.is_floating_point() else other[k] for k, v in one.items()}


def trained_part(network: nn.Module) -> dict[str, Tensor]:
    """Those weights of a network that require a gradient, by name."""
    return {name: value.detach() for name, value in network.named_parameters() if value.requires_grad}


def save_weights(network: nn.Module | Mapping[str, Tensor], path: str | Path, half: bool = False) -> Path:
    """Write the weights of a network, or a state dictionary, and their SHA-256 into the ``metadata.json`` of their bundle.

    The file is written beside the old one and renamed, so that there is always one that is whole. Gives the path back.

    Args:
        network, path: what, and where. Missing folders are made.
        half: numbers with a fraction as float16, half the size; they load into a network of any precision.

    Raises:
        NumericalError: if a weight is not finite; nothing is written then.
    """
    given = network.state_dict() if isinstance(network, nn.Module) else network
    state = {name: (value.half() if half and value.is_floating_point() else value).cpu() for name, value in given.items()}
    if broken := _not_finite(state):
        remedy = "Lower the learning rate and train again."
        raise NumericalError(
            f"save_weights(): weights must be finite, {broken} are not; {Path(path).name} is as before. {remedy}"
        )
    content = io.BytesIO()
    torch.save(state, content)
    path = write_atomically(path, content.getvalue())
    record_sha256(path)
    return path


def _not_finite(state: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]


def _existing(who: str, path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{who}(): no weights at {path}. Train them with the bundle's configs, or check the path.")
    return path
