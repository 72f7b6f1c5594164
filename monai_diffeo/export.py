"""A canonicaliser and its network as one graph of tensors, for programs without this package, or without Python."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import reduce
from itertools import starmap
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.canonicalize.acceptance import looks_again, poses_of_each, prefer_motion, worst_folding
from monai_diffeo.canonicalize.result import move_image, pose_generators
from monai_diffeo.canonicalize.search import Chain
from monai_diffeo.errors import ConfigError, NumericalError
from monai_diffeo.files import write_atomically
from monai_diffeo.flow import Deformation, affine_deformation, folding_fraction, warp
from monai_diffeo.flow.warp import resize_ddf
from monai_diffeo.inferers.aggregation import agreement, overlap
from monai_diffeo.networks.predictor import check_image, resample_once_more

__all__ = ["OUTPUTS", "DiffeoGraph", "export_graph", "save_program", "smooth_images"]

OUTPUTS = ("prediction", "moved", "energy_before", "energy_after", "ddf", "inverse_ddf", "agreement")
_OPSET = 20  # the first whose GridSample knows volumes
_TOLERANCE = 1e-4


class DiffeoGraph(nn.Module):
    """What :class:`DiffeoInferer` computes with a canonicaliser without optimisation, for images of one size, upright.

    Every look of the predictor, every pose and the network are in the graph; nothing in it depends on a value but by choosing
    between two tensors. It rejects an image by the rules of the canonicaliser, and such an image goes to the network as it is.
    A deformation that folds is rejected, not halved. Rotations, polarity and enlarging are left out.

    Args:
        canonicalizer: in a mode without ``steps`` and ``search``; copied, in single precision.
        network: image ``(B, C, *S)`` to one map ``(B, K, *T)`` or to scores ``(B, K)``; copied.
        size: ``*S``, of the images; None takes the working size, or that of the predictor.
        tta_samples: poses; None takes the canonicaliser's.
        motion_limits: as :class:`DiffeoInferer` has them; with one pose they say nothing.

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
        motion_limits: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        searches = canonicalizer.steps or canonicalizer.search is not None
        if canonicalizer.predictor is None or searches or not canonicalizer.deform:
            raise ConfigError(
                f"export: the mode must have a predictor and no optimisation, got steps={canonicalizer.steps}, "
                f"search={type(canonicalizer.search).__name__} and deform={canonicalizer.deform}. Choose a mode such as "
                "single_pass."
            )
        own: Any = canonicalizer.working_size or getattr(canonicalizer.predictor, "image_size", ())
        single = copy.deepcopy(canonicalizer).float()
        self.canonicalizer = single.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.size = tuple(int(n) for n in size or own)
        if len(self.size) != canonicalizer.family.spatial_dims:
            raise ConfigError(
                f"export: 'size' must have {canonicalizer.family.spatial_dims} axes, got {self.size}. Give --size."
            )
        self.network = copy.deepcopy(network).float().eval().requires_grad_(False)
        self.count = canonicalizer.tta_samples if tta_samples is None else tta_samples
        each = poses_of_each(self.count) if motion_limits else self.count
        self.work, self.limits = canonicalizer.working_size or self.size, motion_limits
        one = (1,) * len(self.size)
        pairs = [[Deformation.identity(1, one).matrix]] * (each % 2)
        for generator in pose_generators(self.size, each):
            pairs.append([affine_deformation(sign * generator[None], one).matrix for sign in (1, -1)])
        self.steps: Tensor  # from the canonical pose to each pose, (A, 1, D, D + 1)
        self.undo: Tensor  # and back
        for name, way in (("steps", 1), ("undo", -1)):
            self.register_buffer(name, torch.stack([matrix for pair in pairs for matrix in pair[::way]]))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """What :data:`OUTPUTS` names, the last only with several poses; images ``(B, C, *S)`` as the bundle has them.

        ``moved`` is bool, energies and agreement are ``(B,)``, displacements are in voxels of the image.
        """
        part, size = self.canonicalizer, self.size
        check_image(self, image, len(size), image.shape[1], size)
        given, finite = image, image.isfinite().flatten(1).all(1)
        image = _where(finite, image, torch.zeros_like(image))
        usable = finite & (image.flatten(1).amax(1) > image.flatten(1).amin(1))
        seen = resample_once_more(image, self.work)
        found, before = self._look(seen), part.energy(seen)
        before = torch.where(finite, before, torch.nan)
        forward, inverse = found.forward(self.work, part.final_steps), self._inverse(found)
        folded = worst_folding(forward.ddf(self.work), inverse.ddf(self.work))
        forward, inverse = forward.resized(self.work, size), inverse.resized(self.work, size)
        ddf, inverse_ddf = forward.ddf(size), inverse.ddf(size)
        after = part.energy(resample_once_more(move_image(image, ddf, part.sampling), self.work))
        done = usable & ((folded == 0) & (folding_fraction(ddf) == 0)) & (before.isfinite() & after.isfinite())
        if part.skip_below is not None:
            done = done & (before > part.skip_below)
        if part.max_energy_increase is not None:
            done = done & (after <= before + part.max_energy_increase)
        mean, agreed = self._ask(image, given, done, forward, inverse)
        deformed = done
        if self.limits and agreed is not None:
            still = Deformation.identity(image.shape[0], size, image.device)
            rest, agreed_at_rest = self._ask(image, given, done, still, still)
            keep = prefer_motion(after, agreed, agreed_at_rest, self.limits)
            if "overlap" in self.limits:
                single = self._answer(given)
                same = overlap(rest, single)
                rest = rest if same is None else _where(same >= self.limits["overlap"], rest, single)
            deformed = done & keep
            mean, agreed = _where(deformed | ~done, mean, rest), torch.where(keep, agreed, agreed_at_rest)
        decided = [_where(deformed, d, torch.zeros_like(d)) for d in (ddf, inverse_ddf)]
        told = (mean, done, before, torch.where(deformed, after, before), *decided)
        return told if agreed is None else (*told, agreed)

    def _ask(
        self, image: Tensor, given: Tensor, done: Tensor, forward: Deformation, inverse: Deformation
    ) -> tuple[Tensor, Any]:
        """Mean of the answers at all poses around a deformation, which are one batch, and their agreement or None."""
        count, rows, size = self.steps.shape[0], image.shape[0], self.size
        image, given, moved = (_copies(tensor, count) for tensor in (image, given, done))
        there, back = (Deformation(_copies(m.matrix, count), _copies(m.residual, count)) for m in (forward, inverse))
        step, undo = (matrices.expand(-1, rows, -1, -1).flatten(0, 1) for matrices in (self.steps, self.undo))
        ddf = there.after(Deformation(step, torch.zeros_like(there.ddf(size)))).ddf(size)
        answers = self._answer(_where(moved, move_image(image, ddf, self.canonicalizer.sampling), given))
        if answers.ndim == image.ndim:
            field = resize_ddf(back.then_affine(undo).ddf(size), tuple(answers.shape[2:]), size)
            answers = _where(moved, warp(answers, field), answers)
        poses = answers.unflatten(0, (count, rows)).unbind()
        return _where(done, torch.stack(poses).mean(0), poses[0]), agreement(poses, done)

    def _answer(self, image: Tensor) -> Tensor:
        answer = self.network(image)
        if not isinstance(answer, Tensor) or answer.ndim not in (2, image.ndim):
            raise ConfigError(
                "export: the network must give one tensor, a map (B, K, *S) or scores (B, K). Wrap it so that it does."
            )
        return answer

    def _look(self, seen: Tensor) -> Chain:
        """As :func:`predict`, with all looks; an image that is at rest is moved no more."""
        part, found = self.canonicalizer, Chain()
        flow: Any = None
        looking = torch.ones_like(seen.flatten(1)[:, 0]) > 0
        for _ in range(part.iterations):
            theta = part.predictor(seen if flow is None else warp(seen, flow.ddf(self.work)))
            theta = part.family.scaled(theta, looking.to(theta))
            step = part.family(theta, self.work)
            flow, found = step if flow is None else flow.after(step), found.then(part.family, theta)
            if part.min_motion is not None:
                looking = looking & looks_again(step.ddf(self.work), part.min_motion)
        return Chain(found.links, (self.work, flow))

    def _inverse(self, found: Chain) -> Deformation:
        """As :meth:`Chain.inverse`, all links as one batch."""
        thetas = [theta for _, theta in reversed(found.links)]
        maps = self.canonicalizer.family.inverse(torch.cat(thetas), self.work, self.canonicalizer.final_steps)
        parts = (tensor.unflatten(0, (len(thetas), -1)).unbind() for tensor in (maps.matrix, maps.residual))
        return reduce(Deformation.after, starmap(Deformation, zip(*parts)))


