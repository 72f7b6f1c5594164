"""Whether the bundle knows when it fails: fits the decision on ``val``, and measures it on ``test`` and on foreign images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import rankdata
from torch import Tensor, nn

from docs.experiments.film_conditions import FAULTS, FRAMES
from docs.experiments.film_data import segmentation_network
from docs.experiments.foreign_images import ALIKE
from docs.experiments.lungs import SOURCES
from docs.experiments.lungs_product import TURNS, configuration
from docs.experiments.measures import dice_of
from docs.experiments.pages import Experiment, judged, note, section
from docs.experiments.reverse_accuracy import reverse_accuracy
from docs.experiments.training import kept
from docs.experiments.trust_films import Row, foreign_rows, references_of, rows_of
from monai_diffeo.canonicalize.acceptance import MIRRORED, NEGATIVE
from monai_diffeo.trust import NO_RESULT, OK, References, Score, TrustModel, fitted_to, save_trust, verdict
from monai_diffeo.trust.judge import SETTINGS

GOOD = {"shenzhen": 0.9, "montgomery": 0.9, "paediatric_gz": 0.8, "covid_gb": 0.8}  # Dice below is a failure
ADULTS = ("shenzhen", "montgomery")
HALVES = ("half black", "left half")
WRONG = ("negative", "mirrored")
FILM_FAULTS = tuple(name for name in (*FAULTS, *FRAMES) if name not in WRONG)
DEFORMED = ("TPS", "TPS 45°/0.18", "TPS 60°/0.25")
FILMS: Mapping[str, Mapping[str, tuple[int, ...]]] = {  # of each of SOURCES, at most
    "val": {
        "plain": (46, 30, 101, 16),
        "TPS 45°/0.18": (46, 30, 20, 16),
        "TPS 60°/0.25": (46, 30, 12, 12),
        **dict.fromkeys((*FILM_FAULTS, *WRONG), (3, 3, 3, 3)),
        **dict.fromkeys(HALVES, (8, 8, 8, 8)),
        **dict.fromkeys(TURNS, (2, 2, 2, 2)),
    },
    "test": {
        "plain": (65, 68, 100, 32),
        "TPS": (16, 16, 16, 16),
        "TPS 45°/0.18": (65, 68, 50, 32),
        "TPS 60°/0.25": (65, 45, 0, 0),
        **dict.fromkeys(FILM_FAULTS, (2, 2, 2, 2)),
        **dict.fromkeys(WRONG, (10, 10, 10, 10)),
        **dict.fromkeys(TURNS, (4, 4, 4, 4)),
    },
}
ENOUGH = 20  # failures, for an AUROC
IMAGES = {"fitted": 8, "tested": 12}  # foreign images of each kind, at most
FURTHER = ("seconds_second", "seconds_whole", "seconds_outlier")  # of a film, by network
ATLASES = 8  # films with known masks for reverse classification accuracy
ERROR = ("whole", "second", "search_change")
FOREIGN = ("energy", "likeness", "shape", "whole", "disagreement", "search_change", "outlier")
SPARED, MARGIN = 0.995, 0.5  # share of the good films of val that have a result, and the distance to the others, in log-odds
RIVALS = {"agreement": "disagreement", "edges": "blur", "energy": "energy", "second network": "second", "entropy": "entropy"}
RIVALS |= {"whole lung": "whole", "reverse": "reverse", "five seeds": "seeds"}
Film = dict[str, Any]  # signs, Dice, source, condition


def film_of(row: Row, source: str, condition: str) -> Film:
    """Signs and truth of a kept row."""
    names = "signs rivals dice_prediction dice_plain dice_second dice_whole notes rotation id corrected".split()
    times = {name: row[name] for name in ("seconds", *FURTHER)}
    bad = None if source == "foreign" else row["dice_prediction"] < GOOD[source]
    return {"source": source, "condition": condition, "bad": bad, **{name: row.get(name) for name in names}, **times}


def _scaled(films: Sequence[Film], limits: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    values = np.array([[film["signs"].get(name, math.nan) for name in names] for film in films])
    limit = np.array([limits[name] for name in names])
    return np.log1p(np.clip(np.where(np.isnan(values), limit, values), 0, None) / limit)


def _weights(films: Sequence[Film]) -> np.ndarray:
    """Every set of a source under a condition counts alike, but for the foreign kinds, which count as one."""
    keys = [(film["source"], film["condition"] == "plain") for film in films]
    count = {key: keys.count(key) for key in keys}
    weight = np.array([1 / count[key] for key in keys])
    return weight / weight.sum()


_TO_THE_END = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000, "maxfun": 100_000}


def _fitted(x: np.ndarray, ridge: float, loss_of: Callable) -> tuple[float, np.ndarray]:
    """Bias and weights, none below 0, of least loss plus a ridge; ``loss_of`` gives a loss and its slope by film."""

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = loss_of(theta[0] + x @ theta[1:])
        return value + ridge * (theta[1:] ** 2).sum(), np.concatenate([[slope.sum()], x.T @ slope + 2 * ridge * theta[1:]])

    start, bounds = np.zeros(x.shape[1] + 1), [(None, None), *[(0, None)] * x.shape[1]]
    theta = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options=_TO_THE_END).x
    return float(theta[0]), theta[1:]


def fit_logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float = 1e-3) -> tuple[float, np.ndarray]:
    """Bias and weights of a logistic regression."""
    return _fitted(x, ridge, lambda o: ((weight * (np.logaddexp(0, o) - y * o)).sum(), weight * (1 / (1 + np.exp(-o)) - y)))


def fit_least_squares(x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float = 1e-2) -> tuple[float, np.ndarray]:
    """Bias and weights of a least-squares regression."""
    return _fitted(x, ridge, lambda o: ((weight * (o - y) ** 2).sum(), 2 * weight * (o - y)))


def conformal(off: np.ndarray, share: float = 0.05) -> tuple[float, float]:
    """How far below and above zero all but a ``share`` of exchangeable numbers lie, with the correction for their count."""
    off = np.sort(off)
    rank = min(math.ceil((len(off) + 1) * (1 - share / 2)), len(off)) - 1
    return float(-off[len(off) - 1 - rank]), float(off[rank])


def fit_trust(films: Sequence[Film], foreign: Sequence[Film], references: References, sha256: str) -> TrustModel:
    """The decision, fitted on films of ``val`` and on the fitted kinds of foreign images."""
    good = [film for film in films if film["condition"] == "plain" and not film["bad"]]
    limits = {
        n: max(float(np.nanquantile([f["signs"].get(n, math.nan) for f in good], 0.99)), 1e-3)
        for n in sorted({*ERROR, *FOREIGN})
    }
    known = [film for film in films if film["condition"] != "negative"]
    adults = [film for film in good if film["source"] in ADULTS]

    def score(columns: Sequence[str], fit: Callable, some: Sequence[Film], truth: Sequence[float]) -> Score:
        bias, weights = fit(_scaled(some, limits, columns), np.array(truth, dtype=float), _weights(some))
        return Score(bias, dict(zip(columns, weights.tolist())), 0.0)

    def values(of: Score, some: Sequence[Film]) -> np.ndarray:
        return of.bias + _scaled(some, limits, tuple(of.weights)) @ np.array(list(of.weights.values()))

    def errors(some: Sequence[Film]) -> np.ndarray:
        return np.log(np.clip(1 - np.array([film["dice_prediction"] for film in some]), 1e-3, 1))

    ids = sorted({film["id"] for film in known})
    mine, others = ([film for film in known if (ids.index(film["id"]) % 2 == 0) == half] for half in (True, False))
    error = score(ERROR, fit_least_squares, mine, errors(mine))
    spread = conformal(errors(others) - values(error, others))
    error = replace(error, threshold=float(np.quantile(values(error, adults), 0.98)))
    every = [*known, *foreign]
    alien = score(FOREIGN, fit_logistic, every, [film["source"] == "foreign" for film in every])
    usual = values(alien, [film for film in known if not film["bad"]])
    unusual = float(values(alien, good).max())
    alien = replace(alien, threshold=max(float(np.quantile(usual, SPARED)), unusual) + MARGIN)
    told = f"{len(films)} films of val of {', '.join(dict.fromkeys(f['source'] for f in films))}; {len(foreign)} foreign images"
    return TrustModel(limits, error, spread, alien, unusual, references, sha256, told)


def auroc(score: Sequence[float], bad: Sequence[bool]) -> float:
    """Probability that a bad film has a higher score than a good one; half where they are equal."""
    ranks, truth = rankdata(np.nan_to_num(np.array(score, dtype=float))), np.array(bad, dtype=bool)
    n = int(truth.sum())
    return float((ranks[truth].sum() - n * (n + 1) / 2) / max(n * (len(truth) - n), 1)) if 0 < n < len(truth) else math.nan


def area_under_risk(score: Sequence[float], risk: Sequence[float]) -> float:
    """Mean over all coverages of the risk of the films with the lowest scores; equal scores share their risk."""
    values, risks = np.nan_to_num(np.array(score, dtype=float)), np.array(risk)
    shared = np.array([risks[values == value].mean() for value in values])
    order = np.argsort(values, kind="stable")
    return float((np.cumsum(shared[order]) / np.arange(1, len(risks) + 1)).mean())


def gap_closed(score: Sequence[float], dice: Sequence[float]) -> float:
    """Share of the gap between random order and the order by the truth that a score closes, in area under the risk."""
    risk = 1 - np.array(dice)
    random, oracle = float(risk.mean()), area_under_risk(risk, risk)
    return (random - area_under_risk(score, risk)) / max(random - oracle, 1e-12)


@torch.no_grad()
def disagreement(networks: Sequence[nn.Module], film: Tensor) -> float:
    """One minus the mean Dice of the masks of a film ``(1, 1, H, W)`` by two of several networks."""
    masks = [(network(film) > 0).float() for network in networks]
    return 1 - float(np.mean([dice_of(one, other).item() for one, other in combinations(masks, 2)]))


def _flagged(films: Sequence[Film], model: TrustModel) -> list[str]:
    """The kind of the decision on each film."""
    return [verdict(model, film["signs"], film["notes"] or "").kind for film in films]


def _score(films: Sequence[Film], model: TrustModel, name: str) -> list[float]:
    if name == "this decision":
        return [model.value(model.error, film["signs"]) for film in films]
    key = RIVALS[name]
    return [film["rivals"].get(key, film["signs"].get(key, math.nan)) for film in films]


def ranking_row(title: str, films: Sequence[Film], model: TrustModel, measure: str) -> dict[str, str]:
    """How well each score ranks the films of one set: AUROC of failure where it has enough of both, or the share of the gap."""
    bad, dice = [bool(film["bad"]) for film in films], [film["dice_prediction"] for film in films]
    row, enough = {"films": title, "failures": f"{sum(bad)} of {len(bad)}"}, ENOUGH <= sum(bad) < len(bad)
    known = {*films[0]["rivals"], *films[0]["signs"]}
    for name in ("this decision", *(name for name, key in RIVALS.items() if key in known)):
        score = _score(films, model, name)
        if measure == "gap":
            row[name] = f"{gap_closed(score, dice):.2f}"
        else:
            row[name] = f"{auroc(score, bad):.2f}" if enough else "–"
    return row


def coverage_row(title: str, films: Sequence[Film], model: TrustModel) -> dict[str, str]:
    """Mean Dice of the films that a coverage keeps, in the order of the decision's score."""
    order = np.argsort(_score(films, model, "this decision"), kind="stable")
    dice = np.array([film["dice_prediction"] for film in films])[order]
    shares = {
        f"{share}%": f"{dice[: max(math.ceil(len(dice) * share / 100), 1)].mean():.4f}" for share in (100, 90, 80, 70, 50)
    }
    return {"films": title, **shares}


