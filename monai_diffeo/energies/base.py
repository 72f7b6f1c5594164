"""What every energy promises."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Energy"]


class Energy(nn.Module):
    """Lower = closer to the training images; one number an image, deterministic, never summed over the batch.

    Subclasses define :meth:`forward`. An energy owns its networks. The energies of this package copy the network they are
    given and :meth:`freeze` the copy: the caller's own network is not changed and may be trained further.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Energies, shape ``(B,)``, of images ``(B, C, *S)``."""
        raise TypeError(f"{type(self).__name__} must define forward(image) -> (B,).")

    def evaluate(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Energies ``(B,)`` of images ``(B, C, *S)``, and their named terms, ``(B,)`` each; by default none."""
        return self(image), {}

    def freeze(self) -> Energy:
        """Eval mode for good, no gradients for the weights."""
        self.requires_grad_(False)
        return self.train(False)

    def train(self, mode: bool = True) -> Energy:
        """Energies have no training mode."""
        return super().train(False)
