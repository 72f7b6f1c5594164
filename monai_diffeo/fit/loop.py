"""Training one part within its time, in steps that go on exactly where they stopped."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_diffeo.errors import NumericalError
from monai_diffeo.files import write_atomically
from monai_diffeo.fit.parts import FitPart
from monai_diffeo.networks import save_weights

__all__ = ["CHECKPOINT", "cycle", "seconds_a_step", "train_part"]

CHECKPOINT = ".checkpoint.pt"  # hidden: no part of what is fitted

Data = Mapping[str, Tensor]


def cycle(progress: float) -> float:
    """Learning rate as a share of the largest: up over the first tenth of the training, then down to 0 along a cosine."""
    return progress / 0.1 if progress < 0.1 else 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


class _Training:
    """All that a step changes; ``progress`` runs from 0 to 1, however often the number of steps is planned anew."""

    def __init__(self, part: FitPart, data: Data, device: torch.device, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.part, self.data, self.device = part, data, device
        self.network, self.step = part.build().to(device).train(), part.step(seed)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), part.rate, weight_decay=1e-4)
        self.draw = torch.Generator().manual_seed(seed)
        self.counts = {"done": 0, "left": steps, "progress": 0.0, "seconds": 0.0}

    def advance(self) -> float:
        """One step; gives its loss."""
        counts, share = self.counts, (1 - self.counts["progress"]) / self.counts["left"]
        self.optimizer.param_groups[0]["lr"] = self.part.rate * cycle(counts["progress"] + share / 2)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.step(self.network, self._batch())
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            values = {name: float(value.detach()) for name, value in losses.items()}
            raise ValueError(f"at step {counts['done']} the loss became {values}")
        total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.counts = {**counts, "done": counts["done"] + 1, "left": counts["left"] - 1, "progress": counts["progress"] + share}
        return float(total.detach())

    def _batch(self) -> dict[str, Tensor]:
        """Random images; where only the first ones have an answer of the network, every second batch is of these."""
        count, first = len(self.data["image"]), min(map(len, self.data.values()))
        answered = first == count or self.counts["done"] % 2 == 0
        rows = torch.randint(first if answered else count, (min(self.part.batch_size, count),), generator=self.draw)
        data = self.data if answered else {"image": self.data["image"]}
        return {name: values[rows].to(self.device, torch.float32) for name, values in data.items()}

    def plan_anew(self, budget: float) -> None:
        """As many more steps as the time that is left allows, if that is another number by more than a tenth."""
        counts = self.counts
        possible = max(int((budget - counts["seconds"]) * counts["done"] / counts["seconds"]), 1)
        if counts["left"] and abs(possible - counts["left"]) > 0.1 * counts["left"]:
            counts["left"] = possible

    def state(self) -> dict[str, Any]:
        random = {"draw": self.draw.get_state(), "step": self.step.generator.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        weights = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {"part": self.part.name, "counts": self.counts, "random": random, **weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.counts, random = dict(state["counts"]), state["random"]
        self.draw.set_state(random["draw"])
        self.step.generator.set_state(random["step"])
        torch.set_rng_state(random["torch"])
        if "cuda" in random and self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.device)


def _own_random_numbers(device: torch.device) -> Any:
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def seconds_a_step(part: FitPart, data: Data, device: torch.device) -> float:
    """Seconds of a training step, from two of them after a first one; nothing is kept."""
    with _own_random_numbers(device):
        training = _Training(part, data, device, 0, 100)
        training.advance()
        began = time.perf_counter()
        training.advance()
        training.advance()
        return (time.perf_counter() - began) / 2


def train_part(
    part: FitPart,
    data: Data,
    folder: Path,
    plan: Mapping[str, Any],
    device: torch.device,
    seed: int,
    tick: Callable[[float, float], Any],
    every: float = 20.0,
) -> None:
    """Train a part, and write its weights to ``folder`` in half precision; an existing checkpoint of it is gone on with.

    Args:
        part, data: the part, and ``image`` ``(N, C, *S)`` at its size; the first images may have an ``answer``.
        folder: of the canonicaliser.
        plan: ``steps``, and ``seconds`` for which they are planned anew if the machine is slower or faster; None keeps them.
        device, seed: of the training.
        tick: takes the share of the part that was done, and the loss.
        every: seconds between checkpoints.

    Raises:
        NumericalError: if a step fails, with the part, or weights are not finite; nothing stands in for it.
    """
    checkpoint = folder / CHECKPOINT
    try:
        with _own_random_numbers(device):
            training = _Training(part, data, device, seed, plan["steps"])
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.is_file() else {}
            if saved.get("part") == part.name:
                training.restore(saved)
                tick(training.counts["progress"], math.nan)
            kept = time.perf_counter()
            began = kept - training.counts["seconds"]
            while training.counts["left"]:
                before, loss = training.counts["progress"], training.advance()
                tick(training.counts["progress"] - before, loss)
                training.counts["seconds"] = time.perf_counter() - began
                if time.perf_counter() - kept >= every:
                    if plan["seconds"] is not None:
                        training.plan_anew(plan["seconds"])
                    _write(checkpoint, training.state())
                    kept = time.perf_counter()
    except (RuntimeError, ValueError) as error:
        remedy = "Nothing stands in for it. Check the images for odd values; a smaller --size needs less memory."
        raise NumericalError(f"fit: the {part.name} failed: {str(error).splitlines()[0]}. {remedy}") from error
    save_weights(training.network, folder / f"{part.name}.pt", half=True)
    checkpoint.unlink(missing_ok=True)


def _write(path: Path, content: Any) -> None:
    stream = io.BytesIO()
    torch.save(content, stream)
    write_atomically(path, stream.getvalue())