def decision_row(title: str, films: Sequence[Film], model: TrustModel) -> dict[str, str]:
    """What was decided on good and on bad films."""
    kinds = _flagged(films, model)
    row: dict[str, str] = {"films": title}
    for name, want in (("good films", False), ("failures", True)):
        mine = [kind for kind, film in zip(kinds, films) if bool(film["bad"]) is want]
        row[f"{name} not ok"] = f"{sum(kind != OK for kind in mine)} of {len(mine)}"
        row[f"{name} without result"] = str(sum(kind == NO_RESULT for kind in mine))
    return row


def interval_row(title: str, films: Sequence[Film], model: TrustModel) -> dict[str, str]:
    """How many films have a Dice within their interval, and how wide it is."""
    ends = [model.interval(film["signs"]) for film in films]
    inside = [low <= film["dice_prediction"] <= high for (low, high), film in zip(ends, films)]
    return {
        "films": title,
        "inside": f"{np.mean(inside):.1%} of {len(inside)}",
        "mean width": f"{np.mean([b - a for a, b in ends]):.3f}",
    }


def _share(count: int, of: int) -> str:
    return f"{count} of {of} ({count / of:.1%})" if of else "not measured"


def _least(what: str, asked: str, least: float, hits: Sequence[bool]) -> dict[str, str]:
    """A row that asks for a share of hits."""
    return judged(what, asked, _share(sum(hits), len(hits)), len(hits) > 0 and sum(hits) >= least * len(hits))


