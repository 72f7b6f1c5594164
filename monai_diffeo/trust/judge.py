"""The judge of a run: asks a second network, measures the signs, and decides on each film before its mask is written."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.canonicalize.acceptance import NEGATIVE
from monai_diffeo.canonicalize.folder import tta_samples_of
from monai_diffeo.canonicalize.rotation import rotated_back
from monai_diffeo.command_line import parse_switch
from monai_diffeo.errors import ConfigError, DiffeoError, RejectedError, WeightsError
from monai_diffeo.files import bundle_of, sha256_below, sha256_of
from monai_diffeo.flow import rotate_axes
from monai_diffeo.inferers import DiffeoResult
from monai_diffeo.networks import load_weights
from monai_diffeo.radiograph.film import joined_notes
from monai_diffeo.transforms.intensity import inverted_film
from monai_diffeo.trust.decision import verdict
from monai_diffeo.trust.fallback import FALLBACKS, best_answers
from monai_diffeo.trust.model import TrustModel, load_trust
from monai_diffeo.trust.signs import film_signs

__all__ = ["SETTINGS", "FilmJudge", "Observation", "WithheldError", "at_rest", "fitted_to", "load_film_judge"]

SETTINGS = ("mask_threshold", "motion_limits", "image_size")
"""Names in a bundle's ``inference.json``: a trust model counts for their values alone."""

_log = logging.getLogger(__name__)

_FAR = 0.5  # of the usual energies' end: films beyond it are shown inverted too
_LESS = 0.65  # of the energy; correcting a negative leaves at most 0.55 of it on 40 films of val
_MIRRORED = {"R\\F", "F\\L", "L\\H", "H\\R"}  # PatientOrientation of a mirrored frontal film


class WithheldError(DiffeoError, RuntimeError):
    """A film has no result by decision; ``result`` is that of the inferer, with the verdict."""

    def __init__(self, result: DiffeoResult) -> None:
        super().__init__(result.verdicts[0].text)
        self.result = result


@dataclass(frozen=True)
class Observation:
    """What a film is judged by: its ``signs``, what reader and canonicaliser ``said``, and if the header says ``mirrored``."""

    signs: Mapping[str, float]
    said: str = ""
    mirrored: bool = False


class FilmJudge:
    """Decides on films.

    Args:
        model: what was fitted.
        second: another kind of network, which gives log-odds ``(B, K, H, W)`` of canonical films; None asks none, and then the
            sign counts as at its limit.
        accept_anything: write masks of images that are no chest films too; they are to be reviewed.
        fallback: ``"best"`` gives another answer than the wrapped one where :func:`best_answers` prefers it; ``"identity"`` and
            ``"raise"`` never do, they are the inferer's.
        whole: a network that gives logits ``(B, 1, H, W)`` of the whole lungs on upright films; None as for ``second``.
        outlier: a detector that gives log-odds ``(B,)`` that upright images are no films; None as for ``second``.
        look: canonicalises an inverted film before all is asked of it, which saves time; None asks at once.

    Raises:
        ValueError: for another ``fallback``.
    """

    def __init__(
        self,
        model: TrustModel,
        second: Callable | None = None,
        accept_anything: bool | str = False,
        fallback: str = "identity",
        whole: Callable | None = None,
        look: Callable[[Tensor], Canonicalization] | None = None,
        outlier: Callable | None = None,
    ) -> None:
        if fallback not in FALLBACKS:
            raise ValueError(f"FilmJudge: 'fallback' must be one of {list(FALLBACKS)}, got {fallback!r}.")
        self.model, self.second, self.accept_anything = model, second, parse_switch(accept_anything)
        self.fallback, self.whole, self.outlier, self.look = fallback, whole, outlier, look

    def __call__(self, image: Tensor, ask: Callable[[Tensor], DiffeoResult]) -> DiffeoResult:
        """What ``ask`` gives for a film, with its verdict; a negative is corrected first, and the notes say so.

        Args:
            image: a film in [0, 1], ``(1, 1, H, W)``.
            ask: gives the result of the inferer, with the plain prediction, for such a film.

        Raises:
            RejectedError: of the film that counts, the given or the corrected one, where ``ask`` raises it.
        """
        return self.judged(*self.corrected(image, ask))

    def corrected(self, image: Tensor, ask: Callable[[Tensor], DiffeoResult]) -> tuple[Tensor, DiffeoResult]:
        """The film that counts, the given or the inverted one, and what ``ask`` gives for it; arguments and errors as above.

        A film that looks like a negative, or that is far from the training films, is shown inverted too. It is a negative if
        that brings it much nearer to them, and it is not said to look like one if that brings it farther away.
        """
        result, rejected = _answer(image, ask)
        if self._may_be_negative(result):
            negative = inverted_film(image)
            again = None
            if self.look is not None:
                seen: Canonicalization | None = self.look(convert_to_tensor(negative, track_meta=False))
            else:
                again = _answer(negative, ask)
                seen = again[0].searched
            left = _energy_left(seen, result.searched)
            if left < _LESS:
                found, rejected = again or _answer(negative, ask)
                image, result = negative, _noted(found, "negative corrected")
            elif left >= 1:
                result = _noted(result, "")
        if rejected is not None:
            raise rejected
        return image, result

    def _may_be_negative(self, result: DiffeoResult) -> bool:
        if result.canonicalization is None or result.searched is None:
            return False
        noted = any(NEGATIVE in note for note in result.canonicalization.notes)
        return noted or bool((result.searched.energy_after > _FAR * self.model.limits.get("energy", math.inf)).any())

    def judged(self, image: Tensor, result: DiffeoResult) -> DiffeoResult:
        """The result with a :class:`Verdict` of each image ``(B, 1, H, W)``; without a canonicalisation as it came."""
        found = result.searched
        if found is None or result.canonicalization is None:
            return result
        if self.second is not None:
            with torch.no_grad():
                result = replace(result, second=found.warp_back(self.second(found.image).amax(1, keepdim=True)))
        rows = self.observed(image, result)
        judge = partial(verdict, self.model, accept_anything=self.accept_anything)
        decided = [replace(judge(row.signs, row.said, mirrored=row.mirrored), seen=row) for row in rows]
        if self.fallback == "best":
            result, decided = best_answers(self.model, result, decided)
        return replace(result, verdicts=tuple(decided))

    def observed(self, image: Tensor, result: DiffeoResult) -> list[Observation]:
        """What the images ``(B, 1, H, W)`` are judged by."""
        given: Any = result.canonicalization  # there is one: see above
        mean = result if result.averaged is None else replace(result, prediction=result.averaged)
        with torch.no_grad():
            bare = convert_to_tensor(image, track_meta=False)
            upright, back = at_rest(bare, result)
            whole = None if self.whole is None else back(self.whole(upright))
            outlier = None if self.outlier is None else self.outlier(upright)
        signs = film_signs(mean, self.model.references, result.second, whole, outlier)
        rows = [{name: value[i].item() for name, value in signs.items()} for i in range(len(image))]
        stated = (_stated(image, name) for name in ("film_notes", "film_patient_orientation"))
        return [
            Observation(row, f"{header}; {notes}; {status}", orientation in _MIRRORED)
            for row, notes, status, header, orientation in zip(rows, given.notes, given.status, *stated)
        ]


