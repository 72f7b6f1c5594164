"""What the network under test answers: from its output to probabilities, and how far two answers are apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from monai.transforms import MapTransform
from torch import Tensor, nn

from monai_diffeo.errors import ShapeError
from monai_diffeo.networks.predictor import resample_image

__all__ = ["Activation", "AddAnswerd", "answer_activation"]

Activation = str | Callable[[Tensor], Tensor]


def answer_activation(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function from a network's output ``(B, K, *S)`` to probabilities.

    Args:
        activation: ``"softmax"`` for K classes that exclude one another, ``"sigmoid"`` for a class or for some that overlap,
            ``"none"`` where the network gives probabilities, or a function, which is returned.

    Raises:
        ValueError: for another name; by the softmax of one channel, which is 1 everywhere.
    """
    if not isinstance(activation, str):
        return activation
    names: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softmax": _softmax, "none": lambda x: x}
    if activation not in names:
        raise ValueError(f"answer_activation(): expected {', '.join(names)} or a function, got {activation!r}.")
    return names[activation]


def _softmax(output: Tensor) -> Tensor:
    if output.shape[1] == 1:
        raise ValueError("activation 'softmax' needs two channels or more, got 1, where it is 1 everywhere. Use 'sigmoid'.")
    return output.softmax(1)


def network_answer(who: str, output: object, image: Tensor, activation: Activation | None) -> Tensor:
    """Probabilities ``(B, K, *S)`` on the frame of ``image`` ``(B, C, *S)``, from whatever a network gave for it.

    Args:
        who: for messages.
        output: a tensor, or lists and dictionaries of them. The first map of the finest frame is taken.
        activation: as for :func:`answer_activation`; None is the sigmoid, for a network of one channel.

    Raises:
        ShapeError: if there is no floating point map on the frame of the image, or on a coarser one.
        ValueError: if ``activation`` is None and the network has several channels.
    """
    found = list(_tensors(output))
    size = tuple(image.shape[2:])
    maps = [m for m in found if m.is_floating_point() and m.ndim == image.ndim and len(m) == len(image)]
    maps = [m for m in maps if all(n <= most for n, most in zip(m.shape[2:], size))]
    if not maps:
        frame = f"({len(image)}, K, *S), S at most {size} as the image has it"
        shape = tuple(found[0].shape) if found else ()
        raise ShapeError(who, "network(image)", frame, shape, "Give a network whose answer is a map, or none.")
    finest = max(maps, key=lambda m: m.shape[2:].numel())
    if activation is None and finest.shape[1] > 1:
        choice = "'softmax' (classes exclude one another) or 'sigmoid' (they may overlap)"
        raise ValueError(f"{who}: 'activation' must be named for a network of {finest.shape[1]} channels: {choice}.")
    return resample_image(answer_activation(activation or "sigmoid")(finest), size)


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


class AddAnswerd(MapTransform):
    """Put the answer of a network on ``image`` ``(C, *S)`` under ``answer`` ``(K, *S)``, as probabilities; no label is needed.

    Args:
        network: the network under test, with its weights. A copy is taken, put into eval mode and frozen.
        activation: from its output to probabilities, as for :func:`answer_activation`. None is the sigmoid of one channel.
        inferer: ``(image, network) -> output``, e.g. MONAI's ``SlidingWindowInferer``; None is the network on the whole image.

    Raises:
        ShapeError: on call, if the answer is no map on the frame of the image, or on a coarser one.
        ValueError: on call, if the network has several channels and ``activation`` is not named.
    """

    def __init__(
        self,
        network: nn.Module,
        activation: Activation | None = None,
        inferer: Callable[[Tensor, nn.Module], object] | None = None,
    ) -> None:
        super().__init__("image")
        self.network, self.activation, self.inferer = frozen_copy(network), activation, inferer

    def __call__(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        image = torch.as_tensor(data["image"])[None]
        with torch.no_grad():
            output = self.network(image) if self.inferer is None else self.inferer(image, self.network)
            return {**data, "answer": network_answer("AddAnswerd", output, image, self.activation)[0]}


def frozen_copy(network: nn.Module) -> nn.Module:
    """The caller's network stays in its mode and trainable."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def answer_loss(given: Tensor, wanted: Tensor, activation: Activation | None) -> Tensor:
    """Soft Dice loss plus cross entropy: of a softmax summed over its classes, else of each channel apart."""
    bounded = given.clamp(1e-4, 1 - 1e-4)  # torch's own entropy refuses NaN before the iteration can say where
    if activation == "softmax":
        return soft_dice_loss(given, wanted) - (wanted * bounded.log()).sum(1).mean()
    return soft_dice_loss(given, wanted) - (wanted * bounded.log() + (1 - wanted) * (1 - bounded).log()).mean()


def soft_dice_loss(probability: Tensor, wanted: Tensor) -> Tensor:
    """One minus the soft Dice of each image and channel, averaged."""
    axes = tuple(range(2, probability.ndim))
    overlap = (probability * wanted).sum(axes)
    return 1 - ((2 * overlap + 1) / (probability.sum(axes) + wanted.sum(axes) + 1)).mean()