def main(argv: list[str] | None = None) -> None:
    """Measure, fit, write the page; with ``--write_model`` the bundle's model, too."""
    defaults = {"most": int, "seed": 0, "write_model": False}  # most films of a set, for a try
    experiment = Experiment("trust", __doc__, argv, dataset_dir=str, weights_dir=str, seeds=str, **defaults)
    options = experiment.options
    bundle, data = Path(__file__).parents[2] / "bundles" / "cxr_lung_segmentation", Path(options.dataset_dir)
    keep = Path(options.weights_dir or "trust_rows")
    references = references_of(data)
    atlases = rows_of(bundle, keep, data, "shenzhen", "train", "plain", ATLASES, options.seed)
    seeds = [segmentation_network(path) for path in sorted(Path(options.seeds).glob("*.pt"))] if options.seeds else []
    if options.seeds and len(seeds) != 5:
        raise SystemExit(f"trust: --seeds must hold five files of weights, got {len(seeds)}.")

    def films_of(split: str, source: str, condition: str, count: int) -> list[Film]:
        rows = rows_of(bundle, keep, data, source, split, condition, min(count, options.most or count), options.seed)
        films = [film_of(row, source, condition) for row in rows]
        if split == "test" and condition in ("plain", *DEFORMED):
            settings = {
                "experiment": "trust_reverse",
                "source": source,
                "condition": condition,
                "ids": [f["id"] for f in films],
            }
            found = kept(keep, settings, lambda: {"dice": [reverse_accuracy(row, atlases) for row in rows]})
            for film, dice in zip(films, found["dice"]):
                film["rivals"]["reverse"] = 1 - dice
            if seeds:
                for film, row in zip(films, rows):
                    film["rivals"]["seeds"] = disagreement(seeds, row["canonical"][None].float())
        return films

    every = {
        split: {(s, c): films_of(split, s, c, n) for c, counts in sets.items() for s, n in zip(SOURCES, counts)}
        for split, sets in FILMS.items()
    }
    foreign = {
        kinds: {kind: [film_of(row, "foreign", kind) for row in rows] for kind, rows in found.items()}
        for kinds, count in IMAGES.items()
        for found in [foreign_rows(bundle, keep, data, kinds, min(count, options.most or count))]
    }
    fitted = [film for films in foreign["fitted"].values() for film in films]
    val = [film for films in every["val"].values() for film in films]
    settings = {name: configuration(bundle)[name] for name in SETTINGS}
    sha256 = fitted_to(bundle / "models" / "model.pt", bundle / "models" / "energy", **settings)
    model = fit_trust(val, fitted, references, sha256)
    if options.write_model:
        save_trust(bundle / "models" / "trust.json", model)
    test, conditions = every["test"], ("plain", *DEFORMED)
    sets = {f"{s}, {c}": test[s, c] for s in SOURCES for c in conditions if test[s, c]}
    left = {s: fit_trust([f for f in val if f["source"] != s], fitted, references, sha256) for s in SOURCES}
    ranks, gaps = ([ranking_row(t, films, model, measure) for t, films in sets.items()] for measure in ("AUROC", "gap"))
    intervals = [
        interval_row(title, films, model)
        | {f"{k}, source left out": v for k, v in interval_row(title, films, left[title.split(",")[0]]).items() if k != "films"}
        for title, films in sets.items()
    ]
    said: dict[str, Callable[[Film], bool]] = {
        "negative": lambda film: bool(film["corrected"]),
        "mirrored": lambda film: MIRRORED in film["notes"],
        **{c: lambda film, quarter=quarter: film["rotation"] == quarter for quarter, c in enumerate(TURNS, 1)},
    }  # type: ignore[misc]
    faults = []
    for c in (*FILM_FAULTS, *WRONG, *TURNS):
        films = [film for s in SOURCES for film in test[s, c]]
        right = "" if c not in said else _share(sum(map(said[c], films)), len(films))
        faults.append({**decision_row(c, films, model), "said or corrected": right})
    strange = [
        {"kind": kind, "fitted on": "yes" if kinds == "fitted" else "alike" if kind in ALIKE else "no",
         "images": str(len(films)),
         "not ok": str(sum(k != OK for k in said)), "without result": str(sum(k == NO_RESULT for k in said))}
        for kinds in foreign for kind, films in foreign[kinds].items() for said in [_flagged(films, model)]
    ]  # fmt: skip
    learnt = [
        {"sign": n, "limit": f"{limit:.3g}", **{s: f"{getattr(model, s).weights.get(n, 0):.2f}" for s in ("error", "foreign")}}
        for n, limit in model.limits.items()
    ]
    parts = note("trust", fitted_on=model.fitted_on, low=f"{model.spread[0]:.2f}", high=f"{model.spread[1]:.2f}")
    asked = rows_of_asked(test, foreign["tested"], sets, (ranks, gaps), said, model, left)
    experiment.write(
        "Trust: does it know when it fails?",
        [
            section("## Asked and measured", asked),
            parts[0],
            section("## AUROC of failure\n\n" + parts[1], ranks),
            section("## Share of the gap that is closed\n\n" + parts[2], gaps),
            section(
                "## Mean Dice of the films that are kept\n\n" + parts[3], [coverage_row(t, f, model) for t, f in sets.items()]
            ),
            section("## Decisions\n\n" + parts[4], [decision_row(t, f, model) for t, f in sets.items()]),
            section("## Decisions on faulty films\n\n" + parts[5], faults),
            section("## Decisions on the films of `val`\n\n" + parts[6], val_rows(every["val"], model)),
            section("## Foreign images\n\n" + parts[7], strange),
            section("## The interval for Dice\n\n" + parts[8], intervals),
            section("## What was fitted\n\n" + parts[9], learnt),
            parts[10],
        ],
        options.seed,
    )


