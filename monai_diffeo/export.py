"""A canonicaliser and its network as one graph of tensors, for programs without this package, or without Python."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.canonicalize.acceptance import looks_again, worst_folding
from monai_diffeo.canonicalize.result import move_image, pose_generators
from monai_diffeo.canonicalize.search import Chain
from monai_diffeo.errors import ConfigError, NumericalError
from monai_diffeo.files import write_atomically
from monai_diffeo.flow import Deformation, affine_deformation, folding_fraction, warp
from monai_diffeo.flow.warp import resize_ddf
from monai_diffeo.inferers.aggregation import agreement
from monai_diffeo.networks.predictor import check_image, resample_image

__all__ = ["OUTPUTS", "DiffeoGraph", "export_graph", "save_program", "smooth_images"]

OUTPUTS = ("prediction", "moved", "energy_before", "energy_after", "ddf", "inverse_ddf", "agreement")
_OPSET = 20  # the first whose GridSample knows volumes
_TOLERANCE = 1e-4


class DiffeoGraph(nn.Module):
    """What :class:`DiffeoInferer` computes with a canonicaliser without optimisation, for images of one size, upright.

    Every look of the predictor, every pose and the network are in the graph; nothing in it depends on a value but by choosing
    between two tensors. It rejects an image by the rules of the canonicaliser, and such an image goes to the network as it is.
    A deformation that folds is rejected, not halved. Rotations, polarity and the comparison with answers at rest are left out.

    Args:
        canonicalizer: in a mode without ``steps`` and ``search``; copied, in single precision.
        network: image ``(B, C, *S)`` to one map ``(B, K, *T)`` or to scores ``(B, K)``; copied.
        size: ``*S``, of the images; None takes the working size, or that of the predictor.
        tta_samples: poses; None takes the canonicaliser's.

    Raises:
        ConfigError: if the mode optimises, or has no predictor, or if the network gives something else.
        ShapeError: for images of another size.
    """

    def __init__(
        self,
        canonicalizer: Canonicalizer,
        network: nn.Module,
        size: Sequence[int] | None = None,
        tta_samples: int | None = None,
    ) -> None:
        super().__init__()
        searches = canonicalizer.steps or canonicalizer.search is not None
        if canonicalizer.predictor is None or searches or not canonicalizer.deform:
            raise ConfigError(
                f"export: the mode must have a predictor and no optimisation, got steps={canonicalizer.steps} and "
                f"deform={canonicalizer.deform}. Choose a mode such as single_pass."
            )
        own: Any = canonicalizer.working_size or getattr(canonicalizer.predictor, "image_size", ())
        layout: Any = {"memory_format": torch.contiguous_format}
        self.canonicalizer = copy.deepcopy(canonicalizer).float().to(**layout)
        self.size = tuple(int(n) for n in size or own)
        if len(self.size) != canonicalizer.family.spatial_dims:
            raise ConfigError(
                f"export: 'size' must have {canonicalizer.family.spatial_dims} axes, got {self.size}. Give --size."
            )
        self.network = copy.deepcopy(network).float().eval().requires_grad_(False)
        self.count = canonicalizer.tta_samples if tta_samples is None else tta_samples
        self.work = canonicalizer.working_size or self.size
        generators = pose_generators(self.size, self.count)
        steps = [affine_deformation(sign * g[None], (1,) * len(self.size)).matrix for g in generators for sign in (1, -1)]
        self.steps: Tensor
        self.register_buffer("steps", torch.stack(steps) if steps else torch.zeros(0))  # (A, 1, D, D + 1), in pairs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """What :data:`OUTPUTS` names, the last only with several poses; images ``(B, C, *S)`` as the bundle has them.

        ``moved`` is bool, energies and agreement are ``(B,)``, displacements are in voxels of the image.
        """
        part, size = self.canonicalizer, self.size
        check_image(self, image, len(size), image.shape[1], size)
        given, finite = image, image.isfinite().flatten(1).all(1)
        image = _where(finite, image, torch.zeros_like(image))
        usable = finite & (image.flatten(1).amax(1) > image.flatten(1).amin(1))
        seen = resample_image(image, self.work)
        found, before = self._look(seen), part.energy(seen)
        before = torch.where(finite, before, torch.nan)
        forward, inverse = found.forward(self.work, part.final_steps), found.inverse(self.work, part.final_steps)
        folded = worst_folding(forward.ddf(self.work), inverse.ddf(self.work))
        forward, inverse = forward.resized(self.work, size), inverse.resized(self.work, size)
        ddf, inverse_ddf = forward.ddf(size), inverse.ddf(size)
        canonical = move_image(image, ddf, part.sampling)
        after = part.energy(resample_image(canonical, self.work))
        done = usable & ((folded == 0) & (folding_fraction(ddf) == 0)) & (before.isfinite() & after.isfinite())
        if part.skip_below is not None:
            done = done & (before > part.skip_below)
        if part.max_energy_increase is not None:
            done = done & (after <= before + part.max_energy_increase)
        ways = [(canonical, inverse_ddf)] if self.count % 2 else []
        for i in range(self.count // 2 * 2):
            matrix, undo = (self.steps[k].expand(image.shape[0], -1, -1) for k in (i, i ^ 1))
            step = Deformation(matrix, torch.zeros_like(ddf))
            pose = move_image(image, forward.after(step).ddf(size), part.sampling)
            ways.append((pose, inverse.then_affine(undo).ddf(size)))
        shown = torch.stack([_where(done, pose, given) for pose, _ in ways])
        answers = self.network(shown.flatten(0, 1))
        if not isinstance(answers, Tensor) or answers.ndim not in (2, image.ndim):
            raise ConfigError(
                "export: the network must give one tensor, a map (B, K, *S) or scores (B, K). Wrap it so that it does."
            )
        predictions = [
            self._back(answer, way, done) if answer.ndim == image.ndim else answer
            for answer, (_, way) in zip(answers.unflatten(0, shown.shape[:2]), ways)
        ]
        decided = [_where(done, d, torch.zeros_like(d)) for d in (ddf, inverse_ddf)]
        mean = _where(done, torch.stack(predictions).mean(0), predictions[0])
        told = (mean, done, before, torch.where(done, after, before), *decided)
        agreed = agreement(predictions, done)
        return told if agreed is None else (*told, agreed)

    def _look(self, seen: Tensor) -> Chain:
        """As :func:`predict`, with all looks; an image that is at rest is moved no more."""
        part, found, flow = self.canonicalizer, Chain(), None
        looking = torch.ones_like(seen.flatten(1)[:, 0]) > 0
        for _ in range(part.iterations):
            theta = part.predictor(seen if flow is None else warp(seen, flow.ddf(self.work)))
            theta = part.family.scaled(theta, looking.to(theta))
            step = part.family(theta, self.work)
            flow, found = step if flow is None else flow.after(step), found.then(part.family, theta)
            if part.min_motion is not None:
                looking = looking & looks_again(step.ddf(self.work), part.min_motion)
        return found

    def _back(self, answer: Tensor, inverse_ddf: Tensor, done: Tensor) -> Tensor:
        field = resize_ddf(inverse_ddf, tuple(answer.shape[2:]), self.size)
        return _where(done, warp(answer, field), answer)


def _where(keep: Tensor, tensor: Tensor, other: Tensor) -> Tensor:
    """Rows of a tensor ``(B, ...)`` where ``keep`` ``(B,)`` is true, of the other elsewhere."""
    return torch.where(keep.view(-1, *[1] * (tensor.ndim - 1)), tensor, other)


def export_graph(graph: DiffeoGraph, image: Tensor, folder: str | Path, about: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write ``model.pt2`` (``torch.export``), ``model.onnx`` and ``export.json`` into a folder, and compare them.

    Args:
        graph: on the CPU.
        image: example images ``(B, C, *S)``, on which graph, program and ONNX are compared; their number is not fixed.
        folder: which is made.
        about: what else ``export.json`` is to say.

    Returns:
        What ``export.json`` says.

    Raises:
        ImportError: if ``onnx``, ``onnxscript`` or ``onnxruntime`` is not installed.
        NumericalError: if an output differs by more than 1e-4; nothing is written but the graphs.
    """
    import onnxruntime
    import onnxscript  # noqa: F401 - what torch.onnx needs, said before minutes have passed

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"program": folder / "model.pt2", "onnx": folder / "model.onnx"}
    (folder / "export.json").unlink(missing_ok=True)  # it would speak of other graphs
    with torch.no_grad():
        expected = graph(image)
        save_program(graph, image, files["program"])
        program = torch.export.load(files["program"])
        names = list(OUTPUTS[: len(expected)])
        settings: dict[str, Any] = {"dynamo": True, "opset_version": _OPSET, "input_names": ["image"], "output_names": names}
        torch.onnx.export(program, (), str(files["onnx"]), external_data=False, verbose=False, **settings)
        session = onnxruntime.InferenceSession(str(files["onnx"]), providers=["CPUExecutionProvider"])
        runs: dict[str, Callable[[Tensor], Any]] = {"program": program.module()}
        runs["onnx"] = lambda image: [torch.from_numpy(value) for value in session.run(None, {"image": image.numpy()})]
        differences = {kind: dict(zip(names, map(_largest, run(image), expected))) for kind, run in runs.items()}
    told = {
        "size": list(graph.size),
        "channels": image.shape[1],
        "tta_samples": graph.count,
        "iterations": graph.canonicalizer.iterations,
        "outputs": names,
        "opset": _OPSET,
        "compared": {"images": len(image), "moved": int(expected[OUTPUTS.index("moved")].sum())},
        "differences": differences,
        **(about or {}),
    }
    for kind, found in differences.items():
        if not reduce(max, found.values()) <= _TOLERANCE:
            raise NumericalError(
                f"export: {kind} must equal PyTorch within {_TOLERANCE:g}, got {found}. Do not use {files[kind]}."
            )
    write_atomically(folder / "export.json", f"{json.dumps(told, indent=2)}\n".encode())
    return told


