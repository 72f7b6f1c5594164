"""A table and a picture of classified digits: the image, the canonical image, and the class found with and without it."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diffeo.canonicalize import Canonicalization
from monai_diffeo.files import write_atomically
from monai_diffeo.inferers import parse_switch
from monai_diffeo.report import SWITCHED_OFF
from monai_diffeo.trust import NOT_JUDGED

__all__ = ["GenusReporter", "digits_figure"]

_COLOURS = {  # (right without moving, right with it)
    (True, True): ("#5b646d", "right both ways"),
    (False, True): ("#0a9396", "right, and wrong without moving"),
    (True, False): ("#ee9b00", "wrong, and right without moving"),
    (False, False): ("#ae2012", "wrong both ways"),
}
_GAP = 4  # voxels around a pair


class GenusReporter:
    """Handler of a ``DiffeoEvaluator(..., plain=True)`` that writes ``genus.csv``, one line a digit, and ``genus.png``.

    Columns: ``id``, ``digit``, ``genus`` as labelled, ``answer``, the probabilities ``p0 p1 p2``, ``plain_answer`` without
    canonicalisation, ``status``, ``energy_before``, ``energy_after``, ``displacement`` (largest, voxels), ``folding_fraction``
    (share of voxels), ``agreement`` of test-time augmentation (0 to 1), ``decision`` by the limits of digits of ``val``.
    Where canonicalisation is switched off, the decision is ``not judged`` and the five before it are empty.

    Args:
        output_dir: folder of both.
        figures: write the picture.
        shown: so many digits at most in the picture.
    """

    def __init__(self, output_dir: str | Path, figures: bool | str = True, shown: int = 64) -> None:
        self.output_dir, self.figures, self.shown = Path(output_dir), parse_switch(figures), shown

    def attach(self, engine) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine) -> None:
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[tuple[Tensor, Tensor]] = []

    def _collect(self, engine) -> None:
        items, outputs, result = engine.state.batch, engine.state.output, engine.state.result
        found, plain = result.canonicalization, result.plain.argmax(1).tolist()
        given = torch.stack([torch.as_tensor(output["image"]) for output in outputs])
        seen = given if found is None else found.image
        for i, (item, output) in enumerate(zip(items, outputs)):
            probabilities = torch.as_tensor(output["pred"]).tolist()
            self.rows.append(
                {
                    "id": item["id"],
                    "digit": int(item["digit"]),
                    "genus": int(output["label"]),
                    "answer": int(np.argmax(probabilities)),
                    **{f"p{k}": round(p, 4) for k, p in enumerate(probabilities)},
                    "plain_answer": plain[i],
                    **_found(found, i),
                    "decision": result.records[i].get("decision", "") if result.records else NOT_JUDGED,
                }
            )
            self.pictures.append((given[i, 0].cpu(), seen[i, 0].cpu()))

    def _write(self, engine) -> None:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, self.rows[0])
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.output_dir / "genus.csv", table.getvalue().encode())
        if self.figures:
            digits_figure(self.output_dir / "genus.png", self.rows[: self.shown], self.pictures[: self.shown])
        count, right, plain = (
            len(self.rows),
            *(sum(r[key] == r["genus"] for r in self.rows) for key in ("answer", "plain_answer")),
        )
        print(
            f"{count} digits: genus right for {right} ({right / count:.3f}), "
            f"without canonicalisation for {plain} ({plain / count:.3f})"
        )


def _found(found: Canonicalization | None, i: int) -> dict[str, Any]:
    """Columns of canonicalisation for one digit."""
    names = ("energy_before", "energy_after", "displacement", "folding_fraction", "agreement")
    if found is None:
        return {"status": SWITCHED_OFF, **dict.fromkeys(names)}
    values = (found.energy_before, found.energy_after, found.largest_displacement, found.folding_fraction, found.agreement)
    return {"status": found.status[i], **{n: None if v is None else round(v[i].item(), 4) for n, v in zip(names, values)}}


def digits_figure(
    path: str | Path, rows: list[dict[str, Any]], pictures: list[tuple[Tensor, Tensor]], columns: int = 8
) -> None:
    """Write a PNG of pairs: a digit as it was shown, and beside it as the network saw it.

    Under each pair stand the genus and the class found, without and with canonicalisation. The frame's colour says which is
    right.

    Args:
        path: of the PNG.
        rows: lines of ``genus.csv``.
        pictures: shown and seen digit of each line, shape ``(H, W)`` each.
        columns: pairs beside each other.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    height, width = pictures[0][0].shape
    lines = -(-len(rows) // columns)
    step = (height + 3 * _GAP, 2 * width + 2 * _GAP)
    canvas = np.ones((lines * step[0], columns * step[1]), np.float32)
    figure = Figure(figsize=(canvas.shape[1] / 40, canvas.shape[0] / 40 + 0.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axis_off()
    for i, (row, pair) in enumerate(zip(rows, pictures)):
        y, x = i // columns * step[0] + _GAP, i % columns * step[1] + _GAP
        canvas[y : y + height, x : x + 2 * width] = 1 - torch.cat(pair, 1).clamp(0, 1).numpy()
        colour, _ = _COLOURS[row["plain_answer"] == row["genus"], row["answer"] == row["genus"]]
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 2 * width, height, fill=False, edgecolor=colour, linewidth=1.8))
        axes.text(
            x + width,
            y + height + _GAP,
            f"genus {row['genus']}: {row['plain_answer']}, moved {row['answer']}",
            ha="center",
            va="center",
            fontsize=6.5,
            color=colour,
        )
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    keys = [Patch(facecolor="none", edgecolor=colour, linewidth=1.8, label=text) for colour, text in _COLOURS.values()]
    figure.legend(
        handles=keys,
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=9,
        title="left: as shown, right: as the network saw it; answers of the network as it is, and moved",
    )
    figure.savefig(path, format="png")
