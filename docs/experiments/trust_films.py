"""What is kept of each film for the page on trust: the film, all answers, and what the canonicaliser found, as float16."""

from __future__ import annotations

import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from docs.experiments.film_conditions import show
from docs.experiments.film_data import Films, load_films
from docs.experiments.foreign_images import FITTED, TESTED, foreign_images
from docs.experiments.lungs_product import SIZE, WORK, as_the_bundle_sees, masks_of, networks, wrappers
from docs.experiments.measures import dice_of
from monai_diffeo.networks import load_weights

Row = dict[str, Any]
SCALARS = ("energy_before", "energy_after", "folding_fraction", "inverse_error", "largest_displacement", "agreement")


@lru_cache(maxsize=1)
def parts(bundle: Path) -> tuple[nn.Module, Any, nn.Module]:
    """The product's network, the inferer around it and the template's network."""
    template = bundle.parent / "cxr_lung_template"
    parser = ConfigParser(json.loads((template / "configs" / "inference.json").read_text()))
    other = load_weights(parser.get_parsed_content("network_def"), template / "models" / "model.pt").eval()
    return networks(bundle)["product"], wrappers(bundle)["product"], other


def row_of(bundle: Path, image: Tensor, label: Tensor | None) -> Row:
    """All about one film ``(1, 1, 256, 256)``; ``label`` is its mask, if it has one."""
    network, inferer, template = parts(bundle)
    row, clock = {}, time.process_time
    seen = convert_to_tensor(as_the_bundle_sees(image, WORK), track_meta=False)
    began = clock()
    with torch.no_grad():
        result = inferer.infer(seen, network, plain=True)
        row["seconds"], began = clock() - began, clock()
        found, searched = result.canonicalization, result.searched
        second = template.segment(searched.image)
        row["seconds_second"] = clock() - began
        back = searched.warp_back(second.log_odds.amax(1, keepdim=True))
        canonicalizer, flat = inferer.canonicalizer, searched.image.float()
        for prefix, one in (("", found), ("searched_", searched)):
            row |= {prefix + name: float(getattr(one, name)[0]) for name in SCALARS if getattr(one, name) is not None}
        row |= {f"{name}_before": float(value[0]) for name, value in found.terms.items()}
        row |= {f"{name}_after": float(value[0]) for name, value in canonicalizer.energy.evaluate(flat)[1].items()}
        row["moved"] = bool((found.ddf == searched.ddf).all())
        row |= {"polarity": float(canonicalizer.polarity(flat)), "polarity_negative": float(canonicalizer.polarity(1 - flat))}
        turned, mirrored = canonicalizer.orientation.probabilities(seen)
        row |= {"turned": turned[0].tolist(), "mirrored": float(mirrored[0]), "mirrored_after": float(
            canonicalizer.orientation.probabilities(flat)[1][0])}  # fmt: skip
    row |= {"rotation": int(found.rotations[0]), "status": found.status[0], "notes": found.notes[0]}
    row |= {"second_factor": float(second.factor[0]), "second_level": float(second.level[0])}
    row["second_agreement"] = float(second.agreement[0])
    kept = {"image": seen, "canonical": searched.image, "prediction": result.prediction, "plain": result.plain}
    kept |= {"second": back, "ddf": searched.ddf, "inverse_ddf": searched.inverse_ddf}
    kept |= {} if result.unchosen is None else {"unchosen": result.unchosen}
    if label is not None:
        for name in ("prediction", "plain", "second"):
            row[f"dice_{name}"] = float(dice_of(masks_of(kept[name], SIZE), label))
        kept["label"] = F.interpolate(label, WORK, mode="area")
    return row | {name: torch.as_tensor(value)[0].half() for name, value in kept.items()}


def shown(films: Films, condition: str, seed: int) -> Films:
    """As :func:`~docs.experiments.film_conditions.show`, and mirrored."""
    if condition != "mirrored":
        return show(films, condition, seed)
    return Films(films.images.flip(3), films.labels.flip(3), films.ids)


def rows_of(
    bundle: Path, keep: Path, data: Path, source: str, split: str, condition: str, count: int, seed: int = 0
) -> list[Row]:
    """Rows of ``count`` films under a condition, from ``keep`` if they are there; the source "foreign" has kinds for splits."""
    path = keep / f"{source}_{split}_{condition}_{count}_{seed}.pt".replace(" ", "_").replace("/", "-")
    if not path.is_file():
        if source == "foreign":
            rows = [row_of(bundle, image[None], None) for image in foreign_images(condition, data)[: count or None]]
        else:
            films = shown(load_films(data, source, split, size=SIZE).spread(count), condition, seed)
            pairs = zip(films.images.split(1), films.labels.split(1), films.ids)
            rows = [{**row_of(bundle, image, label), "id": name} for image, label, name in pairs]
        keep.mkdir(parents=True, exist_ok=True)
        torch.save(rows, path)
        print(path.name, len(rows), round(sum(r["seconds"] for r in rows) / max(len(rows), 1), 3), flush=True)
    return torch.load(path)


def foreign_rows(bundle: Path, keep: Path, data: Path, kinds: str, count: int = 0) -> dict[str, list[Row]]:
    """Rows of all kinds of foreign images that are "fitted" or "tested", the first ``count`` of each, 0 for all."""
    names = FITTED if kinds == "fitted" else TESTED
    return {kind: rows_of(bundle, keep, data, "foreign", kinds, kind, count) for kind in names}