def smooth_images(count: int, graph: DiffeoGraph) -> Tensor:
    """Made-up images in [0, 1], ``(count, C, *S)``, as a graph takes them; random, smooth, not constant."""
    channels, dims = getattr(graph.canonicalizer.predictor, "in_channels", 1), len(graph.size)
    coarse = torch.rand(count, channels, *[5] * dims)
    return F.interpolate(coarse, graph.size, mode={2: "bilinear", 3: "trilinear"}[dims], align_corners=True)


def save_program(graph: DiffeoGraph, image: Tensor, file: Path) -> Path:
    """Write the program of a graph for any number of images, such as these, and give its file."""
    image = torch.cat([image, image]) if len(image) == 1 else image  # one image would fix their number
    with patch.object(torch, "autocast", _no_context):
        program = torch.export.export(graph, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, file)
    return file


def _no_context(*_: Any, **__: Any) -> nullcontext:
    """In place of autocast that is off: a program which says so cannot be loaded again."""
    return nullcontext()


def _largest(one: Tensor, other: Tensor) -> float:
    """Largest difference of two tensors, as share of values above 1; infinite unless NaN lies in the same places."""
    if bool((one.isnan() != other.isnan()).any()):
        return float("inf")
    return ((one.double() - other.double()) / other.double().abs().clamp(min=1)).nan_to_num().abs().max().item()