def at_rest(images: Tensor, result: DiffeoResult) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Images ``(B, C, *S)`` upright, and enlarged where the inferer did so; and the way back of maps on them."""
    if result.rest is not None:
        return result.rest.image, result.rest.warp_back
    found = result.canonicalization
    if found is None or found.rotations is None:
        return images, lambda answer: answer
    numbers = found.rotations.tolist()
    back = lambda answer: torch.cat([rotate_axes(*pair) for pair in zip(answer.split(1), numbers)])  # noqa: E731
    return rotated_back(images, found.rotations), back


def _answer(image: Tensor, ask: Callable[[Tensor], DiffeoResult]) -> tuple[DiffeoResult, RejectedError | None]:
    """What ``ask`` gives; of a film that it rejects, what was found, and the error."""
    try:
        return ask(image), None
    except RejectedError as error:
        found = error.canonicalization
        return DiffeoResult(None, found, searched=found), error


def _noted(result: DiffeoResult, note: str) -> DiffeoResult:
    """The result with a note in place of those that it looks like a negative."""
    found = result.canonicalization
    if found is None:
        return result
    said = (one.split("; ") for one in found.notes)
    notes = tuple(joined_notes(note, *(n for n in one if not n.startswith(NEGATIVE))) for one in said)
    return replace(result, canonicalization=replace(found, notes=notes))


def _energy_left(again: Canonicalization | None, first: Canonicalization | None) -> float:
    """The energy of the canonical negative, as a share of that of the canonical film; infinite where it is not known."""
    if again is None or first is None:
        return math.inf
    return (again.energy_after / first.energy_after).nan_to_num(math.inf).max().item()


def _stated(images: Tensor, name: str) -> list[str]:
    """What the reader wrote of each image into its metadata."""
    said = getattr(images, "meta", {}).get(name, "")
    return [str(word) for word in said] if isinstance(said, (list, tuple)) else [str(said)] * len(images)


def fitted_to(
    weights: str | Path,
    canonicalizer: str | Path,
    further_weights: str | Path | None = None,
    mode: str = "single_pass",
    tta_samples: int | None = None,
    **settings: Any,
) -> str:
    """SHA-256 of what gives the answers: weights, all files of a canonicaliser's folder, and the :data:`SETTINGS` of a bundle.

    ``tta_samples`` of None is the number of the mode: both give the same. Of the settings, what is None is left out.
    ``image_size`` is that of the film which canonicaliser and networks see, so it changes all signs. ``motion_limits`` choose
    the answer that is judged. ``mask_threshold`` changes no sign: all of them cut answers at one half. But the decision is
    fitted to the Dice of masks that are cut there, and so is the Dice that is expected.

    Raises:
        TypeError: for another setting.
    """
    if unknown := sorted({*settings} - {*SETTINGS}):
        raise TypeError(f"fitted_to(): settings must be among {list(SETTINGS)}, got {unknown}. Remove or rename them.")
    parts: list[Any] = [sha256_of(weights), sha256_below(canonicalizer)]
    if tta_samples is not None and tta_samples == tta_samples_of(canonicalizer, mode):
        tta_samples = None
    unusual = [further_weights and sha256_of(further_weights), mode, tta_samples]
    parts += [] if unusual == [None, "single_pass", None] else [unusual]
    given = {name: value for name, value in settings.items() if value is not None}
    parts += [json.loads(json.dumps(given), parse_int=float)] if given else []  # 30 is 30.0, a tuple is a list
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_film_judge(
    path: str | Path,
    weights: str | Path,
    canonicalizer: str | Path,
    second: nn.Module | None = None,
    second_weights: str | Path | None = None,
    accept_anything: bool | str = False,
    fallback: str = "identity",
    any_weights: bool = False,
    whole: nn.Module | None = None,
    whole_weights: str | Path | None = None,
    enabled: bool | str = True,
    look: Callable[[Tensor], Canonicalization] | None = None,
    outlier: nn.Module | None = None,
    outlier_weights: str | Path | None = None,
    amp: bool | str = False,
    **settings: Any,
) -> FilmJudge | None:
    """The judge of a bundle; None, and a warning in the log, where the bundle's model was not fitted to what gives the answers.

    Args:
        path: of the model, see :func:`save_trust`.
        weights, canonicalizer, settings: see :func:`fitted_to`.
        second, second_weights: another kind of network; where its file is missing it is not asked, unless the model needs it.
        accept_anything, fallback, look: see :class:`FilmJudge`.
        any_weights: take the model all the same, as one of these weights, and do without networks that are missing.
        whole, whole_weights: the network of the whole lungs, which has ``weights`` but for those in the second file; likewise.
        outlier, outlier_weights: the outlier detector, which always computes in float32; likewise.
        enabled: whether films are canonicalised, true or false, also as a string; else there is no judge.
        amp: of both other networks, see :func:`monai_diffeo.networks.load_weights`.

    Raises:
        ConfigError: for options about decisions where films are not canonicalised.
        WeightsError: if a file does not fit, or one is missing that the model needs, or if a model was fitted to something else
            and comes from outside of a bundle, or ``fallback`` is "best", which needs it.
    """
    chosen = bundle_of(Path(path).absolute()) is None
    if not parse_switch(enabled):
        typed = chosen and Path(path).absolute().parent != Path(canonicalizer).absolute().parent  # else that of its folder
        decides = {"trust_model": typed, "fallback": fallback != "identity", "accept_anything": parse_switch(accept_anything)}
        if given := [f"--{name}" for name, one in decides.items() if one]:
            raise ConfigError(
                "load_film_judge(): without canonicalisation films are not judged, so options about decisions must be "
                f"left out, got {' and '.join(given)} with --enabled false. Leave out one or the other."
            )
        return None
    model = load_trust(path)
    here = fitted_to(weights, canonicalizer, **settings) if Path(weights).is_file() else ""
    if any_weights:
        model = replace(model, sha256=here)
    elif here != model.sha256:
        if chosen or fallback == "best":
            remedy = "Run `monai-diffeo calibrate` with the options of this run."
            raise WeightsError(
                f"load_film_judge(): {Path(path).name} must be fitted to the weights, canonicaliser and settings of the run "
                f"({', '.join(settings)}), and is to others. {remedy}"
            )
        _log.warning(
            "load_film_judge: %s was not fitted to these weights and settings; decisions are not calibrated.", Path(path).name
        )
        return None
    others: Any = {"second": (amp, second, second_weights), "whole": (amp, whole, weights, whole_weights)}
    others["outlier"] = False, outlier, outlier_weights  # takes no time, and decides alone
    asked = {name: _loaded(*parts, needed=not any_weights and model.weighs(name)) for name, parts in others.items()}
    return FilmJudge(model, accept_anything=accept_anything, fallback=fallback, look=look, **asked)


def _loaded(amp: bool | str, network: nn.Module | None, *files: str | Path | None, needed: bool) -> nn.Module | None:
    """The network with its weights, None where a file is missing that is not needed."""
    there = [file for file in files if file is not None and Path(file).is_file()]
    if network is not None and (missing := [file for file in files if file not in there]) and needed:
        raise WeightsError(
            "load_film_judge(): all networks must be there that decisions were fitted with, and the weights "
            f"{str(missing[0])!r} are missing. Copy the file there, or run `monai-diffeo calibrate` without it, and give what "
            "that writes with --trust_model."
        )
    return None if network is None or len(there) < len(files) else load_weights(network, *there, amp=amp)
