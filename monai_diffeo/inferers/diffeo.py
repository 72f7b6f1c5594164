"""The inferer that wraps any network."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor

from monai_diffeo.canonicalize import Canonicalization, Canonicalizer
from monai_diffeo.canonicalize.acceptance import ROTATION_LIMITS, poses_of_each, prefer_motion
from monai_diffeo.canonicalize.answers import check_outputs, map_parts
from monai_diffeo.canonicalize.checks import check_callable, check_number
from monai_diffeo.canonicalize.result import REJECTED
from monai_diffeo.command_line import parse_switch
from monai_diffeo.errors import RejectedError
from monai_diffeo.inferers.aggregation import agreement, choose_rows, join_predictions, mean_prediction, overlap, rows_of
from monai_diffeo.inferers.arguments import check_images, each_argument, move_arguments
from monai_diffeo.inferers.axes import axes_of_films, infer_rows_first, warn_of_unknown_axes
from monai_diffeo.inferers.record import forget, like_input, records_of, signs_of, tell
from monai_diffeo.inferers.slices import ask_slices, is_slicewise, slices_of, summaries, volumes_of

__all__ = ["DiffeoInferer", "DiffeoResult"]


@dataclass(frozen=True)
class DiffeoResult:
    """What an inferer gives for one batch of images.

    Attributes:
        prediction: in the frame of the images, what a call of the inferer returns.
        canonicalization: of the images, with the agreement of the predictions; None if the inferer is switched off, or if the
            canonical images of a batch have different frames.
        plain: prediction without canonicalisation, if it was asked for.
        templates: the :class:`WarpedTemplate` of each pose, if a :class:`TemplateInferer` ran.
        records: what happened to each image in words and numbers, as in the metadata of the prediction.
        searched: of the images as the search moved them, where ``motion_limits`` asked both; else the ``canonicalization``.
        rest: the images at rest, only rotated and enlarged, where ``motion_limits`` asked them; None without.
        unchosen: the prediction that ``motion_limits`` did not take, of images that were not moved the other; None without.
        verdicts: the :class:`monai_diffeo.trust.Verdict` of each image, if a judge was asked.
        second: prediction of another kind of network, if a judge asked one.
        averaged: the prediction before the answer at one pose replaced the mean over poses that differ from it; None without.
        poses: the prediction from each pose that was asked, mapped back; only with ``keep_poses``.
    """

    prediction: Any
    canonicalization: Canonicalization | None = None
    plain: Any = None
    templates: tuple[Any, ...] = ()
    records: tuple[Mapping[str, Any], ...] = ()
    searched: Canonicalization | None = None
    rest: Canonicalization | None = None
    unchosen: Any = None
    verdicts: tuple[Any, ...] = ()
    second: Any = None
    averaged: Any = None
    poses: tuple[Any, ...] = ()


class DiffeoInferer(Inferer):
    """Canonicalise the whole image, run the inner inferer there, map its prediction back by the exact inverse.

    The network and the inner inferer stay as they are. ``enabled=False``, and every image that is not canonicalised, give the
    inner inferer's output bit for bit. The logger ``monai_diffeo.inferers.diffeo`` gets one line for each image, a warning if
    it is rejected. Images with metadata get the same as ``meta["diffeo"]``, and so does a prediction with metadata. With a
    canonicaliser of ``monai-diffeo fit`` both hold a ``decision`` on each image, by what was usual in the fit.

    A canonicaliser of 2D images around a ``SliceInferer`` sees each slice of a volume as one image.

    A canonicaliser of films with ``rows_first``, such as ``cxr``, knows rows x columns, and so must the network. Films of
    MONAI's ``LoadImage`` have columns x rows, and their metadata say so. They are transposed, their predictions are transposed
    back, and a note says so. ``load_canonicalizer("cxr", rows_first=False)`` leaves their axes alone.

    Args:
        canonicalizer: the search for the canonical pose, a :class:`Canonicalizer` or anything that is called like one;
            None is enough for an inferer that is switched off.
        inferer: inner inferer, ``SimpleInferer()`` by default; sliding windows, patches and slices see the canonical image.
        enabled: true or false, also as the string that a command line hands on.
        fallback: for an image that is rejected, ``"identity"`` gives the plain prediction and ``"raise"`` stops. ``"best"`` is
            for :class:`monai_diffeo.trust.FilmJudge`.
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
        motion_limits: ``{"energy": 30.0, "disagreement": 0.5}`` asks the network about the image at rest, too, which is only
            rotated and enlarged. Half of the poses, and at least two, are then of this, as many of the deformed image, and a
            rotated image is also asked unrotated. The answers on the deformed image count only if its energy is at most the
            one, and if they disagree at most by this factor of the others' disagreement. A rotation counts unless its answers
            disagree by 1.2 times as much as those without it, or more. With ``"overlap": 0.97``, the mean over the poses of an
            image at rest counts only where its Dice with the answer at one pose is at least this. For networks that were
            trained on many poses; needs several ``tta_samples``. None always takes the answers on the deformed image.
        tta_batch_size: how many images the inner inferer gets at once, of the poses of test-time augmentation. With more than 1
            they have no metadata, and answers are the same to rounding; quicker, for more memory. Networks with further
            arguments, and a :class:`TemplateInferer`, get one pose after another.
        keep_poses: the result holds the prediction from each pose, for :func:`uncertainty_map`; also as a string.
        parts: called with the prediction and the canonicalisation that counts, gives what becomes of the prediction at the end,
            such as :class:`PartsInPlace`. ``plain`` and ``unchosen`` of a result do not change.
        on_result: called with each :class:`Canonicalization`, for example to report it. The inferer keeps no state of an image
            and may serve several threads.

    Raises:
        ValueError: for an unknown ``fallback``, ``mode``, ``outputs`` or ``images``.
        TypeError: for a canonicaliser or an inferer that cannot be called.

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
        outputs: Any = None,
        images: Any = (),
        motion_limits: Mapping[str, float] | None = None,
        tta_batch_size: int = 1,
        keep_poses: bool | str = False,
        parts: Callable[[Any, Canonicalization], Any] | None = None,
    ) -> None:
        super().__init__()
        if fallback not in ("identity", "raise"):
            raise ValueError(f"DiffeoInferer: 'fallback' must be 'identity' or 'raise', got {fallback!r}.")
        if mode not in ("bilinear", "nearest"):
            raise ValueError(f"DiffeoInferer: 'mode' must be 'bilinear' or 'nearest', got {mode!r}.")
        check_number("DiffeoInferer", "tta_samples", tta_samples, 1, optional=True)
        check_number("DiffeoInferer", "tta_batch_size", tta_batch_size, 1)
        if canonicalizer is None and parse_switch(enabled):
            raise ValueError("DiffeoInferer: 'canonicalizer' is None; give one, for example load_canonicalizer(folder).")
        if canonicalizer is not None:
            remedy = "Load a folder with load_canonicalizer(folder)."
            check_callable("DiffeoInferer", "canonicalizer", canonicalizer, "a Canonicalizer", remedy)
        if inferer is not None:
            check_callable("DiffeoInferer", "inferer", inferer, "an inferer", "Create it first, for example SimpleInferer().")
        self.canonicalizer, self.tta_samples, self.outputs = canonicalizer, tta_samples, check_outputs(outputs)
        self.inferer: Any = SimpleInferer() if inferer is None else inferer
        self.images, self.motion_limits = check_images(images), _check_limits(motion_limits)
        self.tta_batch_size = tta_batch_size
        self.keep_poses, self.parts = parse_switch(keep_poses), parts
        if parts is not None:
            check_callable("DiffeoInferer", "parts", parts, "a function", "Create it first, for example PartsInPlace(atlas).")
        self.enabled, self.fallback, self.mode, self.on_result = parse_switch(enabled), fallback, mode, on_result

    def __call__(self, inputs: Tensor, network: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        """Prediction of ``network`` for ``inputs`` ``(B, C, *S)``, in the frame of ``inputs``.

        The network may have the keyword that the inner inferer has for it, such as ``diffusion_model``. Images among further
        arguments are brought to the canonical pose, see ``images``. The deformation is a constant: gradients flow to ``inputs``
        through the moved image, the network and the way back. An empty batch is the inner inferer's, as it is.

        Raises:
            ConfigError: if an argument covers the frame of the images and is not declared.
            RejectedError: if an image is rejected and ``fallback="raise"``.
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
        forget(inputs)
        result = self._ask(inputs, network, *args, plain=plain, **kwargs)
        tell(result.records, inputs, result.prediction)
        return result

    def _ask(self, inputs: Tensor, network: Any, *args: Any, plain: bool = False, **kwargs: Any) -> DiffeoResult:
        if not self.enabled or self.canonicalizer is None or (isinstance(inputs, Tensor) and not len(inputs)):
            result = _infer(self.inferer, inputs, network, *args, **kwargs)
            return replace(result, plain=result.prediction if plain else None)
        check_callable("DiffeoInferer", "network", network, "a network", "Give the images first, then the network itself.")
        if getattr(self.canonicalizer, "rows_first", False) and (axes := axes_of_films(inputs)):
            return infer_rows_first(self._ask, axes, inputs, network, *args, outputs=self.outputs, plain=plain, **kwargs)
        if is_slicewise(self.inferer, inputs, self.canonicalizer):
            return self._by_slices(inputs, network, *args, plain=plain, **kwargs)
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
            raise RejectedError(f"DiffeoInferer: {'; '.join(rejected)}. {remedy}", found)
        given = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        count = getattr(self.canonicalizer, "tta_samples", 1) if self.tta_samples is None else self.tta_samples
        at_rest = getattr(self.canonicalizer, "at_rest", None)
        motion = self.motion_limits if at_rest else None
        count = poses_of_each(count) if motion else count

        def ask(found: Canonicalization) -> tuple[Canonicalization, Any, list[DiffeoResult]]:
            with torch.autocast(inputs.device.type, enabled=False):
                live = (
                    replace(found, image=found.moved_image(given)) if given.requires_grad and torch.is_grad_enabled() else found
                )
                poses = [live] if count == 1 else live.tta_samples(given, count)
            results = self._at_poses(poses, inputs, network, *args, **kwargs)
            predictions = [result.prediction for result in results]
            found = replace(found, agreement=agreement(predictions, found.moved, self.outputs))
            return found, mean_prediction(predictions, found.moved, self.outputs), results

        found, prediction, results = ask(found)
        searched, unchosen, averaged, without = found, None, None, None
        rest: Canonicalization | None = None
        quick = given if self.tta_batch_size > 1 else inputs  # without metadata
        if at_rest and motion and found.agreement is not None and bool(found.moved.any()):
            rest, answer, others = ask(at_rest(given, found))
            results += others
            if found.rotations is not None and bool(found.rotations.any()):
                still, still_answer, others = ask(at_rest(given, found, rotated=False))
                results += others
                keep = _prefer(rest, still, found.rotations != 0, ROTATION_LIMITS)
                rest, answer = rest.where(keep, still), choose_rows(keep, answer, still_answer)
            keep = _prefer(found, rest, found.moved, motion)
            unchosen, mean = choose_rows(keep, answer, prediction), choose_rows(keep, prediction, answer)
            found, prediction = found.where(keep, rest), mean
            if "overlap" in motion:
                single = self._at_pose(rest, quick, network, *args, **kwargs).prediction
                without = None if bool(rest.ddf.any()) else single  # the image as it was given
                if (same := overlap(answer, single, self.outputs)) is not None:
                    same = keep | (same.to(keep.device) >= motion["overlap"])
                    prediction, averaged = choose_rows(same, mean, single), mean
        with_all_parts = prediction
        if self.parts is not None:
            prediction = self.parts(prediction, found)
            averaged = None if averaged is None else self.parts(averaged, found)
        if self.tta_batch_size > 1:
            prediction = map_parts(prediction, lambda part, *_: like_input(part, inputs))
        if getattr(self.canonicalizer, "rows_first", False):
            warn_of_unknown_axes(inputs, found)
        if self.on_result is not None:
            self.on_result(found)
        if plain and without is None:
            without = self.inferer(quick, network, *args, **kwargs) if bool(found.moved.any()) else prediction
        templates = tuple(template for result in results for template in result.templates)
        without = without if plain else None
        kept = tuple(result.prediction for result in results) if self.keep_poses else ()
        records = records_of(found)
        if limits := getattr(self.canonicalizer, "limits", None):
            likeness = agreement([with_all_parts, without], found.moved, self.outputs) if plain else None
            signs = zip(records, signs_of(searched, found.agreement, likeness), found.status)
            records = tuple({**record, "decision": limits.decision(row, status)} for record, row, status in signs)
        return DiffeoResult(
            prediction, found, without, templates, records, searched, rest, unchosen, averaged=averaged, poses=kept
        )

    def _one_by_one(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> DiffeoResult:
        """Oblong images that may be rotated differently: their canonical images need not have the same frame."""
        parts, batch = [], len(inputs)
        for i in range(batch):
            row = partial(lambda i, part, _: part[i : i + 1] if part.shape[:1] == (batch,) else part, i)
            own = each_argument(args, kwargs, row)
            parts.append(self._ask(inputs[i : i + 1], network, *own[0], **own[1]))
        result = _joined(parts)
        return replace(result, prediction=map_parts(result.prediction, lambda part, *_: like_input(part, inputs, MetaTensor)))

    def _by_slices(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> DiffeoResult:
        """Volumes, each slice of which is an image to the canonicaliser."""
        inferer, each = self.inferer, copy.copy(self)
        each.inferer = partial(ask_slices, inferer)
        result = _joined([each._ask(part, network, *args, **own) for part, own in slices_of(inferer, inputs, kwargs)])
        prediction, plain = (volumes_of(answer, inferer, inputs) for answer in (result.prediction, result.plain))
        records = summaries(result.records, len(inputs))
        poses = tuple(volumes_of(answer, inferer, inputs) for answer in result.poses)
        return replace(result, prediction=prediction, plain=plain, records=records, unchosen=None, averaged=None, poses=poses)

    def _at_poses(
        self, poses: Sequence[Canonicalization], inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> list[DiffeoResult]:
        """What the inner inferer gives at each pose, several at once where nothing but the images goes in."""
        batch = len(inputs)
        count = self.tta_batch_size // batch
        if count < 2 or args or kwargs or hasattr(self.inferer, "infer") or not bool(poses[0].moved.all()):
            return [self._at_pose(pose, inputs, network, *args, **kwargs) for pose in poses]

        results = []
        for some in (poses[i : i + count] for i in range(0, len(poses), count)):
            together = self._at_pose(Canonicalization.join(some), some[0].image, network).prediction
            results += [DiffeoResult(rows_of(together, i * batch, batch, len(some) * batch)) for i in range(len(some))]
        return results

    def _at_pose(
        self, pose: Canonicalization, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> DiffeoResult:
        """What the inner inferer gives at one pose, its prediction mapped back."""
        image = like_input(pose.image, inputs)
        with torch.autocast(inputs.device.type, enabled=False):
            moved, named = move_arguments(pose, self.images, args, kwargs)
        result = _infer(self.inferer, image, network, *moved, **named)
        with torch.autocast(inputs.device.type, enabled=False):
            return replace(result, prediction=pose.warp_back(result.prediction, self.mode, self.outputs))


def _check_limits(limits: Any) -> Mapping[str, float] | None:
    """Limits as :class:`DiffeoInferer` knows them, or None; a ValueError for others."""
    if limits is not None:
        if not isinstance(limits, Mapping) or set(limits) - {"overlap"} != {"energy", "disagreement"}:
            expected = "the keys 'energy' and 'disagreement', and perhaps 'overlap'"
            raise ValueError(f"DiffeoInferer: 'motion_limits' must have {expected}, got {limits!r}.")
        for name, value in limits.items():
            check_number("DiffeoInferer", f"motion_limits.{name}", value, float("-inf"), whole=False)
    return limits


def _prefer(one: Canonicalization, other: Canonicalization, differ: Tensor, limits: Mapping[str, float]) -> Tensor:
    """Which images have the better answers in the first of two results, ``(B,)``, bool; those that do not ``differ`` too."""
    if one.agreement is None or other.agreement is None:
        return torch.ones_like(differ)
    energy, agreed, other_agreed = (t.to(differ.device) for t in (one.energy_after, one.agreement, other.agreement))
    return ~differ | prefer_motion(energy, agreed, other_agreed, limits)


def _infer(inferer: Callable[..., Any], inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> DiffeoResult:
    """The result of any inferer; of one of ours with all that it says."""
    if isinstance(inferer, Inferer) and hasattr(inferer, "infer"):
        return inferer.infer(inputs, network, *args, **kwargs)
    return DiffeoResult(inferer(inputs, network, *args, **kwargs))


def _joined(parts: Sequence[DiffeoResult]) -> DiffeoResult:
    """The result of one batch from those of its parts, without a canonicalisation where frames differ."""

    def joined(found: Sequence[Canonicalization | None]) -> Canonicalization | None:
        here = [result for result in found if result is not None]
        return Canonicalization.join(here) if len({tuple(result.image.shape[2:]) for result in here}) == 1 else None

    return DiffeoResult(
        join_predictions([part.prediction for part in parts]),
        joined([part.canonicalization for part in parts]),
        join_predictions([part.plain for part in parts]),
        tuple(template for part in parts for template in part.templates),
        tuple(record for part in parts for record in part.records),
        joined([part.searched for part in parts]),
        None if any(part.rest is None for part in parts) else joined([part.rest for part in parts]),
        None if any(part.unchosen is None for part in parts) else join_predictions([part.unchosen for part in parts]),
        averaged=None if any(part.averaged is None for part in parts) else join_predictions([p.averaged for p in parts]),
        poses=tuple(join_predictions(answers) for answers in zip(*(part.poses for part in parts))),  # as many as all have
    )
