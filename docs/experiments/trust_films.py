"""What is kept of each film for the page on trust: the film, all answers, and what the canonicaliser found, as float16."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch import Tensor, nn

from docs.experiments.film_conditions import show
from docs.experiments.film_data import Films, load_films
from docs.experiments.foreign_images import FITTED, TESTED, foreign_images
from docs.experiments.lungs_product import SIZE, WORK, masks_of, networks, threshold_of, whole_network, wrappers
from docs.experiments.measures import dice_of
from monai_diffeo.files import write_atomically
from monai_diffeo.networks import OutlierDetector, load_weights
from monai_diffeo.radiograph.manifest import read_manifest
from monai_diffeo.transforms import ResizeFilmd, ScaleFilmIntensity
from monai_diffeo.trust import FilmJudge, References, film_signs, load_trust
from monai_diffeo.trust.judge import at_rest

Row = dict[str, Any]
SCALARS = ("energy_before", "energy_after", "folding_fraction", "inverse_error", "largest_displacement", "agreement")


@lru_cache(maxsize=1)
def parts(bundle: Path) -> tuple[nn.Module, Any, nn.Module, nn.Module, nn.Module]:
    """The product's network, the inferer around it, the template's network, that of the whole lung and that of outliers."""
    template = bundle.parent / "cxr_lung_template"
    parser = ConfigParser(json.loads((template / "configs" / "inference.json").read_text()))
    other = load_weights(parser.get_parsed_content("network_def"), template / "models" / "model.pt").eval()
    outlier = load_weights(OutlierDetector(), bundle / "models" / "outlier.pt").eval()
    return networks(bundle)["product"], wrappers(bundle)["product"], other, whole_network(bundle).eval(), outlier


@lru_cache(maxsize=1)
def references_of(data: Path) -> References:
    """What the films look like that the product learned from."""
    train = load_films(data, "shenzhen", "train", size=WORK)
    return References.of(torch.as_tensor(train.images), train.labels)


def as_the_judge_sees(image: Tensor) -> Any:
    """A film ``(1, 1, H, W)`` after the bundle's grey scale and resizing, with what they say of it."""
    film = ResizeFilmd("film", WORK)({"film": ScaleFilmIntensity()(MetaTensor(image[0]))})["film"]
    batch = film[None]
    batch.meta = film.meta
    return batch


def row_of(bundle: Path, data: Path, image: Tensor, label: Tensor | None) -> Row:
    """All about one film ``(1, 1, 256, 256)``; ``label`` is its mask, if it has one."""
    network, inferer, template, whole, detector = parts(bundle)
    row, clock = {}, time.process_time
    given = as_the_judge_sees(image)
    began = clock()
    with torch.no_grad():
        judge = FilmJudge(load_trust(bundle / "models" / "trust.json"))
        seen, result = judge.corrected(given, lambda film: inferer.infer(film.as_tensor(), network, plain=True))
        row["corrected"], seen = seen is not given, seen.as_tensor()
        row["seconds"], began = clock() - began, clock()
        found, searched = result.canonicalization, result.searched
        second = template.segment(searched.image)
        row["seconds_second"], began = clock() - began, clock()
        upright, way_back = at_rest(seen, result)
        hidden = way_back(whole(upright))
        row["seconds_whole"], began = clock() - began, clock()
        outlier = detector(upright)
        row["seconds_outlier"] = clock() - began
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
    judged = result if result.averaged is None else replace(result, prediction=result.averaged)  # as the judge does
    row["signs"] = {
        name: value.item() for name, value in film_signs(judged, references_of(data), back, hidden, outlier).items()
    }
    p = torch.sigmoid(torch.as_tensor(judged.prediction).double()).clamp(1e-6, 1 - 1e-6)
    row["rivals"] = {"entropy": -(p * p.log() + (1 - p) * (1 - p).log()).mean().item()}
    kept = {"image": seen, "canonical": searched.image, "prediction": result.prediction, "plain": result.plain}
    kept |= {"second": back, "whole": hidden, "ddf": searched.ddf, "inverse_ddf": searched.inverse_ddf}
    kept |= {name: one for name in ("unchosen", "averaged") if (one := getattr(result, name)) is not None}
    if label is not None:
        row |= dices_of(bundle, kept, label)
        kept["label"] = F.interpolate(label, WORK, mode="area")
    return row | {name: torch.as_tensor(value)[0].half() for name, value in kept.items()}


def dices_of(bundle: Path, answers: Mapping[str, Any], label: Tensor) -> dict[str, float]:
    """Dice of each network's mask, ``answers`` are logits ``(1, 1, h, w)``; that of the template's is cut at one half."""
    levels = dict.fromkeys(("prediction", "plain", "whole"), threshold_of(bundle)) | {"second": 0.5}
    return {f"dice_{name}": float(dice_of(masks_of(answers[name], SIZE, t), label)) for name, t in levels.items()}


def shown(films: Films, condition: str, seed: int) -> Films:
    """As :func:`~docs.experiments.film_conditions.show`, and mirrored."""
    if condition != "mirrored":
        return show(films, condition, seed)
    return Films(films.images.flip(3), films.labels.flip(3), films.ids)


def _serialized(row: Row) -> bytes:
    file = io.BytesIO()
    torch.save(row, file)
    return file.getvalue()


def _kept(path: Path, measure: Callable[[], Row]) -> Row:
    """A row at ``path``, from there if it was measured before; written at once, so that a run that was cut short goes on."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _serialized(measure()))
    return torch.load(path)


def rows_of(
    bundle: Path, keep: Path, data: Path, source: str, split: str, condition: str, count: int | None, seed: int = 0
) -> list[Row]:
    """Rows of the first ``count`` films of a source under a condition, in an order that is drawn once; None for all.

    Films that the network of the whole lung learned from are left out.
    """
    learned = (bundle / "configs" / "whole_films.txt").read_text().split()
    names = {str(row["id"]) for row in read_manifest(data, split, [source])} - set(learned)
    folder = keep / f"{source} {split} {condition} {seed}".replace("/", "-")

    def measure(name: str) -> Row:
        films = _films(data, source, split)
        i = films.ids.index(name)
        one = shown(Films(films.images[i : i + 1], films.labels[i : i + 1], (name,)), condition, seed)
        return {**row_of(bundle, data, one.images, one.labels), "id": name}

    order = sorted(names, key=lambda name: sha256(name.encode()).digest())[:count]
    return [_kept(folder / f"{name}.pt", partial(measure, name)) for name in order]


@lru_cache
def _films(data: Path, source: str, split: str) -> Films:
    return load_films(data, source, split, size=SIZE)


def foreign_rows(bundle: Path, keep: Path, data: Path, kinds: str, count: int | None = None) -> dict[str, list[Row]]:
    """Rows of all kinds of foreign images that are "fitted" or "tested", the first ``count`` of each, None for all."""
    found = {}
    for kind in FITTED if kinds == "fitted" else TESTED:
        images = foreign_images(kind, data)[:count]
        found[kind] = [
            _kept(keep / f"foreign {kind}" / f"{i}.pt", partial(row_of, bundle, data, image[None], None))
            for i, image in enumerate(images)
        ]
    return found
