"""How often rotated films are found on ``val``, upright ones left alone, and mirrored ones said, by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from docs.experiments.film_data import load_films
from docs.experiments.lungs import SOURCES
from docs.experiments.lungs_product import SIZE, WORK, as_the_bundle_sees, state_of
from docs.experiments.pages import Experiment, note, section
from docs.experiments.training import kept
from docs.experiments.trust_films import shown
from monai_diffeo.canonicalize import Canonicalizer, load_canonicalizer
from monai_diffeo.canonicalize.acceptance import (
    chosen_rotation,
    may_be_mirrored,
    mirrored_in_two_looks,
    possible_rotations,
)
from monai_diffeo.canonicalize.framing import Enlarging
from monai_diffeo.flow import axis_rotations, mirror, rotate_axes
from monai_diffeo.flow.axis_rotations import inverse_rotation

MIRRORED = ("plain", "TPS")
CONDITIONS = (*MIRRORED, "TPS 45°/0.18", "TPS 60°/0.25", "letter box", "small in black", "zoomed")
CONDITIONS += ("photographed obliquely", "one lung white", "half black", "left half", "blurred", "noisy")
RULES: Mapping[str, float | None] = {"energies refuse": None, **{f"temperature {t:g}": t for t in (5.0, 10.0, 20.0)}}
QUARTERS = len(axis_rotations(2))
Look = dict[str, Any]  # of an upright film: probabilities and energies of its rotations, and of a mirrored look


def look_at(canonicalizer: Canonicalizer, film: Tensor, mirrored: bool) -> Look:
    """What decides on one film ``(1, 1, H, W)``; a rotated film has the same numbers in another order."""
    ask, found = canonicalizer.orientation.probabilities, {}
    film = Enlarging(film, canonicalizer.enlarge_below)(film, canonicalizer.sampling)
    probabilities, given = ask(film)
    views = [rotate_axes(film, inverse_rotation(2)[k]) for k in range(QUARTERS)]
    energies = [canonicalizer.energy(canonicalizer._predicted(view)).item() for view in views]
    if mirrored:
        for name, one in (("as it came", film), ("mirrored", mirror(film))):
            found[name] = [float(ask(image)[1]) for image in (one, canonicalizer._predicted(one))]
    return {"probabilities": probabilities[0].tolist(), "energies": energies, "looks": found}


def left_wrong(look: Look, quarters: int, confidence: float, temperature: float | None) -> bool:
    """Whether a film that is shown rotated by so many quarter turns is not upright in the end."""
    turned = [(k - quarters) % QUARTERS for k in range(QUARTERS)]  # rotation k of what is shown leaves this of the film
    probabilities, energies = ([look[name][k] for k in turned] for name in ("probabilities", "energies"))
    asked = possible_rotations(probabilities, confidence, temperature)
    return chosen_rotation(probabilities, {k: energies[k] for k in asked}, confidence, temperature) != quarters


def rotation_row(title: str, looks: Sequence[Look], confidence: float) -> dict[str, str]:
    """Of one condition: upright films that are rotated, and rotated films that are not made upright, by rule."""
    row = {"films": f"{title}, {len(looks)}"}
    for name, temperature in RULES.items():
        wrong = [sum(left_wrong(look, k, confidence, temperature) for look in looks) for k in range(QUARTERS)]
        row[name] = f"{wrong[0]} / {sum(wrong[1:])} of {3 * len(looks)}"
    return row


def mirrored_row(title: str, looks: Sequence[Look], confidence: float) -> dict[str, str]:
    """Of one set: mirrored films that are said to be so, and others that are, by one look and by two."""
    row = {"films": f"{title}, {len(looks)}"}
    for name in ("mirrored", "as it came"):
        pairs = torch.tensor([look["looks"][name] for look in looks])
        both = torch.where(may_be_mirrored(pairs[:, 0]), mirrored_in_two_looks(pairs[:, 0], pairs[:, 1]), pairs[:, 0])
        for how, values in (("one look", pairs[:, 0]), ("two looks", both)):
            row[f"{name}, {how}"] = f"{(values >= confidence).float().mean():.2f}"
    return row


def main(argv: list[str] | None = None) -> None:
    """Measure both tables and write the page."""
    defaults = {"bundle": "bundles/cxr_lung_segmentation", "films": 30, "sources": SOURCES, "conditions": CONDITIONS, "seed": 0}
    experiment = Experiment("rotations", __doc__, argv, dataset_dir=str, weights_dir=str, **defaults)
    options = experiment.options
    canonicalizer = load_canonicalizer(Path(options.bundle) / "models" / "energy")
    confidence, found = canonicalizer.min_confidence, {}

    def measured(source: str, condition: str) -> list[Look]:
        films = shown(load_films(options.dataset_dir, source, "val", options.films, SIZE), condition, options.seed)
        with torch.no_grad():
            seen = as_the_bundle_sees(films.images, WORK).split(1)
            return [look_at(canonicalizer, film, condition in MIRRORED) for film in seen]

    for source in options.sources:
        for condition in options.conditions:
            settings = {"experiment": "rotations", "source": source, "condition": condition, "films": options.films}
            settings |= state_of(Path(options.bundle))
            run = lambda s=source, c=condition: {"looks": measured(s, c)}  # noqa: E731
            found[source, condition] = kept(options.weights_dir, settings, run)["looks"]
    rows = [rotation_row(c, [look for s in options.sources for look in found[s, c]], confidence) for c in options.conditions]
    plain = [rotation_row(f"{s}, plain", found[s, "plain"], confidence) for s in options.sources if (s, "plain") in found]
    said = [mirrored_row(f"{s}, {c}", found[s, c], confidence) for c in MIRRORED for s in options.sources if (s, c) in found]
    parts = note("rotations", confidence=confidence, temperature=canonicalizer.rotation_temperature)
    tables = section("## Rotated films\n\n" + parts[1], [*plain, *rows]), section("## Mirrored films\n\n" + parts[2], said)
    experiment.write("Rotated and mirrored films", [parts[0], *tables], options.seed)


if __name__ == "__main__":
    main()
