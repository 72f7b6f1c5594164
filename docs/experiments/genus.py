"""The genus tables: how many holes a deformed digit has, by classifiers as they are and wrapped."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from monai.networks.nets import Classifier
from torch import Tensor, nn

from bundles.mnist_genus.scripts.digits import GENUS, Digits, read_digits
from docs.experiments.film_data import Films, deform
from docs.experiments.measures import Answer, answer, plain, with_bootstrap, wrapped
from docs.experiments.pages import Experiment, judged, note, section
from monai_diffeo.canonicalize import Canonicalizer, load_canonicalizer
from monai_diffeo.networks import load_weights

BASELINE, AUGMENTED, SINGLE = "baseline", "augmented baseline", "DiffeoNN single pass"
WEIGHTS = {
    "digit": {BASELINE: "model.pt", AUGMENTED: "baselines/augmented.pt"},
    "euler": {BASELINE: "euler/euler.pt", AUGMENTED: "euler/euler_augmented.pt"},
}
MODES = {"DiffeoNN faithful": "faithful", "DiffeoNN refine": "refine", SINGLE: "single_pass"}
ROWS = (BASELINE, AUGMENTED, *MODES, f"{AUGMENTED} + DiffeoNN")
TITLES = {"digit": "Genus of the digit", "euler": "Genus by the Euler number of the image"}


Choices = Mapping[str, Answer]  # what methods chose for digits: the genus (N,) in place of masks


def _right(choice: Answer, labels: Tensor, count: int) -> Tensor:
    return (choice.masks[:count] == labels[:count]).double()


def classifier(weights: str | Path) -> nn.Module:
    """The bundle's classifier with weights, in eval mode."""
    return load_weights(Classifier((1, 28, 28), 3, (16, 32, 64), (2, 2, 2), norm="batch", dropout=0.1), weights)


def choose(network: nn.Module, images: Tensor, canonicalizer: Canonicalizer | None = None) -> Answer:
    """What a network chooses for images ``(N, C, *S)``, as it is or inside a ``DiffeoInferer``."""
    decide = partial(torch.argmax, dim=1)
    method = plain(network, decide) if canonicalizer is None else wrapped(network, canonicalizer, decide=decide)
    return answer(method, images, 100)


def genus_table(labels: Tensor, chosen: Choices, undeformed: Choices | None = None) -> list[dict[str, object]]:
    """A row a method: accuracy, differences, error, folding, moved, seconds; ``undeformed`` None leaves the error out."""
    rows = []
    for name, choice in chosen.items():
        right = _right(choice, labels, len(choice.masks))
        row: dict[str, object] = {"method": name, "digits": len(right), "accuracy": with_bootstrap(right, ".4f", ".4f")}
        for other in (BASELINE, AUGMENTED, SINGLE):
            compared = other in chosen and other != name
            difference = right - _right(chosen[other], labels, len(right)) if compared else right
            row[f"- {other.removeprefix('DiffeoNN ')}"] = with_bootstrap(difference, "+.4f", "+.4f") if compared else ""
        row["error"] = "" if undeformed is None else f"{(choice.masks != undeformed[name].masks).float().mean():.4f}"
        row |= {"folded": f"{choice.folding_fraction.mean():.4f}", "moved": f"{choice.moved.mean():.1%}"}
        rows.append(row | {"s/digit": f"{choice.seconds:.4f}"})
    return rows


def asked(labels: Tensor, by_protocol: Mapping[str, Choices]) -> list[dict[str, str]]:
    """The figures that were asked for beside those that were measured."""

    def line(what: str, goal: str, protocol: str, row: str, other: str, count: int, low: float, high: float) -> None:
        ours, theirs = (_right(by_protocol[protocol][name], labels, count).mean().item() for name in (row, other))
        rows.append(judged(what, goal, f"{ours:.4f} against {theirs:.4f}", theirs - low <= ours <= theirs + high))

    rows: list[dict[str, str]] = []
    for protocol, baseline, margin in (("TPS", AUGMENTED, 0.005), ("plain", BASELINE, 0.003)):
        if {SINGLE, baseline} <= set(by_protocol.get(protocol, {})):
            what, goal = f"single pass, {protocol}, {len(labels)} digits", f"{baseline} - {margin} or better"
            line(what, goal, protocol, SINGLE, baseline, len(labels), margin, 1.0)
    for protocol, chosen in by_protocol.items():
        if {SINGLE, "DiffeoNN refine"} <= set(chosen):
            count = len(chosen["DiffeoNN refine"].masks)
            what = f"refine, {protocol}, the first {count} digits"
            line(what, "single pass, within 0.01", protocol, "DiffeoNN refine", SINGLE, count, 0.01, 0.01)
    return rows


def measure(
    bundle: str | Path, digits: Digits, protocols: Sequence[str], counts: Mapping[str, int], seed: int = 0
) -> dict[str, dict[str, dict[str, Answer]]]:
    """What every row chose, by genus, protocol and row; ``counts`` says on how many of the first digits a mode runs."""
    models = Path(bundle) / "models"
    networks = {(genus, name): classifier(models / file) for genus, files in WEIGHTS.items() for name, file in files.items()}
    chosen: dict[str, dict[str, dict[str, Answer]]] = {genus: {} for genus in WEIGHTS}
    for protocol in protocols:
        images = deform(Films(digits.images, digits.images, digits.ids), protocol, seed)[0].images
        found = {key: choose(network, images) for key, network in networks.items()}
        for row, mode in MODES.items():
            canonicalizer, some = load_canonicalizer(models / "energy", mode), images[: counts.get(mode)]
            for (genus, name), network in networks.items():
                if name == BASELINE or row == SINGLE:
                    found[genus, row if name == BASELINE else ROWS[-1]] = choose(network, some, canonicalizer)
        for genus in WEIGHTS:
            chosen[genus][protocol] = {row: found[genus, row] for row in ROWS}
    return chosen


def main(argv: list[str] | None = None) -> None:
    """Measure the tables and write the page."""
    defaults = {"bundle": "bundles/mnist_genus", "split": "test", "protocols": ("plain", "TPS/2", "TPS"), "digits": int}
    defaults |= {"refine_digits": 500, "faithful_digits": 100, "seed": 0}
    experiment = Experiment("genus", __doc__, argv, dataset_dir=str, **defaults)
    options = experiment.options
    torch.manual_seed(options.seed)
    digits = read_digits(options.dataset_dir, options.split).spread(options.digits)
    counts = {"refine": options.refine_digits, "faithful": options.faithful_digits}
    chosen, parts = measure(options.bundle, digits, options.protocols, counts, options.seed), note("genus")
    for genus, by_protocol in chosen.items():
        labels, title = GENUS[genus](digits), TITLES[genus]
        share = ", ".join(f"{k}: {n}" for k, n in enumerate(labels.bincount(minlength=3).tolist()))
        parts.append(f"## {title}\n\n`{options.split}`, {len(labels)} digits, by genus {share}.")
        for protocol, rows in by_protocol.items():
            undeformed = None if protocol == "plain" else by_protocol.get("plain")
            parts.append(section(f"### {title}, {protocol}", genus_table(labels, rows, undeformed)))
        if lines := asked(labels, by_protocol):
            parts.append(section(f"### {title}, asked and measured", lines))
    experiment.write("MNIST genus", parts, options.seed)


if __name__ == "__main__":
    main()
