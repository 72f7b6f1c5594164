"""The network under test: what it answers, as probabilities and as masks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from monai_diffeo.errors import ConfigError
from monai_diffeo.training.answers import network_answer

__all__ = ["NetworkUnderTest", "dice_of_masks", "masks_of_label"]


class NetworkUnderTest:
    """A frozen copy of a trained network, with how it is asked and read.

    Args:
        network: with its weights.
        inferer: how the network sees an image, such as MONAI's ``SlidingWindowInferer``; None shows it the whole.
        activation: ``"sigmoid"`` or ``"softmax"``; None takes the sigmoid of one output channel, the softmax of several.
        source: where it comes from, for the plan.
    """

    def __init__(
        self, network: nn.Module, inferer: Callable[..., Any] | None = None, activation: str | None = None, source: str = ""
    ) -> None:
        if activation not in (None, "sigmoid", "softmax"):
            raise ConfigError(f"fit: 'activation' must be 'sigmoid' or 'softmax', got {activation!r}.")
        self.network, self.source = copy.deepcopy(network).eval().requires_grad_(False), source or type(network).__name__
        self.inferer: Callable[..., Any] = (lambda image, net: net(image)) if inferer is None else inferer
        self.parts = not (inferer is None or isinstance(inferer, SimpleInferer))
        self.activation, self.stated = activation, activation is not None

    def ask(self, image: Tensor, device: torch.device, inferer: Callable[..., Any] | None = None) -> Tensor:
        """Probabilities ``(K, *S)`` on one image ``(C, *S)``, on the CPU; by another inferer if one is given.

        Raises:
            ConfigError: if the network cannot take the image, or does not answer with a map.
        """
        batch = torch.Tensor.as_subclass(image, torch.Tensor)[None].to(device)
        try:
            with torch.no_grad():
                output = (inferer or self.inferer)(batch, self.network.to(device))
            if self.activation is None:
                count = network_answer("fit", output, batch, "none").shape[1]
                self.activation = "sigmoid" if count == 1 else "softmax"
            return network_answer("fit", output, batch, self.activation)[0].float().cpu()
        except (RuntimeError, ValueError, TypeError) as error:
            remedy = "Give a bundle whose preprocessing and inferer fit its network, or fit without a network."
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"fit: the network cannot take an image {tuple(image.shape)}: {reason}. {remedy}") from error

    def whole_image(self, who: str) -> nn.Module:
        """The network alone; a ConfigError if its inferer shows it parts of an image."""
        if self.parts:
            raise ConfigError(f"{who}: the bundle's inferer must show the network the whole image, got {self.inferer!r}.")
        return self.network

    def classes(self, probabilities: Tensor) -> Tensor:
        """The probabilities ``(K, *S)`` without the background of a softmax."""
        return probabilities[1:] if self.activation == "softmax" else probabilities

    def masks(self, probabilities: Tensor) -> Tensor:
        """Masks ``(K, *S)`` of these classes."""
        if self.activation == "sigmoid":
            return probabilities > 0.5
        return probabilities.argmax(0) == torch.arange(1, len(probabilities)).view(-1, *[1] * (probabilities.ndim - 1))


def masks_of_label(label: Tensor, count: int) -> Tensor | None:
    """A label ``(1, *S)`` of class numbers, or ``(count, *S)`` of masks, as masks ``(count, *S)``; None if it is neither."""
    label = torch.Tensor.as_subclass(label, torch.Tensor)
    if len(label) == count:
        return label > 0
    if len(label) > 1 or label.amax() > count:
        return None
    return label.round() == torch.arange(1, count + 1).view(-1, *[1] * (label.ndim - 1))


def dice_of_masks(found: Tensor, wanted: Tensor) -> float:
    """Mean Dice over the classes that are in either of two masks ``(K, *S)``; 1 if there is none."""
    both, total = (found & wanted).flatten(1).sum(1), found.flatten(1).sum(1) + wanted.flatten(1).sum(1)
    return float((2 * both / total)[total > 0].mean()) if bool((total > 0).any()) else 1.0
