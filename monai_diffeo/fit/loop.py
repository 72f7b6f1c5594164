"""Training one part within its time, in steps that go on exactly where they stopped."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffeo.errors import DiffeoError, NumericalError
from monai_diffeo.files import write_atomically
from monai_diffeo.fit.parts import Part

__all__ = ["CHECKPOINT", "cycle", "seconds_a_step", "train_part"]

CHECKPOINT = ".checkpoint.pt"  # hidden: no part of what is fitted
_EVERY = 20.0  # seconds between checkpoints

Data = Mapping[str, Tensor]


def cycle(progress: float) -> float:
    """Learning rate as a share of the largest: up over the first tenth of the training, then down to 0 along a cosine."""
    return progress / 0.1 if progress < 0.1 else 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


class _Training:
    """Everything that a step changes."""

    def __init__(self, part: Part, data: Data, device: torch.device, seed: int, steps: int) -> None:
        self.part, self.data, self.device = part, data, device
        self.network = part.build().to(device).train()
        self.step = part.step(seed)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), part.rate, weight_decay=1e-4)
        self.draw = torch.Generator().manual_seed(seed)
        self.done, self.left, self.progress, self.seconds = 0, steps, 0.0, 0.0

    def advance(self) -> float:
        """One step; gives its loss."""
        share = (1 - self.progress) / self.left  # so that a cycle that was planned anew ends at its end too
        for group in self.optimizer.param_groups:
            group["lr"] = self.part.rate * cycle(self.progress + share / 2)
        self.progress += share
        batch = self._batch()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.step(self.network, batch)
        total = reduce(add, losses.values())
        if not torch.isfinite(total):
            values = {name: float(value.detach()) for name, value in losses.items()}
            raise NumericalError(f"at step {self.done} its loss became {values}")
        total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.done, self.left = self.done + 1, self.left - 1
        return float(total.detach())

    def _batch(self) -> dict[str, Tensor]:
        """Random images; where only the first ones have answers of the network, every second batch is of these."""
        count, first = len(self.data["image"]), min(map(len, self.data.values()))
        answered = first == count or self.done % 2 == 0
        rows = torch.randint(first if answered else count, (min(self.part.batch_size, count),), generator=self.draw)
        data = self.data if answered else {"image": self.data["image"]}
        return {name: values[rows].to(self.device, torch.float32) for name, values in data.items()}

    def plan_anew(self, budget: float) -> None:
        """As many more steps as the time that is left allows, if that is another number by more than a tenth."""
        possible = max(int((budget - self.seconds) * self.done / max(self.seconds, 1e-9)), 1)
        if self.left and abs(possible - self.left) > 0.1 * self.left:
            self.left = possible

    def state(self) -> dict[str, Any]:
        cuda = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        counts = {"done": self.done, "left": self.left, "progress": self.progress, "seconds": self.seconds}
        generators = {"draw": self.draw.get_state(), "step": self.step.generator.get_state(), "torch": torch.get_rng_state()}
        weights = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {"part": self.part.name, "counts": counts, "generators": generators | cuda, **weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["counts"].items():
            setattr(self, name, value)
        generators = state["generators"]
        self.draw.set_state(generators["draw"])
        self.step.generator.set_state(generators["step"])
        torch.set_rng_state(generators["torch"])
        if "cuda" in generators and self.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"], self.device)


def _seeded(device: torch.device) -> Any:
    """The caller's random numbers stay as they are."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seconds_a_step(part: Part, data: Data, device: torch.device) -> float:
    """Seconds of a training step, from two of them after a first one; nothing is kept."""
    with _seeded(device):
        training = _Training(part, data, device, 0, 100)
        training.advance()
        began = time.perf_counter()
        training.advance()
        training.advance()
        return (time.perf_counter() - began) / 2


def train_part(
    part: Part,
    data: Data,
    folder: Path,
    steps: int,
    budget: float | None,
    seed: int,
    device: torch.device,
    tick: Callable[[float, float], Any],
    every: float = _EVERY,
) -> None:
    """Train a part and write its weights, in half precision, to ``folder``; an existing checkpoint of it is gone on with.

    Args:
        part, data: the part, and ``image`` (and ``answer``) at its size, ``(N, C, *S)``.
        folder: of the canonicaliser.
        steps: planned.
        budget: seconds; the steps are planned anew where the machine turns out slower or faster. None keeps ``steps``.
        seed: of weights, batches and augmentation.
        device: where it is trained.
        tick: takes the share of the part that a step was, and the loss.
        every: seconds between checkpoints.

    Raises:
        NumericalError: if a step fails, with the part; nothing stands in for it.
    """
    checkpoint = folder / CHECKPOINT
    try:
        with _seeded(device):
            torch.manual_seed(seed)
            training = _Training(part, data, device, seed, steps)
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.is_file() else {}
            if saved.get("part") == part.name:
                training.restore(saved)
                tick(training.progress, math.nan)
            last = time.perf_counter()
            began = last - training.seconds
            while training.left:
                before = training.progress
                loss = training.advance()
                tick(training.progress - before, loss)
                now = time.perf_counter()
                training.seconds = now - began
                if now - last >= every:
                    if budget is not None:
                        training.plan_anew(budget)
                    write_atomically(checkpoint, _file(training.state()))
                    last = time.perf_counter()
    except DiffeoError as error:
        remedy = "The checkpoint before it is kept. Check the images for odd grey values."
        raise NumericalError(f"fit: the {part.name} failed: {error}. {remedy}") from error
    except RuntimeError as error:
        remedy = "Nothing stands in for it. A smaller --size needs less memory."
        raise NumericalError(f"fit: the {part.name} failed: {str(error).splitlines()[0]}. {remedy}") from error
    state = {k: v.half() if v.is_floating_point() else v for k, v in training.network.cpu().state_dict().items()}
    write_atomically(folder / f"{part.name}.pt", _file(state))
    checkpoint.unlink(missing_ok=True)


def _file(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()
