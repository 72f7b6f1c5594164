"""The page of a fit: a sheet of images, the figures, and whether it worked."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from monai_diffeo.files import write_atomically
from monai_diffeo.fit.outcome import FitOutcome
from monai_diffeo.report import panels

__all__ = ["PAGE", "SHEET", "plan_lines", "write_page"]

PAGE, SHEET = "README.md", "sheet.png"
_MOST = 6
_ROWS = ("as it is", "deformed", "canonicalised")


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """What a fit will do, a line each."""
    frame, size = (" x ".join(map(str, plan[name])) for name in ("frame", "working_size"))
    lines = [
        f"images        {plan['images']}, of which {plan['held_back']} are held back; {plan['channels']} channel(s), frame {frame}",
        f"working size  {size}",
        f"network       {plan['network']}",
        f"device        {plan['device']}",
    ]
    for name, part in plan["parts"].items():
        minutes = "" if part["seconds"] is None else f", {part['seconds'] / 60:.1f} minutes"
        lines.append(f"{name:<13} {part['steps']} steps{minutes}")
    return lines


def outcome_rows(outcome: FitOutcome) -> list[tuple[str, str]]:
    """Figures by name."""
    rows = [
        ("held-back images", str(outcome.images)),
        ("energy as they are", f"{outcome.energy:.2f}"),
        ("energy deformed", f"{outcome.energy_deformed:.2f}"),
        ("energy canonicalised", f"{outcome.energy_canonical:.2f}"),
        ("share of the energy gap closed", f"{outcome.closed:.2f}"),
        ("share of the displacement undone", f"{outcome.undone:.2f}"),
        ("deformed images canonicalised", f"{outcome.canonicalized:.0%}"),
        ("largest share of folded voxels", f"{outcome.folding:.4f}"),
        ("seconds an image", f"{outcome.seconds:.2f}"),
    ]
    if outcome.found_turns is not None and outcome.kept_upright is not None:
        rows += [
            ("upright images left upright", f"{outcome.kept_upright:.0%}"),
            ("rotations found", f"{outcome.found_turns:.0%}"),
        ]
    if (overlap := outcome.overlap) is not None:
        of = f"Dice with {overlap.reference}, {overlap.images} images, {overlap.tta_samples} pose(s)"
        rows += [
            (f"{of}: undeformed, plain", f"{overlap.upright_plain:.3f}"),
            ("undeformed, canonicalised", f"{overlap.upright:.3f}"),
            ("deformed, plain", f"{overlap.deformed_plain:.3f}"),
            ("deformed, canonicalised", f"{overlap.deformed:.3f}"),
            ("share of the Dice gap closed", f"{overlap.closed:.2f}"),
        ]
    return rows


def write_page(
    folder: Path, plan: Mapping[str, Any], outcome: FitOutcome, images: Tensor, deformed: Tensor, canonical: Tensor
) -> None:
    """Write ``README.md`` and ``sheet.png``; the images are ``(N, C, *S)``, the same ones in three states."""
    table = "\n".join(f"| {name} | {value} |" for name, value in outcome_rows(outcome))
    notes = "".join(f"\n{note}\n" for note in outcome.notes)
    text = f"""# A fitted canonicaliser

Did it work? {outcome.sentence()}
{notes}
These images were held back from training. Deformations are random, of the kind that the training used.

| held-back images, median | |
|---|---|
{table}

![Images as they are, deformed and canonicalised]({SHEET})

Energies are in spreads of undeformed images, over their median.

## What was fitted

```
{chr(10).join(plan_lines(plan))}
```

Use it: `load_canonicalizer("FOLDER")`. `fit.json` holds all settings. For research, not for diagnosis.
"""
    write_atomically(folder / SHEET, _sheet(images, deformed, canonical))
    write_atomically(folder / PAGE, text.encode())


def _sheet(*states: Tensor) -> bytes:
    """A PNG with a column for each of six images, and a row for each state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(_MOST, len(states[0]))
    pictures = [[_picture(images[i]) for i in range(count)] for images in states]
    height, width = pictures[0][0].shape
    figure = Figure(figsize=(2 * count + 1, 2 * len(states) * height / width + 0.3), facecolor=panels.BACKGROUND, dpi=100)
    axes = figure.subplots(len(states), count, squeeze=False)
    for row, title, line in zip(axes, _ROWS, pictures):
        for place, picture in zip(row, line):
            panels.background(place, picture)
        panels.words(row[0], 0.03, 0.97, title, panels.INK, 11, va="top", frame=True)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, 0.03, 0.03)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": "monai_diffeo"})
    return stream.getvalue()


def _picture(image: Tensor) -> np.ndarray:
    """Mean over the channels; the middle slice of a volume, the last axis up."""
    grey = image.float().mean(0).numpy()
    if grey.ndim == 2:
        return grey
    return np.rot90(grey[:, grey.shape[1] // 2])


def summary(outcome: FitOutcome) -> Sequence[str]:
    """What is printed at the end."""
    return [
        *(f"{name:<44} {value}" for name, value in outcome_rows(outcome)),
        *outcome.notes,
        f"Did it work? {outcome.sentence()}",
    ]
