"""One film, one flat dictionary: what a line of ``report.jsonl`` says (schema 2).

============================ ==============================================================================================
field                        meaning
============================ ==============================================================================================
schema, versions             of these fields; of the packages that computed the numbers
input, sha256                name of the film, relative to the input folder; SHA-256 of the file, null if it cannot be read
status                       ``canonicalized``, ``left alone: reason``, ``rejected: reason`` or ``failed``
decision                     ``ok``, ``not judged``, ``review: why`` or ``no result: why``: what a person should do; calibrated
                             with ``signs``, and ``not judged`` where canonicalisation was switched off
predicted_dice               interval in which the Dice is expected, see docs/results/trust.md; only with ``signs``
answer                       with ``--fallback best``: whose the mask is, ``wrapped``, ``bare network`` or ``second network``
signs                        what the decision was made of, by name; more is worse, see :mod:`monai_diffeo.trust`
energy_before, energy_after  of the film and of what the network saw; lower is closer to the training films
energy_terms                 energies before, by name
folding_fraction             share of the voxels at which the deformation folds
inverse_error                mean error of the inverse deformation, voxels of ``frame``
largest_displacement         voxels of ``frame``; ``displacement_share`` is its share of the frame's shorter side,
                             ``largest_displacement_mm`` the same in mm of the film, null if its spacing is unknown
spacing                      of rows and columns, mm, null if unknown; ``spacing_source``, what states it or ``unknown``;
                             ``spacing_doubt``, what speaks against it, or null
frame, steps, mode           size at which the film was canonicalised, optimisation steps, mode of the canonicaliser
notes                        remarks, joined by semicolons
seconds, device              wall time of the film; where the network ran
agreement                    of the predictions of test-time augmentation, 0 to 1
areas                        shares of the film: ``total``; of paired organs ``right`` and ``left``, null if sides are unknown
mask, figure                 names of the outputs, relative to the output folder, or null; of one mask a class a list
uncertainty                  name of the map of uncertainty, NIfTI, 0 to 1; only with ``--uncertainty true``
dicom                        names of the DICOM results, empty if the notes say why; only with ``--dicom_output true``
weights_sha256               of the file of the network's weights
settings                     SHA-256 of what decides the result besides the film; ``--resume`` keeps lines with the same one
error, message               of a film that failed: a class and a sentence; such a line has no numbers
template                     of a template transformer: ``factor``, ``level``, ``folding_fraction``, ``agreement``, ``holes``,
                             ``nonpositive_cell_fraction``, ``native_level``, ``components``; see its reporter
============================ ==============================================================================================

Numbers are null where canonicalisation was switched off or a value is not finite. The last line closes the report with
``schema``, ``end`` (true), ``films`` (their number), ``counts`` by status, ``exit_status``, ``removed`` (outputs of earlier
runs that this run did not write again) and ``versions``. The report of a killed run has no such line.
"""

from __future__ import annotations

import errno
import math
import platform
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import PurePath
from typing import Any

import monai
import numpy as np
import torch
from torch import Tensor

from monai_diffeo.canonicalize.result import SWITCHED_OFF, Canonicalization
from monai_diffeo.errors import FilmError, NumericalError, OutputError, RejectedError
from monai_diffeo.files import sha256_of
from monai_diffeo.radiograph.failsafe import root_cause

__all__ = ["FAILED", "SCHEMA", "SWITCHED_OFF", "failure_record", "film_record", "json_safe", "sha256_of", "versions"]

SCHEMA = 2
"""Version of the fields above; it rises when a field changes its meaning or goes, not when one is added."""

FAILED = "failed"
"""Status of a film that could not be read or processed; there is no mask."""

_ROWS = ("energy_before", "energy_after", "folding_fraction", "inverse_error", "largest_displacement", "steps", "notes")
_SIGNIFICANT_DIGITS = 7  # what float32 carries

_SENTENCES: tuple[tuple[type[BaseException], str], ...] = (
    # first match wins; never the exception's own text, which may quote a path or a DICOM value
    (FileNotFoundError, "The file was not there when it was its turn. Run again when nothing moves the input."),
    (PermissionError, "The film may not be read, or its results may not be written. Check the permissions of both folders."),
    (MemoryError, "There was not enough memory for this film. Run it alone, or on a larger machine."),
    (torch.cuda.OutOfMemoryError, "There was not enough memory on the device for this film. Use --device cpu."),
    (
        RejectedError,
        "The canonicaliser rejected the film, and --fallback raise takes no other answer. See it with --fallback identity.",
    ),
    (NumericalError, "A number became NaN or infinite. Check the weights of the network and the grey values of the film."),
    (OSError, "The file could not be read. Check the disk."),
)
_SENTENCES_BY_ERRNO = {  # of an OSError, before the types
    "ENOSPC": "The disk is full: the results of this film could not be written. Make room and run again.",
    "EDQUOT": "The quota of the disk is used up: the results of this film could not be written. Make room and run again.",
    "EROFS": "The output folder is on a disk that cannot be written. Give --output_dir another folder.",
    "EIO": "The disk or the network drive reported an error. Check it, then run again.",
    "ENAMETOOLONG": "The name of the film is so long that its results cannot be named after it. Give the film a shorter name.",
    "EMFILE": "Too many files are open. Raise the limit of open files, then run again.",
    "ENOMEM": "There was not enough memory for this film. Run it alone, or on a larger machine.",
    "ENOTDIR": "A file stands where a folder of the results should be. Move it, or give --output_dir another folder.",
    "EISDIR": "A folder stands where a result should be. Move it, or give --output_dir another folder.",
    "ESTALE": "The network drive was lost. Connect it, then run again.",
}
_UNEXPECTED = "Something unexpected stopped this film. Run it alone with --debug true to see the full error."


