"""What every energy promises."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from monai_diffeo.errors import ShapeError
from monai_diffeo.networks.channels import explained_channels

__all__ = ["Energy", "FunctionEnergy", "as_energy"]


class Energy(nn.Module):
    """Lower = closer to the training images; one number an image, deterministic, never summed over the batch.

    Subclasses define :meth:`forward`. An energy owns its networks. The energies of this package copy the network they are
    given and :meth:`freeze` the copy: the caller's own network is not changed and may be trained further.

    Attributes:
        computes_double: whether an energy of ``double()`` weights takes double images. It is not inherited.
    """

    computes_double = False

    def __call__(self, image: Tensor) -> Tensor:
        """:meth:`forward`, and a ShapeError if that does not give one number an image."""
        with explained_channels(self._called(), self, image):
            value = super().__call__(image)
        if not isinstance(value, Tensor) or tuple(value.shape) != tuple(image.shape[:1]):
            actual = tuple(value.shape) if isinstance(value, Tensor) else ()
            remedy = "Give one number an image: end with .flatten(1).mean(1), not with .mean()."
            raise ShapeError(self._called(), "energy", f"({len(image)},), one number for each image", actual, remedy)
        return value

    def _called(self) -> str:
        """What errors call this energy."""
        return type(self).__name__

    def forward(self, image: Tensor) -> Tensor:
        """Energies, shape ``(B,)``, of images ``(B, C, *S)``."""
        raise TypeError(f"{type(self).__name__} must define forward(image) -> (B,).")

    def evaluate(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Energies ``(B,)`` of images ``(B, C, *S)``, and their named terms, ``(B,)`` each; by default none."""
        return self(image), {}

    def known_value(self, part: Energy, terms: Mapping[str, Tensor]) -> Tensor | None:
        """The values ``(B,)`` of an energy that this one consists of, by the ``terms`` of :meth:`evaluate`; None where these do
        not tell."""
        return None

    def any_precision(self) -> bool:
        """Whether this and all energies that it consists of compute in double precision too."""
        return all(part._is_known() for part in self.modules() if isinstance(part, Energy))

    def _is_known(self) -> bool:
        return bool(vars(type(self)).get("computes_double"))

    def freeze(self) -> Energy:
        """Eval mode for good, no gradients for the weights."""
        self.requires_grad_(False)
        return self.train(False)

    def train(self, mode: bool = True) -> Energy:
        """Energies have no training mode."""
        return super().train(False)


class FunctionEnergy(Energy):
    """A function, or any module, that takes images ``(B, C, *S)`` to ``(B,)``, as an energy.

    Args:
        function: deterministic; of torch operations, if the energy is to be lowered by steps. A module is copied and frozen.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = copy.deepcopy(function) if isinstance(function, nn.Module) else function
        self.freeze()

    def _called(self) -> str:
        return f"{getattr(self.function, '__name__', type(self.function).__name__)}()"

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image)


def as_energy(who: str, argument: str, energy: Any) -> Energy:
    """An energy itself, or a function or module as one; a TypeError for anything else, a class for example."""
    if isinstance(energy, Energy):
        return energy
    if callable(energy) and not inspect.isclass(energy):
        return FunctionEnergy(energy)
    expected = "of class Energy, or a function of images (B, C, *S) that gives (B,)"
    remedy = (
        "Create the energy first: call its class." if inspect.isclass(energy) else "Give an object, for example VAEEnergy(vae)."
    )
    raise TypeError(f"{who}: {argument!r} must be {expected}, got {energy!r}. {remedy}")