def val_rows(val: Mapping[tuple[str, str], Sequence[Film]], model: TrustModel) -> list[dict[str, str]]:
    """Decisions on the films that were fitted on, by condition."""
    return [decision_row(c, [f for s in SOURCES for f in val[s, c]], model) for c in FILMS["val"]]


def rows_of_asked(
    test: Mapping[tuple[str, str], Sequence[Film]],
    foreign: Mapping[str, Sequence[Film]],
    sets: Mapping[str, Sequence[Film]],
    tables: tuple[Sequence[Mapping[str, str]], Sequence[Mapping[str, str]]],
    said: Mapping[str, Callable[[Film], bool]],
    model: TrustModel,
    left: Mapping[str, TrustModel],
) -> list[dict[str, str]]:
    """What was asked beside what was measured."""
    rows, name = [], "this decision"
    for what, least, table in zip(("AUROC of failure", "share of the AURC gap closed"), (0.9, 0.8), tables):
        some = [row for row in table if row[name] != "–"]
        met, text = [row for row in some if float(row[name]) >= least], "; ".join(f"{row['films']} {row[name]}" for row in some)
        text = f"in {len(met)} of {len(some)} sets: {text}" if some else "no set has enough failures"
        which = f", each set with {ENOUGH} failures" if table is tables[0] else ", each set"
        rows.append(judged(what + which, f"at least {least}0", text, bool(some) and len(met) == len(some)))
    good = [film for s in ADULTS for film in test[s, "plain"] if not film["bad"]]
    false = sum(kind != OK for kind in _flagged(good, model))
    rows.append(
        judged("false alarms, good undeformed adults", "at most 3 %", _share(false, len(good)), false <= 0.03 * len(good))
    )
    for known, what in ((False, "foreign images of new kinds: not ok"), (True, "foreign images made like an outlier: not ok")):
        some = [films for kind, films in foreign.items() if (kind in ALIKE) is known]
        kinds = [kind for films in some for kind in _flagged(films, model)]
        caught, none = sum(kind != OK for kind in kinds), sum(kind == NO_RESULT for kind in kinds)
        text = f"{_share(caught, len(kinds))} of {len(some)} kinds; without result {_share(none, len(kinds))}"
        rows.append(judged(what, "at least 99 %", text, caught >= 0.99 * len(kinds)))
    of = lambda *conditions: [f for s in SOURCES for c in conditions for f in test[s, c]]  # noqa: E731
    wrong = of("plain", *DEFORMED)
    for what, asked, least, conditions in (
        ("negatives corrected", "at least 99 %", 0.99, ("negative",)),
        ("mirrored films said", "at least 97 %", 0.97, ("mirrored",)),
        ("turned films corrected", "at least 99 %", 0.99, TURNS),
    ):
        rows.append(_least(what, asked, least, [said[c](f) for c in conditions for f in of(c)]))
    taken = [f["corrected"] or NEGATIVE in f["notes"] for f in wrong]
    rows.append(_least("other films: not taken for negatives", "–", 1.0, [not t for t in taken]))
    rows.append(_least(f"other films: not '{MIRRORED}'", "–", 1.0, [MIRRORED not in f["notes"] for f in wrong]))
    turned = [f["rotation"] != 0 for f in of("plain", "TPS")]
    rows.append(_least("upright films, plain and TPS: not turned", "–", 1.0, [not t for t in turned]))
    rows.append(judged("lateral films said", "at least 95 %", "not measured: no lateral film in the sets", False))
    change = {t: float(np.mean([f["dice_prediction"] - f["dice_plain"] for f in films])) for t, films in sets.items()}
    below = [f"{t} ({value:+.4f})" for t, value in change.items() if value < -0.005]
    rows.append(judged("wrapped below bare by more than .005", "on no set", "; ".join(below) or "on none", not below))
    pairs = [(f, kind) for films in sets.values() for f, kind in zip(films, _flagged(films, model))]
    worse = sum(f["dice_prediction"] < f["dice_plain"] - 0.05 and kind == OK for f, kind in pairs)
    rows.append(
        judged(
            "wrapped worse than bare by more than .05 and ok",
            "at most 1 in 500",
            f"{worse} of {len(pairs)}",
            worse * 500 <= len(pairs),
        )
    )
    for name, pick in (("all sources calibrated", lambda s: model), ("source left out of calibration", lambda s: left[s])):
        inside = [
            a <= f["dice_prediction"] <= b
            for t, films in sets.items()
            for f in films
            for a, b in [pick(t.split(",")[0]).interval(f["signs"])]
        ]
        rows.append(
            judged(
                f"95 % interval, {name}", "contains 90 %", _share(sum(inside), len(inside)), sum(inside) >= 0.9 * len(inside)
            )
        )
    cost = sum(np.mean([f[name] for f, _ in pairs]) for name in FURTHER)
    cost /= np.mean([f["seconds"] for f, _ in pairs])
    rows.append(
        judged(
            "cost of the three further networks, share of a film's inference", "at most 25 %", f"{cost:.1%}", bool(cost <= 0.25)
        )
    )
    return rows


if __name__ == "__main__":
    main()