def film_record(
    name: str | PathLike[str],
    sha256: str | None,
    result: Canonicalization | None,
    index: int = 0,
    seconds: float | None = None,
    *,
    mode: str | None = None,
    mask: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    figure: str | PathLike[str] | None = None,
    agreement: float | Tensor | None = None,
    areas: Mapping[str, float | None] | None = None,
    weights_sha256: str | Mapping[str, str] | None = None,
    device: str | torch.device | None = None,
    settings: str | None = None,
) -> dict[str, Any]:
    """The line of a film that has a mask, whether it was canonicalised or not.

    Numbers have seven significant digits; NaN and infinity become None. Arguments that are not listed are fields.

    Args:
        name: path of the film relative to the input folder; of an absolute path only the last part is kept.
        sha256: of the input file, see :func:`sha256_of`.
        result: of the batch the film was in; None when canonicalisation was switched off.
        index: row of the film in ``result``.
        seconds: wall time of this film; None takes an equal share of ``result.seconds``.
        agreement: None takes that of ``result``.
        weights_sha256: of the weights, one or one a network.
        device: where it ran; None takes the device of ``result``.
        settings: SHA-256 of all settings that count.

    Returns:
        A dictionary that ``json.dumps(..., allow_nan=False)`` accepts.

    Raises:
        IndexError: if ``result`` has no row ``index``.
    """
    record = {"schema": SCHEMA, "input": _relative(name), "sha256": sha256, **_found(result, index)}
    if result is not None:
        seconds = result.seconds / len(result.status) if seconds is None else seconds
        device = result.image.device if device is None else device
        agreement = result.agreement[index] if agreement is None and result.agreement is not None else agreement
    if mask is not None:
        mask = _relative(mask) if isinstance(mask, (str, PathLike)) else [_relative(name) for name in mask]
    record |= {
        "mode": mode,
        "seconds": seconds,
        "agreement": agreement,
        "areas": areas,
        "mask": mask,
        "figure": None if figure is None else _relative(figure),
        "device": None if device is None else str(device),
        "weights_sha256": weights_sha256,
        "settings": settings,
        "versions": versions(),
    }
    return json_safe(record)


def failure_record(name: str | PathLike[str], error: BaseException, sha256: str | None = None) -> dict[str, Any]:
    """The line of a film that failed: a class and a sentence, never an exception's raw text, it may name the patient.

    ``name`` and ``sha256`` are as in :func:`film_record`. MONAI wraps what a transform raises, so causes of ``error`` count.
    """
    error = root_cause(error)
    code, sentence = type(error).__name__, _sentence(error)
    if isinstance(error, FilmError):
        code, sentence = error.code, error.sentence
    elif isinstance(error, OutputError):
        sentence = str(error)
    record = {"schema": SCHEMA, "input": _relative(name), "sha256": sha256, "status": FAILED}
    return record | {"error": code, "message": sentence, "versions": versions()}


def _sentence(error: BaseException) -> str:
    """The true sentence of an error that is none of ours."""
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # PyTorch on the CPU has no class for it
        error = MemoryError()
    name = errno.errorcode.get(getattr(error, "errno", None) or 0, "") if isinstance(error, OSError) else ""
    by_type = (text for kind, text in _SENTENCES if isinstance(error, kind))
    return _SENTENCES_BY_ERRNO.get(name) or next(by_type, _UNEXPECTED)


def versions() -> dict[str, str]:
    """Versions of what computed the numbers: monai_diffeo, monai, torch, numpy, python."""
    from monai_diffeo import __version__  # here, because the package may still be importing us

    ours = {"monai_diffeo": __version__, "monai": monai.__version__}
    return ours | {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()}


def json_safe(value: Any) -> Any:
    """The same value in types JSON knows: tensors and arrays as numbers and lists, paths as POSIX text, NaN and
    infinity as None, floats with seven significant digits.

    Example:
        >>> json_safe({"energy": torch.tensor(float("nan")), "steps": np.int64(3), "frame": (2, 2)})
        {'energy': None, 'steps': 3, 'frame': [2, 2]}
    """
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return json_safe(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return value.as_posix() if isinstance(value, PurePath) else value


def _found(result: Canonicalization | None, index: int) -> dict[str, Any]:
    """What the canonicaliser found for one film; the same fields when it was switched off."""
    if result is None:
        return {"status": SWITCHED_OFF, **dict.fromkeys((*_ROWS, "displacement_share", "energy_terms", "frame"))}
    rows = len(result.status)
    if not -rows <= index < rows:
        raise IndexError(f"film_record(): 'index' must be a row of a result with {rows} rows, got {index}.")
    frame, found = tuple(result.ddf.shape[2:]), {name: getattr(result, name)[index] for name in _ROWS}
    share = found["largest_displacement"].item() / max(min(frame) - 1, 1)
    terms = {term: value[index] for term, value in result.terms.items()}
    return {"status": result.status[index], **found, "displacement_share": share, "energy_terms": terms, "frame": frame}


def _relative(name: str | PathLike[str]) -> str:
    """POSIX text of a relative path; the last part of one that leads out of its folder, which tells of the machine."""
    path = name if isinstance(name, PurePath) else PurePath(name)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()
