"""The page of a fit: a sheet of images, the figures, and whether it worked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from monai_diffeo.files import write_atomically
from monai_diffeo.fit.outcome import FOUND_TURNS, KEPT_UPRIGHT, FitOutcome
from monai_diffeo.report import panels
from monai_diffeo.report.sheet import Panel, Sheet

__all__ = ["PAGE", "SHEET", "outcome_lines", "plan_lines", "write_page"]

PAGE, SHEET = "README.md", "sheet.png"
_STATES = ("as it is", "deformed", "canonicalised")
_PICTURES = 6


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """What a fit does, a line each."""
    frame, size = (" x ".join(map(str, plan[name])) for name in ("frame", "working_size"))
    images = f"{plan['images']}, {plan['held_back']} of them held back; channels {plan['channels']}, frame {frame}"
    rows = {"images": images, "working size": size, "network": plan["network"], "device": plan["device"]}
    for name, part in plan["parts"].items():
        rows[name] = f"{part['steps']} steps" + (f", {part['seconds'] / 60:.1f} minutes" if part["seconds"] else "")
    return [f"{name:<14}{value}" for name, value in rows.items()]


def outcome_lines(outcome: FitOutcome) -> list[str]:
    """The figures, a line each."""
    used = "used" if outcome.orientation else f"not used: {KEPT_UPRIGHT:.0%} and {FOUND_TURNS:.0%} are needed"
    rows = {
        "measured": f"{outcome.images} images that were held back",
        "energy": f"{outcome.energy:.2f} as they are, {outcome.energy_deformed:.2f} deformed, {outcome.energy_canonical:.2f} "
        f"canonicalised; {outcome.closed:.0%} of the gap closed",
        "displacement": f"{outcome.undone:.0%} undone",
        "moved": f"{outcome.canonicalized:.0%} of the deformed images",
        "folded": f"at most {outcome.folding:.2%} of a field",
        "rotations": f"by the orientation network alone {outcome.found_turns:.0%} found, {outcome.kept_upright:.0%} of upright "
        f"images seen upright; {used}",
        "mode": outcome.mode,
        "time": f"{outcome.seconds:.2f} seconds an image",
    }
    if (dice := outcome.overlap) is not None:
        rows["Dice"] = (
            f"with {dice.reference}, {dice.images} images, {dice.tta_samples} pose(s), plain and canonicalised: undeformed "
            f"{dice.upright_plain:.3f} and {dice.upright:.3f}, deformed {dice.deformed_plain:.3f} and {dice.deformed:.3f}"
        )
    return [f"{name:<18}{value}" for name, value in rows.items()]


def write_page(folder: Path, plan: Mapping[str, Any], outcome: FitOutcome, *states: Tensor) -> None:
    """Write ``README.md`` and ``sheet.png``; ``states`` are images ``(N, C, *S)`` as they are, deformed, canonicalised."""
    plans, figures = "\n".join(plan_lines(plan)), "\n".join(outcome_lines(outcome))
    text = f"""# A fitted canonicaliser

**Did it work?** {outcome.sentence()}

The figures are of images that were held back from training. They were deformed at random, as in the training.
An energy is 0 at the median of undeformed images, and its unit is their spread.

```
{figures}
```

![Images as they are, deformed, and canonicalised after that]({SHEET})

What was fitted, and for how long:

```
{plans}
```

`load_canonicalizer(FOLDER)` reads this folder. `limits.json` holds what is usual for these images: beyond it, an image is to be
reviewed. `fit.json` holds all settings and figures. For research, not for diagnosis.
"""
    write_atomically(folder / SHEET, _sheet(*states))
    write_atomically(folder / PAGE, text.encode())


def _sheet(*states: Tensor) -> bytes:
    """A PNG with a row for each state and a column for each of six images."""
    pictures = [[_picture(image) for image in images[:_PICTURES]] for images in states]
    height, width = pictures[0][0].shape
    side, gap = 196, 4  # px
    tall = round(side * height / width)
    sheet = Sheet(len(pictures[0]) * (side + gap), len(pictures) * (tall + gap), panels.BACKGROUND)
    for i, (state, row) in enumerate(zip(_STATES, pictures)):
        places = [Panel(sheet, gap // 2 + j * (side + gap), gap // 2 + i * (tall + gap), side, tall) for j in range(len(row))]
        for place, picture in zip(places, row):
            panels.background(place, picture)
        places[0].words(0.03, 0.97, state, panels.INK, 11, anchor="la", rim=True)
    return sheet.png()


def _picture(image: Tensor) -> np.ndarray:
    """Mean over the channels ``(H, W)``; of a volume the middle slice of its second axis, the last axis upwards."""
    grey = image.float().mean(0).cpu().numpy()
    return grey if grey.ndim == 2 else np.rot90(grey[:, grey.shape[1] // 2])
