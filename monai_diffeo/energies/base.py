"""What every energy promises."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Energy"]


class Energy(nn.Module):
    """Lower = closer to the training images; one number an image, deterministic, never summed over the batch.

    Subclasses define :meth:`forward`. Networks inside are put to eval and frozen by :meth:`freeze`, which the constructors
    of this package call; a caller's ``train()`` does not undo it.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Energies, shape ``(B,)``, of images ``(B, C, *S)``."""
        raise TypeError(f"{type(self).__name__} must define forward(image) -> (B,).")

    def freeze(self) -> Energy:
        """Eval mode for good, no gradients for the weights."""
        self.requires_grad_(False)
        return self.train(False)

    def train(self, mode: bool = True) -> Energy:
        """Energies have no training mode."""
        return super().train(False)
