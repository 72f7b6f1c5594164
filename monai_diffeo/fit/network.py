"""The network under test: what it answers, as probabilities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from monai_diffeo.errors import ConfigError

__all__ = ["NetworkUnderTest", "dice_of_masks", "masks_of_label"]


@dataclass
class NetworkUnderTest:
    """A trained network, with how it is asked and read.

    Attributes:
        network: a frozen copy is taken.
        inferer: how the network sees an image, such as MONAI's ``SlidingWindowInferer``; by default at once.
        activation: ``"sigmoid"`` or ``"softmax"``; None decides by the number of output channels.
        source: where it comes from, for the plan.
    """

    network: nn.Module
    inferer: Callable[..., Any] | None = None
    activation: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.activation not in (None, "sigmoid", "softmax"):
            raise ConfigError(f"fit: 'activation' must be 'sigmoid' or 'softmax', got {self.activation!r}.")
        self.network = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.inferer = SimpleInferer() if self.inferer is None else self.inferer
        self.stated = self.activation is not None

    def ask(self, image: Tensor, device: torch.device, inferer: Callable[..., Any] | None = None) -> Tensor:
        """Probabilities ``(K, *S)`` on one image ``(C, *S)``, on the CPU; by another inferer if one is given.

        Raises:
            ConfigError: if the network cannot take the image, or does not answer with one map an image.
        """
        image = image.as_tensor() if hasattr(image, "as_tensor") else image
        try:
            with torch.no_grad():
                answer = (inferer or self.inferer)(image[None].to(device), self.network.to(device))
        except (RuntimeError, ValueError) as error:
            remedy = "Give a bundle whose inferer and preprocessing fit the network, or fit without a network."
            raise ConfigError(
                f"fit: the network cannot take an image of shape {tuple(image.shape)}: {error}. {remedy}"
            ) from error
        while isinstance(answer, (Mapping, Sequence)):
            answer = next(iter(answer.values())) if isinstance(answer, Mapping) else answer[0]
        if not isinstance(answer, Tensor) or answer.ndim != image.ndim + 1:
            raise ConfigError(
                f"fit: the network must answer with a map (B, K, *S), got {getattr(answer, 'shape', type(answer))}."
            )
        if self.activation is None:
            self.activation = "sigmoid" if answer.shape[1] == 1 else "softmax"
        answer = answer.float().cpu()
        return (answer.sigmoid() if self.activation == "sigmoid" else answer.softmax(1))[0]

    def masks(self, probabilities: Tensor) -> Tensor:
        """Masks ``(K, *S)`` of the classes, without the background of a softmax."""
        if self.activation == "sigmoid":
            return probabilities > 0.5
        best = probabilities.argmax(0)
        return torch.stack([best == k for k in range(1, len(probabilities))])


def masks_of_label(label: Tensor, count: int) -> Tensor | None:
    """A label ``(1, *S)`` of class numbers, or ``(count, *S)`` of masks, as masks ``(count, *S)``; None if it is neither."""
    label = label.as_tensor() if hasattr(label, "as_tensor") else label
    if len(label) == count:
        return label > 0
    if len(label) != 1 or label.amax() > count:
        return None
    return torch.stack([label[0].round() == k for k in range(1, count + 1)])


def dice_of_masks(found: Tensor, wanted: Tensor) -> float:
    """Mean Dice over the classes that are in either of two masks ``(K, *S)``; 1 if there is none."""
    both, total = ((x.flatten(1).sum(1).double()) for x in (found & wanted, found.int() + wanted.int()))
    there = total > 0
    return float((2 * both[there] / total[there]).mean()) if there.any() else 1.0
