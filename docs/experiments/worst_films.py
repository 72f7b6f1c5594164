"""The ten films of each source with the lowest Dice of the wrapped product, what was measured on them, and pictures of some."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from docs.experiments.film_data import Films, load_films
from docs.experiments.lungs import SOURCES
from docs.experiments.lungs_product import (
    SIZE,
    WORK,
    as_the_bundle_sees,
    dice_of,
    kept_rows,
    masks_of,
    measure,
    networks,
    threshold_of,
    whole_network,
    wrappers,
)
from docs.experiments.pages import Experiment, note, section
from monai_diffeo.metrics import connected_components
from monai_diffeo.radiograph.manifest import read_manifest

COUNT = 10
Facts = dict[str, Any]


def facts_of(label: Tensor, mask: Tensor, inside: Tensor, dice: float, whole: float, found: Mapping[str, Any]) -> Facts:
    """What was measured on a film: ``label`` and ``mask`` ``(H, W)``, ``inside`` the mask before parts were chosen.

    ``dice`` and ``whole`` are those of the product and of the product for the whole lung, ``found`` the record of the inferer.
    """
    truth, answer = label > 0, mask > 0
    missed, extra = truth & ~answer, answer & ~truth
    middle = float(truth.nonzero()[:, 1].float().mean())
    columns = torch.arange(truth.shape[1]).expand_as(truth)
    halves = {"left": columns < middle, "right": columns >= middle}
    shares = {side: float((missed & half).sum() / (truth & half).sum().clamp(min=1)) for side, half in halves.items()}
    return {
        "dice": dice,
        "whole": whole,
        "missed": float(missed.sum() / truth.sum()),
        "extra": float(extra.sum() / answer.sum().clamp(min=1)),
        "side": max(shares, key=lambda side: shares[side]),
        "side_missed": max(shares.values()),
        "parts": connected_components(inside.numpy(), "full")[1],
        **found,
    }


def words_on(facts: Facts) -> str:
    """Why a film is among the worst, in words for what was measured; the largest reason first."""
    words = []
    if facts["rotation"]:
        words.append(f"turned by {90 * facts['rotation']} degrees by mistake")
    if facts["whole"] > facts["dice"] + 0.05:
        words.append(f"the mask holds the lung behind heart and diaphragm (Dice {facts['whole']:.2f} with whole)")
    elif facts["missed"] >= facts["extra"]:
        words.append(
            f"{facts['missed']:.0%} of the mask missed, most in the image's {facts['side']} ({facts['side_missed']:.0%})"
        )
    else:
        words.append(f"{facts['extra']:.0%} of the answer lies outside the mask")
    if facts["parts"] > 2:
        words.append(f"{facts['parts']} parts before two were kept")
    if facts["moved"] > 0.01:
        words.append(f"deformed by up to {facts['moved']:.0%} of the frame")
    if facts["agreement"] < 0.95:
        words.append(f"poses disagree (agreement {facts['agreement']:.2f})")
    if facts["energy"] > 50:
        words.append(f"unlike the training films (energy {facts['energy']:.0f})")
    return "; ".join(words)


def look_at(bundle: Path, films: Films) -> tuple[list[Facts], Tensor]:
    """Facts of films, and the product's masks ``(N, 1, H, W)``."""
    product, whole, inferer = networks(bundle)["product"], whole_network(bundle), wrappers(bundle)["product"]
    threshold = threshold_of(bundle)
    rows, masks = [], []
    for seen, label in zip(as_the_bundle_sees(films.images, WORK).split(1), films.labels.split(1)):
        results: list[Any] = []
        inferer.on_result = results.append
        with torch.no_grad():
            logits, other = inferer(seen, product), inferer(seen, whole)
        found = results[0]
        record = {
            "rotation": int(found.rotations[0]),
            "moved": float(found.largest_displacement[0]) / WORK[0] * (int(found.rotations[0]) == 0),
            "agreement": float(found.agreement[0]),
            "energy": float(found.energy_after[0]),
        }
        mask, inside = masks_of(logits, SIZE, threshold), F.interpolate(logits, SIZE, mode="bilinear")[0, 0] > 0
        scores = [float(dice_of(m, label)) for m in (mask, masks_of(other, SIZE, threshold))]
        rows.append(facts_of(label[0, 0], mask[0, 0], inside, *scores, record))
        masks.append(mask)
    return rows, torch.cat(masks)


def draw(path: Path, films: Films, masks: Tensor, facts: Sequence[Facts]) -> None:
    """A sheet of films with the outlines of mask (yellow) and answer (blue), worst first."""
    from matplotlib.figure import Figure

    columns = 5
    figure = Figure(figsize=(2.2 * columns, 2.4 * -(-len(facts) // columns)), layout="constrained")
    tiles = figure.subplots(-(-len(facts) // columns), columns, squeeze=False).flatten()
    for tile in tiles:
        tile.axis("off")
    for i, (tile, image, label, mask, row) in enumerate(zip(tiles, films.images, films.labels, masks, facts)):
        tile.imshow(image[0], cmap="gray", vmin=0, vmax=1)
        tile.contour(label[0], [0.5], colors="#ffc94d", linewidths=1)
        tile.contour(mask[0], [0.5], colors="#4cc9f0", linewidths=1)
        tile.set_title(f"{i + 1}: Dice {row['dice']:.2f}, whole {row['whole']:.2f}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 80})


def main(argv: list[str] | None = None) -> None:
    """Find the films among kept rows, look at them again, write page and sheet."""
    defaults = {"bundle": "bundles/cxr_lung_segmentation", "split": "test", "sources": SOURCES, "films": int, "few": 15}
    places = {"dataset_dir": str, "weights_dir": str, "figure": "docs/figures/worst_films.jpg"}
    experiment = Experiment("worst_films", __doc__, argv, **places, seed=0, **defaults)
    options, bundle = experiment.options, Path(experiment.options.bundle)
    options.films_512, parts = None, note("worst_films")
    for source in options.sources:
        run = lambda films: measure(bundle, films, "plain", options.seed, "product")  # noqa: E731
        scores = torch.tensor(kept_rows(options, source, "plain", options.films, run, network="product")["wrapped"])
        films = load_films(options.dataset_dir, source, options.split, options.films, SIZE)
        worst = scores.argsort()[:COUNT].tolist()
        chosen = Films(films.images[worst], films.labels[worst], tuple(films.ids[i] for i in worst))
        facts, masks = look_at(bundle, chosen)
        about = {row["id"]: row for row in read_manifest(options.dataset_dir, options.split, [source], ids=chosen.ids)}
        cut = ["; lungs reach the frame" if about[name].get("mask_touches_frame") == "1" else "" for name in chosen.ids]
        rows = [
            {
                "": str(i),
                "film": name,
                "Dice": f"{row['dice']:.4f}",
                "whole": f"{row['whole']:.4f}",
                "why": words_on(row) + edge,
            }
            for i, (name, row, edge) in enumerate(zip(chosen.ids, facts, cut), 1)
        ]
        parts.append(section(f"## {source}, the worst of {len(films.ids)}", rows))
        if all(row["redistributable"] == "yes (attribution)" for row in about.values()):
            draw(Path(options.figure), chosen, masks, facts)
            parts.append(f"![The ten films of {source}](../figures/{Path(options.figure).name})")
    experiment.write("Lungs: the worst films", parts, options.seed)


if __name__ == "__main__":
    main()
