"""The inferer that wraps any network."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor

from monai_diffeo.canonicalize import Canonicalization, Canonicalizer
from monai_diffeo.canonicalize.answers import check_outputs
from monai_diffeo.canonicalize.checks import check_callable, check_number
from monai_diffeo.canonicalize.result import REJECTED
from monai_diffeo.command_line import parse_switch
from monai_diffeo.errors import NumericalError
from monai_diffeo.inferers.aggregation import agreement, join_predictions, mean_prediction
from monai_diffeo.inferers.arguments import check_images, each_argument, move_arguments
from monai_diffeo.renamed import renamed_arguments

__all__ = ["DiffeoInferer", "DiffeoResult", "overlay_path"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiffeoResult:
    """What an inferer gives for one batch of images.

    Attributes:
        prediction: in the frame of the images, what a call of the inferer returns.
        canonicalization: of the images, with the agreement of the predictions; None if the inferer is switched off, or if the
            canonical images of a batch have different frames.
        plain: prediction without canonicalisation, if it was asked for.
        templates: the :class:`WarpedTemplate` of each pose, if a :class:`TemplateInferer` ran.
    """

    prediction: Any
    canonicalization: Canonicalization | None = None
    plain: Any = None
    templates: tuple[Any, ...] = ()


class DiffeoInferer(Inferer):
    """Canonicalise the whole image, run the inner inferer there, map its prediction back by the exact inverse.

    The network and the inner inferer stay as they are. ``enabled=False``, and every image that is not canonicalised, give the
    inner inferer's output bit for bit. Each rejected image is a warning of the logger ``monai_diffeo.inferers.diffeo``.

    Args:
        canonicalizer: the search for the canonical pose, a :class:`Canonicalizer` or anything that is called like one;
            None is enough for an inferer that is switched off.
        inferer: inner inferer, ``SimpleInferer()`` by default; sliding windows, patches and slices see the canonical image.
        enabled: true or false, also as the string that a command line hands on.
        fallback: for an image that is rejected, ``"identity"`` gives the plain prediction and ``"raise"`` stops.
        tta_samples: poses of test-time augmentation around the canonical one. Their predictions are mapped back and averaged,
            and their agreement goes into the result. 1 runs once, as published; None takes the canonicaliser's, or 1.
        mode: ``"bilinear"`` to map maps back, ``"nearest"`` if the network gives labels.
        outputs: what the network gives: ``"map"`` (a value for every voxel, or every few), ``"labels"`` (a map of labels),
            ``"scores"`` (not mapped), ``"points"`` ``(B, N, D)`` in voxels, or ``"boxes"`` ``(B, N, 2 * D)``, in another order
            with its name in MONAI, ``"boxes:ccwh"``. Of a dictionary by key, ``{"class": "scores", "seg": "map"}``, of a tuple
            or list one after another. None decides by shape between maps and scores.
        images: which further arguments of the network are images, by name, or by position after the network from 0:
            ``["prior", 0]``. ``{"prior": "map", "organs": "labels"}`` says how each moves; ``"scores"`` does not move. A
            ``condition`` always moves. Any other argument on the images' frame is an error.
        on_result: called with each :class:`Canonicalization`, for example to report it. The inferer keeps no state of an image
            and may serve several threads.

    Raises:
        ValueError: for an unknown ``fallback``, ``mode``, ``outputs`` or ``images``.
        TypeError: for a canonicaliser or an inferer that cannot be called.

    Example::

        inferer = DiffeoInferer(canonicalizer, SlidingWindowInferer(roi_size=(96, 96)))
        prediction = inferer(images, network)
    """

    @renamed_arguments(views="tta_samples")
    def __init__(
        self,
        canonicalizer: Canonicalizer | Callable[[Tensor], Canonicalization] | None = None,
        inferer: Inferer | None = None,
        enabled: bool | str = True,
        fallback: str = "identity",
        tta_samples: int | None = None,
        mode: str = "bilinear",
        on_result: Callable[[Canonicalization], None] | None = None,
        outputs: Any = None,
        images: Any = (),
    ) -> None:
        super().__init__()
        if fallback not in ("identity", "raise"):
            raise ValueError(f"DiffeoInferer: 'fallback' must be 'identity' or 'raise', got {fallback!r}.")
        if mode not in ("bilinear", "nearest"):
            raise ValueError(f"DiffeoInferer: 'mode' must be 'bilinear' or 'nearest', got {mode!r}.")
        check_number("DiffeoInferer", "tta_samples", tta_samples, 1, optional=True)
        if canonicalizer is None and parse_switch(enabled):
            raise ValueError("DiffeoInferer: 'canonicalizer' is None; give one, for example load_canonicalizer(folder).")
        if canonicalizer is not None:
            remedy = "Load a folder with load_canonicalizer(folder)."
            check_callable("DiffeoInferer", "canonicalizer", canonicalizer, "a Canonicalizer", remedy)
        if inferer is not None:
            check_callable("DiffeoInferer", "inferer", inferer, "an inferer", "Create it first, for example SimpleInferer().")
        self.canonicalizer, self.tta_samples, self.outputs = canonicalizer, tta_samples, check_outputs(outputs)
        self.inferer, self.images = SimpleInferer() if inferer is None else inferer, check_images(images)
        self.enabled, self.fallback, self.mode, self.on_result = parse_switch(enabled), fallback, mode, on_result

    def __call__(self, inputs: Tensor, network: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """Prediction of ``network`` for ``inputs`` ``(B, C, *S)``, in the frame of ``inputs``.

        The network may have the keyword that the inner inferer has for it, such as ``diffusion_model``. Images among further
        arguments are brought to the canonical pose, see ``images``. The deformation is a constant: gradients flow to ``inputs``
        through the moved image, the network and the way back. An empty batch is the inner inferer's, as it is.

        Raises:
            ConfigError: if an argument covers the frame of the images and is not declared.
            NumericalError: if an image is rejected and ``fallback="raise"``.
            ShapeError: where the shape of a prediction does not say what it is, or is not that of its declaration.
        """
        return self.infer(inputs, network, *args, **kwargs).prediction

    def infer(
        self, inputs: Tensor, network: Callable[..., Any] | None = None, *args: Any, plain: bool = False, **kwargs: Any
    ) -> DiffeoResult:
        """The prediction of a call together with how it came about.

        Args:
            inputs, network, args, kwargs: as for a call.
            plain: give the prediction without canonicalisation too; one more run of the network if an image was moved.
        """
        if network is None:  # by the keyword of the inner inferer
            network = kwargs.pop([*inspect.signature(self.inferer).parameters, "", ""][1], None)
        if not self.enabled or self.canonicalizer is None or (isinstance(inputs, Tensor) and not len(inputs)):
            result = _infer(self.inferer, inputs, network, *args, **kwargs)
            return replace(result, plain=result.prediction if plain else None)
        check_callable("DiffeoInferer", "network", network, "a network", "Give the images first, then the network itself.")
        may_change_frame = getattr(self.canonicalizer, "may_change_frame", None)
        if len(inputs) > 1 and may_change_frame is not None and may_change_frame(inputs.shape[2:]):
            return self._one_by_one(inputs, network, *args, plain=plain, **kwargs)
        found = self.canonicalizer(inputs)
        if not isinstance(found, Canonicalization):
            remedy = "Give a Canonicalizer, or a function that calls one."
            raise TypeError(
                f"DiffeoInferer: the canonicalizer must return a Canonicalization, got {type(found).__name__}. {remedy}"
            )
        rejected = [f"image {i} of {len(found.status)}: {s}" for i, s in enumerate(found.status, 1) if s.startswith(REJECTED)]
        if rejected and self.fallback == "raise":
            remedy = "Use fallback='identity' to get the plain prediction for it."
            raise NumericalError(f"DiffeoInferer: {'; '.join(rejected)}. {remedy}")
        for sentence in rejected:
            _log.warning("DiffeoInferer: %s; the plain prediction is given for it.", sentence)
        given = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        count = getattr(self.canonicalizer, "tta_samples", 1) if self.tta_samples is None else self.tta_samples
        with torch.autocast(inputs.device.type, enabled=False):
            live = replace(found, image=found.moved_image(given)) if given.requires_grad and torch.is_grad_enabled() else found
            poses = [live] if count == 1 else live.tta_samples(given, count)
        results = [self._at_pose(pose, inputs, network, *args, **kwargs) for pose in poses]
        predictions = [result.prediction for result in results]
        found = replace(found, agreement=agreement(predictions, found.moved, self.outputs))
        if self.on_result is not None:
            self.on_result(found)
        prediction = without = mean_prediction(predictions, found.moved, self.outputs)
        if plain and bool(found.moved.any()):
            without = self.inferer(inputs, network, *args, **kwargs)
        templates = tuple(template for result in results for template in result.templates)
        return DiffeoResult(prediction, found, without if plain else None, templates)

    def _one_by_one(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> DiffeoResult:
        """Oblong images that may be rotated differently: their canonical images need not have the same frame."""
        parts, batch = [], len(inputs)
        for i in range(batch):
            row = partial(lambda i, part, _: part[i : i + 1] if part.shape[:1] == (batch,) else part, i)
            own = each_argument(args, kwargs, row)
            parts.append(self.infer(inputs[i : i + 1], network, *own[0], **own[1]))
        found = [part.canonicalization for part in parts if part.canonicalization is not None]
        same = len({tuple(result.image.shape) for result in found}) == 1
        return DiffeoResult(
            join_predictions([part.prediction for part in parts]),
            Canonicalization.join(found) if same else None,
            join_predictions([part.plain for part in parts]) if kwargs.get("plain") else None,
            tuple(template for part in parts for template in part.templates),
        )

    def _at_pose(
        self, pose: Canonicalization, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> DiffeoResult:
        """What the inner inferer gives at one pose, its prediction mapped back."""
        image = pose.image
        if isinstance(inputs, MetaTensor):
            image = MetaTensor(image)
            image.copy_meta_from(inputs, copy_attr=False)
        with torch.autocast(inputs.device.type, enabled=False):
            moved, named = move_arguments(pose, self.images, args, kwargs)
        result = _infer(self.inferer, image, network, *moved, **named)
        with torch.autocast(inputs.device.type, enabled=False):
            return replace(result, prediction=pose.warp_back(result.prediction, self.mode, self.outputs))


def _infer(inferer: Callable[..., Any], inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> DiffeoResult:
    """The result of any inferer; of one of ours with all that it says."""
    if isinstance(inferer, Inferer) and hasattr(inferer, "infer"):
        return inferer.infer(inputs, network, *args, **kwargs)
    return DiffeoResult(inferer(inputs, network, *args, **kwargs))


def overlay_path() -> str:
    """Path of the overlay configuration that wraps the inferer of any bundle.

    Stack it behind the bundle's ``inference.json``; its ids ``diffeo_folder`` (a folder for :func:`load_canonicalizer`),
    ``diffeo_mode``, ``diffeo_outputs`` (see :class:`DiffeoInferer`) and ``diffeo_enabled`` can be set on the command line::

        python -m monai.bundle run --config_file "['configs/inference.json', '$OVERLAY']" --diffeo_folder FOLDER ...
    """
    return str(Path(__file__).with_name("diffeo_overlay.json"))
