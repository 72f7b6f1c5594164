"""Images to their canonical pose, by prediction, by optimisation, or by both."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffeo.canonicalize import acceptance
from monai_diffeo.canonicalize.checks import check_image
from monai_diffeo.canonicalize.drawing import describe_canonicalizer
from monai_diffeo.canonicalize.energy_search import EnergySearch
from monai_diffeo.canonicalize.framing import Enlarging
from monai_diffeo.canonicalize.limits import SignLimits
from monai_diffeo.canonicalize.result import CANONICALIZED, Canonicalization, move_image
from monai_diffeo.canonicalize.rotation import rotated_back, rotated_maps
from monai_diffeo.canonicalize.search import Chain, SearchObjective, minimize, predict, search_theta
from monai_diffeo.canonicalize.settings import check_settings
from monai_diffeo.energies import Energy
from monai_diffeo.energies.base import as_energy
from monai_diffeo.families import Family
from monai_diffeo.flow import Deformation, folding_fraction, warp
from monai_diffeo.networks import ImageOrientation
from monai_diffeo.networks.predictor import resample_once_more

__all__ = ["Canonicalizer", "placed"]

_TOGETHER = 64  # images that are optimised together on CUDA


class Canonicalizer(nn.Module):
    r"""Search, for each image, a diffeomorphism that makes it look like the training images.

    An optional predictor looks at the image ``iterations`` times and moves it each time; ``steps`` of Adam then lower
    ``energy(moved image) + regularizer(velocity, ddf)``; the displacement stands in for the velocity where a family has none.
    With a predictor and no steps this is the mode *single pass*; with both, or with a ``search`` of its own, *refine*; with
    neither predictor nor early stopping and the published settings, *faithful*.

    Search, energies and networks see the image at ``working_size``. What is found is applied to the image at its own size,
    edges on edges, so that energies and cost hardly depend on it. All channels of an image move together.

    A batch gives what its images give one by one. An image is left alone, bit for bit, when its energy is already within
    ``skip_below``. It is rejected when it is constant, when anything is not finite, when its energy rises by more than
    ``max_energy_increase``, or when its field or the inverse still folds after ``max_halvings`` halvings. ``status`` says
    which; :mod:`monai_diffeo.canonicalize.acceptance` holds the rules.

    The canonicaliser keeps frozen copies of ``predictor`` and ``orientation``: the caller may go on training them, without
    effect here. ``energy``, ``family`` and ``regularizer`` are shared with the caller; they have no training mode, and their
    weights stay as they are.

    Args:
        energy: of images, lower = closer to the training images; a function of images ``(B, C, *S)`` that gives ``(B,)`` will
            do, see :class:`FunctionEnergy`.
        family: of the deformations, any.
        regularizer: ``(velocity, ddf) -> (B,)``, what a deformation costs; needed when ``steps`` is not 0.
        predictor: image to the parameters of ``family``, any module or function; None starts the search from the identity.
        orientation: sees how the axes of an image are rotated. Where a rotation is likely enough, the search starts from the
            image rotated back, on the frame that it then has. An image that looks mirrored is only noted: situs inversus
            exists. One that may be, with 0.01 or more, is looked at again in canonical pose, and the odds multiply.
        enlarge_below: the foreground of an image within a constant border, such as a small film on a black screen, is enlarged
            to the frame first, if it takes at most this share of each axis. Each axis has its own factor. ``energy_before``
            and ``skip_below`` are of the image as it was given. None enlarges nothing, and is right where a background is
            constant anyway.
        min_confidence: smallest probability of a rotation that is undone, and of a mirrored image that is noted.
        rotation_temperature: fall of the energy that makes a rotation e times as likely. None takes the likeliest one by
            ``orientation`` alone, and refuses it where the energy rises.
        steps: optimisation steps at most.
        iterations: looks of the predictor, at most.
        min_motion: an image is looked at again only if the last look moved it by more than this share of the frame, on
            average; None takes all looks. Films at rest are soon left in peace, those that came far go further.
        learning_rate: of Adam, in the family's relative units.
        patience: steps without improvement after which an image stops; None never stops early.
        skip_below: leave alone an image whose energy is at most this; None moves every image.
        max_energy_increase: energy may rise by this much and the result still counts; None accepts any.
        ood_threshold: an image whose energy remains above this gets a note; None notes none.
        search_family: family of the optimisation, ``family`` by default.
        final_steps: squarings of the exponentials that are returned; families in closed form have none.
        max_halvings: how often the deformations of a folding field are halved.
        tta_samples: how many poses a :class:`DiffeoInferer` should ask at unless it is told otherwise.
        sampling: of the canonical image, ``"bilinear"`` or, in 2D, ``"bicubic"``, which keeps lines a voxel wide sharper.
        seed: of everything random.
        progress: show a bar over the optimisation steps (needs tqdm).
        polarity: positive energy of images in [0, 1], compared at the canonical pose with that of ``1 - image``. A film that
            looks like a negative is only noted. None notes none.
        min_polarity_ratio: the least by which inverting multiplies ``polarity`` on an image that is no negative.
        working_size: frame on which everything is computed, one number an axis; None is the image's own, rotated back.
        rows_first: a :class:`DiffeoInferer` turns a film of MONAI's ``LoadImage``, columns x rows, to rows x columns first.
        search: what to do in place of the ``steps`` of Adam: a function of a :class:`SearchObjective`, which holds one image as
            the predictor left it, that returns ``theta`` of ``search_family``. Where it raises ``energy`` too far, what the
            predictor found counts alone.
        deform: False only undoes rotations and enlarges; the predictor then only helps to decide whether an image is rotated.
        cuda_graph: on CUDA, capture one of the ``steps`` once for each batch, and replay it; not for a ``search``. That saves
            half of the time of few images. Nothing in a step may wait for the host, and no other thread may use the device.

    Raises:
        TypeError: for a part of another kind.
        ValueError: for a setting without a meaning, such as ``iterations=0``.
    """

    limits: SignLimits | None = None  # of a folder that was fitted: what is usual of images like those of the fit

    def __init__(
        self,
        energy: Energy | Callable[[Tensor], Tensor],
        family: Family,
        regularizer: Callable[[Tensor, Tensor], Tensor] | None = None,
        predictor: Callable[[Tensor], Tensor] | None = None,
        orientation: ImageOrientation | None = None,
        min_confidence: float = 0.9,
        steps: int = 0,
        iterations: int = 1,
        learning_rate: float = 0.01,
        patience: int | None = 10,
        skip_below: float | None = None,
        max_energy_increase: float | None = 0.0,
        ood_threshold: float | None = None,
        search_family: Family | None = None,
        final_steps: int = 7,
        max_halvings: int = 4,
        tta_samples: int = 1,
        sampling: str = "bilinear",
        seed: int = 0,
        progress: bool = False,
        polarity: Energy | Callable[[Tensor], Tensor] | None = None,
        min_polarity_ratio: float = 1.0,
        working_size: Sequence[int] | None = None,
        rows_first: bool = False,
        search: Callable[[SearchObjective], Tensor] | None = None,
        min_motion: float | None = None,
        deform: bool = True,
        rotation_temperature: float | None = None,
        cuda_graph: bool = False,
        enlarge_below: float | None = None,
    ) -> None:
        settings = dict(locals())
        super().__init__()
        check_settings(settings)
        energy = as_energy("Canonicalizer", "energy", energy)
        polarity = None if polarity is None else as_energy("Canonicalizer", "polarity", polarity)
        self.working_size = None if working_size is None else tuple(int(n) for n in working_size)
        self.energy, self.family, self.regularizer = energy.train(False), family, regularizer
        self.predictor, self.orientation, self.search = _frozen(predictor), _frozen(orientation), search
        self.search_family = family if search_family is None else search_family
        self.polarity, self.min_polarity_ratio = None if polarity is None else polarity.train(False), min_polarity_ratio
        self.min_confidence, self.steps, self.iterations = min_confidence, steps, iterations
        self.min_motion = min_motion
        self.learning_rate, self.patience, self.skip_below = learning_rate, patience, skip_below
        self.max_energy_increase, self.ood_threshold = max_energy_increase, ood_threshold
        self.final_steps, self.max_halvings, self.tta_samples = final_steps, max_halvings, tta_samples
        self.sampling, self.seed, self.progress, self.training = sampling, seed, progress, False
        self.rows_first, self.deform, self.rotation_temperature = rows_first, deform, rotation_temperature
        self.cuda_graph, self.enlarge_below = cuda_graph, enlarge_below

    def train(self, mode: bool = True) -> Canonicalizer:
        """A canonicaliser has no training mode: its networks are frozen copies."""
        return self

    def __repr__(self) -> str:
        return describe_canonicalizer(self)

    def may_change_frame(self, spatial_size: Sequence[int]) -> bool:
        """Whether rotating an image of this size back can give another frame, as for oblong images."""
        return self.orientation is not None and len(set(spatial_size)) > 1

    def __call__(self, image: Tensor) -> Canonicalization:
        """Canonicalise a batch of images ``(B, C, *S)``; works under ``no_grad``, ``inference_mode`` and ``autocast``.

        Raises:
            TypeError: if ``image`` is no tensor, or has no real values.
            ShapeError: if ``image`` has another number of axes or channels, or if oblong images of a batch are rotated so
                differently that their canonical images have different frames.
        """
        check_image("canonicalize()", image, self.family.spatial_dims)
        began = time.perf_counter()
        image = image.as_tensor() if hasattr(image, "as_tensor") else image
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            if self._is_elsewhere(image.device):
                placed(self, image.device)
            given = image.detach().clone()
            if len(given) > 1 and self.may_change_frame(given.shape[2:]):
                return Canonicalization.join([self._canonicalize(row, time.perf_counter()) for row in given.split(1)])
            return self._canonicalize(given, began)

    def _is_elsewhere(self, device: torch.device) -> bool:
        """Whether something is on another device than this."""
        return any(tensor.device != device for tensor in (*self.parameters(), *self.buffers()))

    def _canonicalize(self, given: Tensor, began: float) -> Canonicalization:
        image = given.float()
        finite = acceptance.finite_rows(image)
        status = acceptance.refuse_unusable_image(image)
        image = _rows(finite, image, 0.0)
        seen = self._resampled(image)
        before, terms = self.energy.evaluate(seen)
        before, terms = _rows(finite, before, torch.nan), {name: _rows(finite, term, torch.nan) for name, term in terms.items()}
        for i, energy in enumerate(before.tolist()):
            refused = status[i] or acceptance.refuse_nonfinite_energy(energy)
            status[i] = refused or acceptance.skip_low_energy(energy, self.skip_below)
        enlarging = Enlarging(image, self.enlarge_below)
        shown = enlarging(image, self.sampling)
        looks, start = seen, before  # the energy from which a deformation must not rise
        if enlarging.any:
            looks = self._resampled(shown)
            start = torch.where(enlarging.rows, self.energy(looks), before)
        rotations, mirrored = self._orientation(looks, status)
        upright = rotated_back(shown, rotations)
        found, steps = self._search(looks if upright is shown else self._resampled(upright), start, status)
        frame, size = upright.shape[2:], self._size(upright)
        found, forward, inverse, folded = self._unfold(found, size)
        forward, inverse = rotated_maps(forward.resized(size, frame), inverse.resized(size, frame), rotations)
        forward, inverse = enlarging.maps(forward, inverse)
        ddf, inverse_ddf = forward.ddf(frame), inverse.ddf(image.shape[2:])
        folding = folding_fraction(ddf)
        velocity = found.velocity(size)
        finite = acceptance.finite_rows(ddf, inverse_ddf, velocity)
        moved = move_image(image, _rows(finite, ddf, 0.0), self.sampling)
        looks = self._resampled(moved)
        after, reached = self.energy.evaluate(looks)
        finite = finite & acceptance.finite_rows(moved)
        columns = (column.tolist() for column in (start, after, finite, torch.maximum(folded, folding)))
        for i, (first, last, whole, share) in enumerate(zip(*columns)):
            status[i] = (
                status[i]
                or acceptance.refuse_nonfinite_deformation(whole)
                or acceptance.refuse_nonfinite_energy(last)
                or acceptance.refuse_folding(share, self.max_halvings)
                or acceptance.refuse_energy_increase(first, last, self.max_energy_increase)
                or CANONICALIZED
            )
        done = torch.tensor([s == CANONICALIZED for s in status], device=image.device)
        if moved.shape != image.shape and not done.any():  # the only image is left as it is, on its own frame
            moved, looks, reached = image, seen, terms
            ddf = inverse_ddf = torch.zeros_like(inverse_ddf)
            forward = inverse
        energy, ddf, inverse_ddf = torch.where(done, after, before), _rows(done, ddf, 0.0), _rows(done, inverse_ddf, 0.0)
        reached = {name: torch.where(done, reached[name], terms[name]) for name in terms}
        notes, negatives = [], self._negatives(_rows(done, looks, seen) if looks.shape == seen.shape else looks, reached)
        rows = self._mirrored(mirrored, looks, done), negatives, torch.where(done, rotations, 0).tolist(), energy.tolist()
        for p, negative, index, e, large in zip(*rows, (done & enlarging.rows).tolist()):
            remarks = [acceptance.mirrored_note(p, self.min_confidence), negative, acceptance.ENLARGED if large else ""]
            remarks += [acceptance.rotation_note(index, ddf.shape[1]), acceptance.high_energy_note(e, self.ood_threshold)]
            notes.append("; ".join(filter(None, remarks)))
        return Canonicalization(
            image=_rows(done, moved.to(given.dtype), given) if moved.shape == given.shape else moved.to(given.dtype),
            velocity=_rows(done, velocity, 0.0),
            ddf=ddf,
            inverse_ddf=inverse_ddf,
            energy_before=before,
            energy_after=energy,
            folding_fraction=_rows(done, folding, 0.0),
            steps=steps,
            status=tuple(str(s) for s in status),
            seconds=time.perf_counter() - began,
            terms=terms,
            notes=tuple(notes),
            forward=_identity_unless(done, forward),
            inverse=_identity_unless(done, inverse),
            sampling=self.sampling,
            rotations=torch.where(done, rotations, 0),
        )

    def at_rest(self, given: Tensor, found: Canonicalization, rotated: bool = True) -> Canonicalization:
        """What was found for images ``(B, C, *S)``, with the rotations alone, or without them, if not ``rotated``.

        What was enlarged stays so. Rows that were not moved stay as they are.
        """
        if found.rotations is None:
            raise ValueError("Canonicalizer.at_rest(): 'found' must be a result of this canonicalizer, it has no rotations.")
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(given.device.type, enabled=False):
            image = given.detach().clone().float()  # a network may write to it
            rotations, done = found.rotations if rotated else torch.zeros_like(found.rotations), found.moved
            enlarging = Enlarging(_rows(done, image, 0.0), self.enlarge_below)
            upright = rotated_back(enlarging(image, self.sampling), rotations)
            maps = [Deformation.identity(len(image), upright.shape[2:], image.device)] * 2
            forward, inverse = enlarging.maps(*rotated_maps(maps[0], maps[1], rotations))
            same = upright is image  # then its energy is known
            energy = found.energy_before if same else self.energy(self._resampled(_rows(done, upright, 0.0)))
            undone = [acceptance.rotation_note(k, image.ndim - 2) for k in (found.rotations - rotations).tolist()]
            unlike = [acceptance.high_energy_note(e, self.ood_threshold) for e in energy.tolist()]
            notes = [acceptance.at_rest_note(*row) for row in zip(found.notes, done.tolist(), undone, unlike)]
            own = upright.to(found.image.dtype)
            return replace(
                found,
                image=_rows(done, own, found.image) if own.shape == found.image.shape else own,  # another frame: a batch of one
                velocity=torch.zeros_like(found.velocity),
                ddf=forward.ddf(upright.shape[2:]),
                inverse_ddf=inverse.ddf(image.shape[2:]),
                energy_after=torch.where(done, energy, found.energy_after),
                folding_fraction=torch.zeros_like(found.folding_fraction),
                notes=tuple(notes),
                forward=forward,
                inverse=inverse,
                rotations=rotations,
            )

    def _size(self, image: Tensor) -> tuple[int, ...]:
        """The frame on which images are looked at."""
        return tuple(image.shape[2:]) if self.working_size is None else self.working_size

    def _resampled(self, image: Tensor) -> Tensor:
        return resample_once_more(image, self._size(image))

    def _orientation(self, image: Tensor, status: list[str | None]) -> tuple[Tensor, Tensor]:
        """Numbers of the rotations, and probabilities that images are mirrored (-1: not asked), each ``(B,)``; images that
        already have a status are not rotated."""
        if self.orientation is None:
            return torch.zeros(len(image), dtype=torch.long, device=image.device), image.new_full((len(image),), -1.0)
        probabilities, mirrored = self.orientation.probabilities(image)
        rows = zip(image.split(1), probabilities.tolist(), status)
        return torch.tensor([0 if s else self._rotation(one, row) for one, row, s in rows], device=image.device), mirrored

    def _rotation(self, image: Tensor, probabilities: list[float]) -> int:
        """Number of the rotation that one image shows, of which ``orientation`` gave these probabilities; 0 if in doubt."""
        settings, energies = (self.min_confidence, self.rotation_temperature), {}
        for k in acceptance.possible_rotations(probabilities, *settings):
            view = self._resampled(rotated_back(image, torch.tensor([k])))
            energies[k] = self.energy(self._predicted(view)).item()
        return acceptance.chosen_rotation(probabilities, energies, *settings)

    def _mirrored(self, probability: Tensor, canonical: Tensor, done: Tensor) -> list[float]:
        """Probabilities that images are mirrored. The orientation network saw them before they were deformed. Those that are
        ``done`` and may be mirrored it sees again here, in canonical pose; where nothing is deformed, the look is the same."""
        again = (done & acceptance.may_be_mirrored(probability)).nonzero().flatten()
        if self.orientation is not None and self.deform and len(again):
            twice = acceptance.mirrored_in_two_looks(probability[again], self.orientation.probabilities(canonical[again])[1])
            probability = probability.index_copy(0, again, twice)
        return probability.tolist()

    def _predicted(self, image: Tensor) -> Tensor:
        """Images as the predictor alone moves them."""
        return image if self.predictor is None else self._moved(image, self._predict(image))

    def _moved(self, image: Tensor, found: Chain) -> Tensor:
        size = image.shape[2:]
        return warp(image, found.forward(size).ddf(size))

    def _predict(self, image: Tensor) -> Chain:
        return predict(image, self.predictor, self.family, self.iterations, self.min_motion)

    def _negatives(self, image: Tensor, terms: dict[str, Tensor]) -> list[str]:
        """Remarks on images that look like negatives, by the terms of their energies; a constant image has no polarity."""
        if self.polarity is None:
            return [""] * len(image)
        known = self.energy.known_value(self.polarity, terms)
        energies, inverted = self.polarity(image) if known is None else known, self.polarity(1 - image)
        rows = zip(energies.tolist(), inverted.tolist(), acceptance.refuse_unusable_image(image))
        return ["" if refused else acceptance.negative_note(e, i, self.min_polarity_ratio) for e, i, refused in rows]

    def _search(self, image: Tensor, before: Tensor, status: list[str | None]) -> tuple[Chain, Tensor]:
        """Deformations of every image, whose energies ``before`` are known, and the steps of each; images that already have a
        status are not optimised.

        Rounding depends on the batch, and Adam makes voxels of it: images go one by one. On CUDA, where a batch hardly takes
        longer than an image, up to 64 go together, in double precision throughout, if all parts are known to compute in it.
        """
        theta = torch.zeros(len(image), self.search_family.num_parameters, device=image.device)
        steps = torch.zeros(len(image), dtype=torch.long, device=image.device)
        if not self.deform:
            return Chain().then(self.family, theta.new_zeros(len(image), self.family.num_parameters)), steps
        if self.search is None and (self.steps == 0 or self.regularizer is None):
            return Chain() if self.predictor is None else self._predict(image), steps
        rows = [i for i, s in enumerate(status) if s is None]
        groups, parts = [[i] for i in rows], (self.family, self.search_family, self.energy, self.predictor, self.search)
        if image.is_cuda and self._computes_double():
            groups = [rows[i : i + _TOGETHER] for i in range(0, len(rows), _TOGETHER)]
            image, parts = image.double(), _in_double(parts)
        family, search_family, energy, predictor, search = parts
        found = Chain() if predictor is None else predict(image, predictor, family, self.iterations, self.min_motion)
        start = found.forward(image.shape[2:]) if found.links else None
        most = search.steps if isinstance(search, EnergySearch) else self.steps
        bar = _bar(most * len(rows)) if self.progress else None
        tick = None if bar is None else lambda step, values: bar.update(len(values) * (step > 0))
        searched, limits = (energy, search_family, self.regularizer), (self.steps, self.learning_rate, self.patience)
        with torch.enable_grad():
            for row in groups:
                begin = None if start is None else Deformation(start.matrix[row], start.residual[row])
                goal = SearchObjective(image[row], *searched, begin, self.seed)
                if search is None:
                    best, steps[row] = minimize(
                        image[row], *searched, begin, *limits, seed=self.seed, progress=tick, cuda_graph=self.cuda_graph
                    )
                elif isinstance(search, EnergySearch):
                    best, steps[row] = search.lower(goal, tick)
                else:
                    best = search_theta(search, goal)
                theta[row] = best.to(theta)
        if bar is not None:
            bar.close()
        predicted = Chain(tuple((self.family, looked.to(theta)) for _, looked in found.links))
        whole = predicted.then(self.search_family, theta)
        if self.search is None or not found.links:
            return whole, steps
        # a search may lower another energy and raise this one: what the predictor found is kept then
        energies = zip(before.tolist(), self.energy(self._moved(image.to(theta), whole)).tolist())
        keep = [acceptance.refuse_energy_increase(first, last, self.max_energy_increase) is None for first, last in energies]
        kept = torch.tensor(keep, device=theta.device)[:, None]
        return predicted.then(self.search_family, torch.where(kept, theta, 0.0)), steps

    def _computes_double(self) -> bool:
        """Whether all parts of a search are known to compute in double precision too: those of this package."""
        parts = (self.family, self.search_family, self.regularizer, self.predictor)
        ours = all(part is None or type(part).__module__.partition(".")[0] == "monai_diffeo" for part in parts)
        search = self.search
        known = search is None or (isinstance(search, EnergySearch) and search.energy.any_precision())
        return ours and known and self.energy.any_precision()

    def _unfold(self, found: Chain, size: tuple[int, ...]) -> tuple[Chain, Deformation, Deformation, Tensor]:
        """The deformations on the working frame, halved while they fold, their inverses, and the share of voxels that still
        fold."""
        for attempts_left in reversed(range(self.max_halvings + 1)):
            forward, inverse = found.forward(size, self.final_steps), found.inverse(size, self.final_steps)
            folded = acceptance.worst_folding(forward.ddf(size), inverse.ddf(size))
            if not attempts_left or not bool((folded > 0).any()):
                break
            found = found.scaled(torch.where(folded > 0, 0.5, 1.0))
        return found, forward, inverse, folded


def placed(canonicalizer: Canonicalizer, device: torch.device) -> Canonicalizer:
    """The canonicaliser on a device, as is quickest there: on a CPU weights of 2D networks have their channels last."""
    last = device.type == "cpu" and canonicalizer.family.spatial_dims == 2
    layout = torch.channels_last if last else torch.contiguous_format
    return canonicalizer.to(device, memory_format=layout)  # type: ignore[call-overload]


def _identity_unless(done: Tensor, maps: Deformation) -> Deformation:
    if _all(done):
        return maps
    return maps.where(done, Deformation.identity(len(done), maps.residual.shape[2:], maps.residual.device, maps.residual.dtype))


def _all(keep: Tensor) -> bool:
    """Whether nothing need be copied; a GPU is not asked, which would wait for it."""
    return keep.device.type == "cpu" and bool(keep.all())


def _in_double(parts: Any) -> Any:
    """Copies of modules in double precision, which share what they shared; None stays None."""
    return [part and part.double() for part in copy.deepcopy(parts)]


def _frozen(part: Any) -> Any:
    """A copy of a module that does not train; a function as it is."""
    return copy.deepcopy(part).requires_grad_(False).eval() if isinstance(part, nn.Module) else part


def _rows(keep: Tensor, tensor: Tensor, other: Tensor | float) -> Tensor:
    """Rows of a tensor ``(B, ...)`` where ``keep`` (B,) is true, ``other`` elsewhere."""
    return tensor if _all(keep) else torch.where(keep.view(-1, *[1] * (tensor.ndim - 1)), tensor, other)


def _bar(total: int) -> Any:
    """A tqdm bar over optimisation steps."""
    from tqdm import tqdm

    return tqdm(total=total, desc="canonicalize", unit="step")