def _copies(tensor: Tensor, count: int) -> Tensor:
    """A batch ``(B, ...)`` several times, one after another."""
    return tensor.repeat(count, *[1] * (tensor.ndim - 1))


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
        settings["custom_translation_table"] = {torch.ops.aten.grid_sampler_3d.default: _sample_volume}
        settings["optimize"] = False  # its time grows with the square of the graph; ONNX Runtime optimises what it loads
        made: Any = torch.onnx.export(program, (), external_data=False, verbose=False, **settings)
        for node in made.model.graph.all_nodes():
            node.metadata_props.clear()  # a third of the file: lines of our source
        made.save(str(files["onnx"]))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # not how each constant was folded
        session = onnxruntime.InferenceSession(str(files["onnx"]), options, providers=["CPUExecutionProvider"])
        runs: dict[str, Callable[[Tensor], Any]] = {"program": program.module()}
        runs["onnx"] = lambda image: [torch.from_numpy(value) for value in session.run(None, {"image": image.numpy()})]
        differences = {kind: dict(zip(names, map(_largest, run(image), expected))) for kind, run in runs.items()}
    told = {
        "size": list(graph.size),
        "channels": image.shape[1],
        "tta_samples": graph.count,
        "iterations": graph.canonicalizer.iterations,
        "motion_limits": graph.limits,
        "outputs": names,
        "opset": _OPSET,
        "compared": _compared(expected),
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


def _sample_volume(image: Any, grid: Any, mode: int, padding: int, align_corners: bool) -> Any:
    """What torch.onnx does not know of: GridSample in space."""
    from onnxscript import opset20

    modes, paddings = ("linear", "nearest"), ("zeros", "border", "reflection")
    return opset20.GridSample(image, grid, mode=modes[mode], padding_mode=paddings[padding], align_corners=int(align_corners))


def _compared(expected: Sequence[Tensor]) -> dict[str, Any]:
    """How many images a graph gave these outputs for, canonicalised and deformed, with a warning if none."""
    moved, ddf = (expected[OUTPUTS.index(name)].reshape(len(expected[0]), -1).any(1) for name in ("moved", "ddf"))
    told: dict[str, Any] = {"images": len(ddf), "moved": int(moved.sum()), "deformed": int(ddf.sum())}
    if not told["deformed"]:
        unknown = "no image of the comparison was deformed, so it says nothing about images that are."
        told["warning"] = f"{unknown} Give --dataset_dir with such images."
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
