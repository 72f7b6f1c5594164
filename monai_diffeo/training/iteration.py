"""One optimisation step for MONAI's ``SupervisedTrainer``, the curve of its losses, and what it leaves on disk."""

from __future__ import annotations

import csv
import operator
import time
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_diffeo.errors import NumericalError
from monai_diffeo.networks.weights import save_weights, trained_part

__all__ = ["LossCurve", "TrainedWeights", "TrainingIteration"]


class TrainingIteration:
    """``iteration_update`` of a ``SupervisedTrainer``: minimise the sum of a step's named losses.

    The engine's output is a list of one dictionary, ``loss`` and the named losses, as MONAI's own handlers expect it.

    Args:
        step: ``(network, batch) -> losses by name``.
        clip: largest Euclidean norm of the gradient over all parameters; a longer one is scaled down.

    Raises:
        NumericalError: when a loss is not finite, with its name and the iteration.
    """

    def __init__(self, step: Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Tensor]], clip: float = 1.0) -> None:
        self.step, self.clip = step, clip

    def __call__(self, engine, batch: Mapping[str, Tensor]) -> list[dict[str, float]]:
        batch = {k: v.to(engine.state.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        losses = self.step(engine.network, batch)
        total = reduce(operator.add, losses.values())
        if not torch.isfinite(total):
            values = {name: float(value.detach()) for name, value in losses.items()}
            remedy = "lower the learning rate or check that the films lie in [0, 1]."
            raise NumericalError(f"TrainingIteration: iteration {engine.state.iteration}: loss became {values}; {remedy}")
        total.backward()
        torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.clip)
        engine.optimizer.step()
        return [{"loss": float(total.detach()), **{name: float(value.detach()) for name, value in losses.items()}}]


class LossCurve:
    """Handler that writes the mean losses of each epoch, and the seconds since the start, to a CSV file.

    Of several processes the first writes, its own losses. The rows of a training that goes on, or has failed, are in
    ``<path>.part``.

    Args:
        path: file to write; an existing one is replaced at the end of a training.
        progress: print one line an epoch.
    """

    def __init__(self, path: str | Path, progress: bool = True) -> None:
        self.path, self.part, self.progress = Path(path), Path(f"{path}.part"), progress

    def attach(self, engine) -> None:
        from ignite.engine import Events

        if not _is_first_process():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda: self.part.replace(self.path))

    def _start(self, engine) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.began, self.count = time.perf_counter(), 0
        self.sums: dict[str, float] = {}

    def _collect(self, engine) -> None:
        for name, value in engine.state.output[0].items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def _write(self, engine) -> None:
        row = {"epoch": engine.state.epoch, **{name: round(s / self.count, 6) for name, s in self.sums.items()}}
        row["seconds"] = round(time.perf_counter() - self.began, 1)
        mode = "w" if engine.state.epoch == 1 else "a"  # a resumed training goes on
        with open(self.part, mode, newline="") as file:
            writer = csv.DictWriter(file, row)
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
        if self.progress:
            values = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch")
            print(f"{self.path.stem}: epoch {engine.state.epoch}/{engine.state.max_epochs}, {values}", flush=True)
        self.sums, self.count = {}, 0


class TrainedWeights:
    """Handler that writes a network's weights after a training that ended well, see :func:`save_weights`.

    A training that failed, was interrupted or left weights that are not finite leaves the file as it was. Of several processes
    the first writes.

    Args:
        network: whose weights; not its ``DistributedDataParallel``.
        path: of the file.
        half: numbers with a fraction as float16.
        trained_only: write those weights alone that require a gradient, for ``load_weights(..., further=path)``.

    Raises:
        NumericalError: at the end of a training, if a weight is not finite.
    """

    def __init__(self, network: nn.Module, path: str | Path, half: bool = False, trained_only: bool = False) -> None:
        self.network, self.path, self.half, self.trained_only = network, Path(path), half, trained_only

    def attach(self, engine) -> None:
        from ignite.engine import Events

        if _is_first_process():
            engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self) -> None:
        save_weights(trained_part(self.network) if self.trained_only else self.network, self.path, self.half)


def _is_first_process() -> bool:
    return not (torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank())
