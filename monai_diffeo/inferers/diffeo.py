"""The inferer that wraps any network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor

from monai_diffeo.canonicalize import Canonicalization, Canonicalizer
from monai_diffeo.command_line import parse_switch
from monai_diffeo.errors import NumericalError
from monai_diffeo.inferers.aggregation import agreement, mean_prediction

__all__ = ["DiffeoInferer", "overlay_path"]


class DiffeoInferer(Inferer):
    """Canonicalise the whole image, run the inner inferer there, map its answer back by the exact inverse.

    The network and the inner inferer stay as they are. ``enabled=False``, and every image that is not canonicalised, give the
    inner inferer's output bit for bit.

    Args:
        canonicalizer: the search for the canonical pose, a :class:`Canonicalizer` or anything that is called like one;
            None is enough for an inferer that is switched off.
        inferer: inner inferer, ``SimpleInferer()`` by default; sliding windows, patches and slices see the canonical image.
        enabled: true or false, also as the string that a command line hands on.
        fallback: what to do with an image that is rejected: ``"identity"`` gives the plain answer for it, ``"raise"`` stops.
        tta_samples: poses around the canonical one at which the network is asked; their answers are mapped back and averaged, and their
            agreement goes into the result. 1 asks once, as published; None takes the canonicaliser's ``tta_samples``, or 1.
        mode: ``"bilinear"`` to map scores back, ``"nearest"`` if the network answers with labels.
        on_result: called with each :class:`Canonicalization`, for example to report it. Nothing else is kept: the inferer
            holds no state of an image and may serve several threads.

    Raises:
        ValueError: for an unknown ``fallback`` or ``mode``.

    Example::

        inferer = DiffeoInferer(canonicalizer, SlidingWindowInferer(roi_size=(96, 96)))
        prediction = inferer(images, network)
    """

    def __init__(
        self,
        canonicalizer: Canonicalizer | Callable[[Tensor], Canonicalization] | None = None,
        inferer: Inferer | None = None,
        enabled: bool | str = True,
        fallback: str = "identity",
        tta_samples: int | None = None,
        mode: str = "bilinear",
        on_result: Callable[[Canonicalization], None] | None = None,
    ) -> None:
        super().__init__()
        if fallback not in ("identity", "raise"):
            raise ValueError(f"DiffeoInferer: 'fallback' must be 'identity' or 'raise', got {fallback!r}.")
        if mode not in ("bilinear", "nearest"):
            raise ValueError(f"DiffeoInferer: 'mode' must be 'bilinear' or 'nearest', got {mode!r}.")
        if tta_samples is not None and tta_samples < 1:
            raise ValueError(f"DiffeoInferer: 'tta_samples' must be at least 1, got {tta_samples}.")
        if canonicalizer is None and parse_switch(enabled):
            raise ValueError("DiffeoInferer: 'canonicalizer' is None; give one, for example load_canonicalizer(folder).")
        self.canonicalizer, self.tta_samples = canonicalizer, tta_samples
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.enabled, self.fallback, self.mode, self.on_result = parse_switch(enabled), fallback, mode, on_result

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Answer of ``network`` for ``inputs`` ``(B, C, *S)``, in the pose of ``inputs``.

        Further arguments go to the inner inferer as they are; a ``condition`` image is brought to the canonical pose too.

        Raises:
            NumericalError: if an image is rejected and ``fallback="raise"``.
        """
        if not self.enabled:
            return self.inferer(inputs, network, *args, **kwargs)
        result = self.canonicalizer(inputs)
        self._check(result)
        given = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        count = getattr(self.canonicalizer, "tta_samples", 1) if self.tta_samples is None else self.tta_samples
        poses = [result] if count == 1 else result.tta_samples(given, count)
        answers = [self._ask(pose, inputs, network, *args, **kwargs) for pose in poses]
        if self.on_result is not None:
            self.on_result(replace(result, agreement=agreement(answers, result.moved)))
        return mean_prediction(answers, result.moved)

    def _ask(self, pose: Canonicalization, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the inner inferer answers in one pose, mapped back."""
        image = pose.image
        if isinstance(inputs, MetaTensor):
            image = MetaTensor(image)
            image.copy_meta_from(inputs, copy_attr=False)
        if isinstance(kwargs.get("condition"), Tensor):
            kwargs = {**kwargs, "condition": pose.warp_input(kwargs["condition"])}
        answer = self.inferer(image, network, *args, **kwargs)
        with torch.autocast(inputs.device.type, enabled=False):
            return pose.warp_back(answer, self.mode)

    def _check(self, result: Canonicalization) -> None:
        rejected = [
            f"image {i} of {len(result.status)}: {s}" for i, s in enumerate(result.status, 1) if s.startswith("rejected")
        ]
        if rejected and self.fallback == "raise":
            raise NumericalError(
                "DiffeoInferer: " + "; ".join(rejected) + ". Use fallback='identity' to get the plain answer for it."
            )
        if rejected:
            warnings.warn("DiffeoInferer: " + "; ".join(rejected) + "; the plain answer is given for it.", stacklevel=3)


def overlay_path() -> str:
    """Path of the overlay configuration that wraps the inferer of any bundle.

    Stack it behind the bundle's ``inference.json``; its ids ``diffeo_folder`` (a folder for :func:`load_canonicalizer`),
    ``diffeo_mode`` and ``diffeo_enabled`` can be set on the command line::

        python -m monai.bundle run --config_file "['configs/inference.json', '$OVERLAY']" --diffeo_folder FOLDER ...
    """
    return str(Path(__file__).with_name("diffeo_overlay.json"))
