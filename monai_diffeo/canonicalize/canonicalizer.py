"""Images to their canonical pose, by prediction, by optimisation, or by both."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from monai_diffeo.canonicalize.result import (
    CANONICALIZED,
    LEFT_ALONE,
    REJECTED,
    Canonicalization,
    mean_inverse_error,
    move_image,
)
from monai_diffeo.canonicalize.search import Chain, minimize, predict
from monai_diffeo.energies import Energy
from monai_diffeo.errors import ShapeError
from monai_diffeo.families import DiffeomorphicAffine, Family
from monai_diffeo.flow import Deformation, folding_fraction, warp
from monai_diffeo.networks import FilmOrientation, rot90_generator

__all__ = ["Canonicalizer"]


class Canonicalizer(nn.Module):
    r"""Search, for each image, a diffeomorphism that makes it look like the training images.

    An optional predictor looks at the image ``iterations`` times and moves it each time; ``steps`` of Adam then lower
    ``energy(moved image) + regularizer(velocity, ddf)``; the displacement stands in for the velocity where a family has none. With a
    predictor and no steps this is the mode *single pass*; with both, *refine*; with neither predictor nor early stopping and the
    published settings, *faithful*.

    A batch gives what its images give one by one. An image is left alone, bit for bit, when its energy is already within
    ``skip_below``, and rejected when it is constant or not finite, when its energy rises by more than ``max_energy_increase``, or when its field
    still folds after ``max_halvings`` halvings of its deformations; ``status`` says which.

    Args:
        energy: of images, lower = closer to the training images.
        family: of the deformations, any.
        regularizer: ``(velocity, ddf) -> (B,)``, what a deformation costs; needed when ``steps`` is not 0.
        predictor: image to the parameters of ``family``; None starts the search from the identity.
        orientation: sees how a square film lies; where it is sure of a quarter turn, the search starts from the film turned back. A
            film that looks mirrored is only noted: situs inversus exists.
        min_confidence: smallest probability at which ``orientation`` is believed.
        steps: optimisation steps at most.
        iterations: looks of the predictor.
        learning_rate: of Adam, in the family's relative units.
        patience: steps without improvement after which an image stops; None never stops early.
        skip_below: leave alone an image whose energy is at most this; None moves every image.
        max_energy_increase: energy may rise by this much and the result still counts; None accepts any.
        ood_threshold: note of an image whose energy is still higher than this that it remains unlike the training images; None never.
        search_family: family of the optimisation, ``family`` by default.
        final_steps: squarings of the exponentials that are returned.
        max_halvings: how often the deformations of a folding field are halved.
        tta_samples: how many poses a :class:`DiffeoInferer` should ask at unless it is told otherwise.
        sampling: of the canonical image, ``"bilinear"`` or, in 2D, ``"bicubic"``, which keeps lines a voxel wide sharper.
        seed: of everything random.
        progress: show a bar over the optimisation steps (needs tqdm).
    """

    def __init__(
        self,
        energy: Energy,
        family: Family,
        regularizer: nn.Module | None = None,
        predictor: nn.Module | None = None,
        orientation: FilmOrientation | None = None,
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
    ) -> None:
        super().__init__()
        if predictor is None and steps == 0:
            raise ValueError("Canonicalizer: without a predictor, 'steps' must be larger than 0; got steps=0, predictor=None.")
        if steps and regularizer is None:
            raise ValueError("Canonicalizer: optimisation needs a 'regularizer', for example DeformationRegularizer().")
        if sampling not in ("bilinear", "bicubic")[: 2 if family.spatial_dims == 2 else 1]:
            raise ValueError(f"Canonicalizer: 'sampling' must be 'bilinear' or, in 2D, 'bicubic', got {sampling!r}.")
        self.energy, self.family, self.regularizer, self.predictor = energy, family, regularizer, predictor
        self.orientation, self.min_confidence = orientation, min_confidence
        self.search_family = family if search_family is None else search_family
        self.steps, self.iterations, self.learning_rate, self.patience = steps, iterations, learning_rate, patience
        self.skip_below, self.max_energy_increase, self.final_steps, self.max_halvings = (
            skip_below,
            max_energy_increase,
            final_steps,
            max_halvings,
        )
        self.tta_samples, self.sampling = tta_samples, sampling
        self.seed, self.progress, self.ood_threshold = seed, progress, ood_threshold
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Canonicalizer:
        """A canonicaliser has no training mode: its networks are frozen."""
        return super().train(False)

    def __call__(self, image: Tensor) -> Canonicalization:
        """Canonicalise a batch of images ``(B, C, *S)``; works under ``no_grad``, ``inference_mode`` and ``autocast``.

        Raises:
            ShapeError: if ``image`` has another number of axes.
        """
        if image.ndim != 2 + self.family.spatial_dims:
            axes = ", ".join("HWD"[: self.family.spatial_dims])
            raise ShapeError(
                "canonicalize()", "image", f"(B, C, {axes})", image.shape, "Add batch and channel axes: image[None, None]."
            )
        began = time.perf_counter()
        image = image.as_tensor() if hasattr(image, "as_tensor") else image
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            self.to(image.device)
            return self._canonicalize(image.detach().clone(), began)

    def _canonicalize(self, given: Tensor, began: float) -> Canonicalization:
        image = given.float()
        status = _unusable(image)
        usable = torch.tensor([s is None for s in status], device=image.device)
        image = torch.where(usable.view(-1, *[1] * (image.ndim - 1)), image, torch.zeros_like(image))
        terms = self.energy.terms(image) if hasattr(self.energy, "terms") else {}
        before = self.energy(image)
        for i, value in enumerate(before.tolist()):
            if status[i] is None and self.skip_below is not None and value <= self.skip_below:
                status[i] = f"{LEFT_ALONE}: looks like the training images"
        notes = [""] * len(status)
        found, steps = self._search(image, status, notes)
        found, forward, inverse = self._unfold(found, tuple(image.shape[2:]))
        ddf, inverse_ddf = (flow.ddf(image.shape[2:]) for flow in (forward, inverse))
        folded = folding_fraction(ddf)
        moved = move_image(image, ddf, self.sampling)
        after = self.energy(moved)
        for i in range(len(status)):
            status[i] = status[i] or self._verdict(before[i].item(), after[i].item(), folded[i].item())
        done = torch.tensor([s == CANONICALIZED for s in status], device=image.device)
        notes = [note if ok else note.partition("turned back")[0].rstrip("; ") for note, ok in zip(notes, done.tolist())]
        energy = torch.where(done, after, before)
        notes = [self._with_doubt(note, value) for note, value in zip(notes, energy.tolist())]
        row = done.view(-1, *[1] * (image.ndim - 1))
        ddf, inverse_ddf = (torch.where(row, d, torch.zeros_like(d)) for d in (ddf, inverse_ddf))
        still = Deformation.identity(*ddf.shape[:1], forward.residual.shape[2:], ddf.device, ddf.dtype)
        return Canonicalization(
            image=torch.where(row, moved.to(given.dtype), given),
            velocity=torch.where(row[:, None], found.velocity(image.shape[2:]), 0.0),
            ddf=ddf,
            inverse_ddf=inverse_ddf,
            energy_before=before,
            energy_after=energy,
            folding_fraction=folding_fraction(ddf),
            inverse_error=mean_inverse_error(ddf, inverse_ddf),
            steps=steps,
            status=tuple(status),
            seconds=time.perf_counter() - began,
            terms=terms,
            notes=tuple(notes),
            forward=forward.where(done, still),
            inverse=inverse.where(done, Deformation(still.matrix, torch.zeros_like(inverse.residual))),
            sampling=self.sampling,
        )

    def _search(self, image: Tensor, status: list[str | None], notes: list[str]) -> tuple[Chain, Tensor]:
        """Deformations of every image, and the steps of each; images that already have a status are not optimised."""
        size = tuple(image.shape[2:])
        found = self._predict(image, notes)
        steps = torch.zeros(image.shape[0], dtype=torch.long, device=image.device)
        if self.steps == 0:
            return found, steps
        start = None if found is None else found.forward(size)
        rows = [i for i, s in enumerate(status) if s is None]
        theta = torch.zeros(image.shape[0], self.search_family.num_parameters, device=image.device)
        with torch.enable_grad(), _Bar(self.progress, self.steps * len(rows)) as bar:
            for i in rows:  # one by one: rounding depends on the batch, and Adam makes voxels of it
                row = slice(i, i + 1)
                theta[row], steps[row] = minimize(
                    image[row],
                    self.energy,
                    self.search_family,
                    self.regularizer,
                    None if start is None else type(start)(start.matrix[row], start.residual[row]),
                    self.steps,
                    self.learning_rate,
                    self.patience,
                    seed=self.seed,
                    progress=bar,
                )
        return (found or Chain()).then(self.search_family, theta), steps

    def _predict(self, image: Tensor, notes: list[str]) -> Chain | None:
        """What the predictor finds, from the film as it lies or, where a quarter turn is sure, from the film turned back."""
        size = tuple(image.shape[2:])
        if self.orientation is None or size[0] != size[1]:
            return None if self.predictor is None else predict(image, self.predictor, self.family, self.iterations)
        turn, mirrored = self.orientation.probabilities(image)
        turns = torch.where(turn.amax(1) >= self.min_confidence, turn.argmax(1), 0)
        for i, (quarter, probability) in enumerate(zip(turns.tolist(), mirrored.tolist())):
            words = (
                [f"looks mirrored (probability {probability:.2f}) and is not changed"]
                if probability >= self.min_confidence
                else []
            )
            words += [f"turned back by {90 * quarter} degrees"] if quarter else []
            notes[i] = "; ".join(words)
        return self._from_turn(image, turns)

    def _from_turn(self, image: Tensor, turns: Tensor) -> Chain:
        """Turn each image back by its quarter turns, then predict."""
        turn = Chain().then(
            DiffeomorphicAffine(2), rot90_generator(turns).flatten(1)
        )  # a film is square: halves of it are all alike
        if self.predictor is None:
            return turn
        upright = warp(image, turn.forward(image.shape[2:]).ddf(image.shape[2:]))
        more = predict(upright, self.predictor, self.family, self.iterations)
        return turn if more is None else Chain(turn.links + more.links)

    def _unfold(self, found: Chain, size: tuple[int, ...]) -> tuple[Chain, Deformation, Deformation]:
        """The deformations and their inverses; deformations that fold are halved until they do not."""
        for attempts_left in reversed(range(self.max_halvings + 1)):
            forward, inverse = found.forward(size, self.final_steps), found.inverse(size, self.final_steps)
            folded = (folding_fraction(forward.ddf(size)) > 0) | (folding_fraction(inverse.ddf(size)) > 0)
            if attempts_left and bool(folded.any()):
                found = found.scaled(torch.where(folded, 0.5, 1.0))
            else:
                break
        return found, forward, inverse

    def _with_doubt(self, note: str, energy: float) -> str:
        if self.ood_threshold is None or not energy > self.ood_threshold:
            return note
        return "; ".join(filter(None, [note, f"remains unlike the training images (energy {energy:.3g})"]))

    def _verdict(self, before: float, after: float, folded: float) -> str:
        if not abs(after) < float("inf"):
            return f"{REJECTED}: energy became {after}"
        if folded > 0:
            return f"{REJECTED}: {folded:.2%} of the voxels still fold after {self.max_halvings} halvings"
        if self.max_energy_increase is not None and after > before + self.max_energy_increase:
            return f"{REJECTED}: energy rose from {before:.3g} to {after:.3g}"
        return CANONICALIZED


def _unusable(image: Tensor) -> list[str | None]:
    """Why an image cannot be canonicalised at all, None where it can."""
    flat = image.flatten(1)
    finite = torch.isfinite(flat).all(1).tolist()
    constant = (flat.amax(1) == flat.amin(1)).tolist()
    return [
        f"{REJECTED}: the image holds NaN or infinite values" if not f else f"{REJECTED}: the image is constant" if c else None
        for f, c in zip(finite, constant)
    ]


class _Bar:
    """A tqdm bar over optimisation steps, or nothing."""

    def __init__(self, show: bool, total: int) -> None:
        self.show, self.total, self.bar = show, total, None

    def __enter__(self) -> _Bar:
        if self.show:
            from tqdm import tqdm

            self.bar = tqdm(total=self.total, desc="canonicalize", unit="step")
        return self

    def __call__(self, step: int, objective: Tensor) -> None:
        if self.bar is not None and step:
            self.bar.update()
            self.bar.set_postfix(objective=f"{objective.mean().item():.3g}")

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.close()
