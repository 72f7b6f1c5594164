"""The genus tables: how many holes a deformed digit has, by classifiers as they are and wrapped.

``python -m docs.experiments.genus --dataset_dir DIR`` trains nothing: the bundle's weights come from its training configs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.networks.nets import Classifier
from torch import Tensor, nn

from bundles.mnist_genus.scripts.digits import GENUS, Digits, read_digits
from docs.experiments.films import DEFORMATIONS, Films, deform
from docs.experiments.measures import bootstrap_interval
from docs.experiments.tables import command_text, markdown_table, write_page
from monai_diffeo.canonicalize import Canonicalizer, load_canonicalizer
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.networks import load_weights

__all__ = ["Choice", "ask", "classifier", "genus_table", "measure"]

WEIGHTS = {
    "digit": {"baseline": "model.pt", "augmented": "baselines/augmented.pt"},
    "euler": {"baseline": "euler/euler.pt", "augmented": "euler/euler_augmented.pt"},
}
MODES = {"DiffeoNN faithful": "faithful", "DiffeoNN refine": "refine", "DiffeoNN single pass": "single_pass"}
ROWS = ("baseline", "augmented", *MODES, "augmented + DiffeoNN")
TITLES = {"digit": "Genus of the digit", "euler": "Genus by the Euler number of the image"}
NOTE = """Genus of the digit: 0 for 1 2 3 5 7, 1 for 0 4 6 9, 2 for 8. Genus by the Euler number: one minus the Euler number of the undeformed image > 0.5,
ink 8-connected, kept within 0 to 2; classifiers of their own, the same canonicaliser. `baseline` was trained on undeformed digits, `augmented` on
digits under the same TPS protocol; neither is trained again for the wrapped rows. `faithful` is the published method: SIREN, 100 steps of Adam at 0.0039
without early stopping, 0.01 VAE + 0.001 critic, weight 1 of smoothness and orientation, one pose; the paper names neither the steps nor the
orientation term's weight, and its VAE has another size. Test digits here are the 5000 of a shortened mnist.npz; the ordinary file holds 10 000.

`error` is the share of digits whose answer changes when they are deformed, f(g x) != f(x). Differences are paired over the digits of their row,
whose number is under `digits`: the slow modes were run on the first digits of the set. Brackets are 95 % bootstrap intervals of the mean."""


@dataclass(frozen=True)
class Choice:
    """What a method chose for N digits: ``answers`` (N,), ``folding_fraction`` and ``moved`` (N,), ``seconds`` a digit."""

    answers: Tensor
    folding_fraction: Tensor
    moved: Tensor
    seconds: float


def classifier(weights: str | Path) -> nn.Module:
    """The bundle's classifier with weights, in eval mode."""
    return load_weights(Classifier((1, 28, 28), 3, (16, 32, 64), (2, 2, 2), norm="batch", dropout=0.1), weights)


def ask(
    networks: Mapping[Hashable, nn.Module], images: Tensor, canonicalizer: Canonicalizer | None = None, batch_size: int = 100
) -> dict[Hashable, Choice]:
    """What each network chooses for each image, as it is or inside a ``DiffeoInferer``.

    Images are canonicalised once for all networks; each one's ``seconds``, of the processor, count that in full.

    Args:
        networks: by name.
        images: shape ``(N, C, *S)``.
        canonicalizer: None asks the networks as they are.
        batch_size: images at a time.
    """
    found: dict[Hashable, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in networks}
    seconds = dict.fromkeys(networks, 0.0)
    for batch in images.split(batch_size):
        began = time.process_time()
        result = None if canonicalizer is None else canonicalizer(batch)
        moving = time.process_time() - began
        for name, network in networks.items():
            began = time.process_time()
            with torch.no_grad():
                if result is None:
                    scores, folding, moved = network(batch), torch.zeros(len(batch)), torch.zeros(len(batch))
                else:
                    scores = DiffeoInferer(lambda _: result, tta_samples=canonicalizer.views)(batch, network)
                    folding, moved = result.folding_fraction, result.moved.float()
            found[name].append((scores.argmax(1), folding, moved))
            seconds[name] += time.process_time() - began + moving
    return {name: Choice(*map(torch.cat, zip(*parts)), seconds[name] / len(images)) for name, parts in found.items()}


def genus_table(
    labels: Tensor, chosen: Mapping[str, Choice], undeformed: Mapping[str, Choice] | None = None
) -> list[dict[str, object]]:
    """A row a method: accuracy, paired differences to the baselines, invariance error, folding, share moved, seconds.

    Args:
        labels: genus of all N digits.
        chosen: what each method chose for the first digits, by the name of its row.
        undeformed: the same for the undeformed digits; None leaves the error out.
    """
    return [_row(name, labels, chosen, undeformed) for name in chosen]


def _row(name: str, labels: Tensor, chosen: Mapping[str, Choice], undeformed: Mapping[str, Choice] | None) -> dict[str, object]:
    choice = chosen[name]
    count = len(choice.answers)
    right = _right(choice, labels, count)
    low, high = bootstrap_interval(right)
    row: dict[str, object] = {"method": name, "digits": count, "accuracy": f"{right.mean():.4f} [{low:.4f}, {high:.4f}]"}
    for baseline in ("baseline", "augmented", "DiffeoNN single pass"):
        text = ""
        if baseline in chosen and baseline != name:
            difference = right - _right(chosen[baseline], labels, count)
            low, high = bootstrap_interval(difference)
            text = f"{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        row[f"- {baseline.removeprefix('DiffeoNN ')}"] = text
    row["error"] = "" if undeformed is None else f"{(choice.answers != undeformed[name].answers).float().mean():.4f}"
    row.update(
        {
            "folded": f"{choice.folding_fraction.mean():.4f}",
            "moved": f"{choice.moved.mean():.1%}",
            "s/digit": f"{choice.seconds:.4f}",
        }
    )
    return row


def _right(choice: Choice, labels: Tensor, count: int) -> Tensor:
    return (choice.answers[:count] == labels[:count]).double()


def _asked(labels: Tensor, by_protocol: Mapping[str, Mapping[str, Choice]]) -> list[dict[str, object]]:
    """The figures that were asked for beside those that were measured."""
    single = "DiffeoNN single pass"

    def mean(protocol: str, row: str, count: int) -> float:
        return _right(by_protocol[protocol][row], labels, count).mean().item()

    rows = []
    for protocol, baseline, margin in (("TPS", "augmented", 0.005), ("plain", "baseline", 0.003)):
        if {single, baseline} <= set(by_protocol.get(protocol, {})):
            ours, theirs = mean(protocol, single, len(labels)), mean(protocol, baseline, len(labels))
            rows.append(
                {
                    "what": f"single pass, {protocol}, {len(labels)} digits",
                    "asked": f"{baseline} - {margin} or better",
                    "measured": f"{ours:.4f} against {theirs:.4f}",
                    "met": "yes" if ours >= theirs - margin else "**no**",
                }
            )
    for protocol, chosen in by_protocol.items():
        if {single, "DiffeoNN refine"} <= set(chosen):
            count = len(chosen["DiffeoNN refine"].answers)
            ours, theirs = mean(protocol, "DiffeoNN refine", count), mean(protocol, single, count)
            rows.append(
                {
                    "what": f"refine, {protocol}, the first {count} digits",
                    "asked": "single pass, within 0.01",
                    "measured": f"{ours:.4f} against {theirs:.4f}",
                    "met": "yes" if abs(ours - theirs) <= 0.01 else "**no**",
                }
            )
    return rows


def measure(
    bundle: str | Path, digits: Digits, protocols: Sequence[str], counts: Mapping[str, int], seed: int = 0
) -> dict[str, dict[str, dict[str, Choice]]]:
    """What every row chose, by genus, protocol and row; ``counts`` says on how many of the first digits a mode runs."""
    models = Path(bundle) / "models"
    networks = {(genus, name): classifier(models / file) for genus, files in WEIGHTS.items() for name, file in files.items()}
    baseline = {key: network for key, network in networks.items() if key[1] == "baseline"}
    chosen: dict[str, dict[str, dict[str, Choice]]] = {genus: {} for genus in WEIGHTS}
    for protocol in protocols:
        images = deform(Films(digits.images, digits.images, digits.ids), protocol, seed)[0].images
        found = ask(networks, images)
        for row, mode in MODES.items():
            asked = ask(
                networks if mode == "single_pass" else baseline,
                images[: counts.get(mode)],
                load_canonicalizer(models / "energy", mode),
            )
            found.update(
                {
                    (genus, row if name == "baseline" else "augmented + DiffeoNN"): choice
                    for (genus, name), choice in asked.items()
                }
            )
        for genus in WEIGHTS:
            chosen[genus][protocol] = {row: found[genus, row] for row in ROWS}
    return chosen


def main(argv: list[str] | None = None) -> None:
    """Measure the tables and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_dir", required=True, help="folder with mnist.npz")
    parser.add_argument("--bundle", default="bundles/mnist_genus")
    parser.add_argument("--split", default="test")
    parser.add_argument("--protocols", nargs="+", default=["plain", "TPS/2", "TPS"], choices=list(DEFORMATIONS))
    parser.add_argument("--digits", type=int, default=None, help="the first so many")
    parser.add_argument("--refine_digits", type=int, default=500)
    parser.add_argument("--faithful_digits", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="docs/results/genus.md")
    options = parser.parse_args(argv)
    torch.manual_seed(options.seed)
    digits = read_digits(options.dataset_dir, options.split).spread(options.digits)
    counts = {"refine": options.refine_digits, "faithful": options.faithful_digits}
    chosen = measure(options.bundle, digits, options.protocols, counts, options.seed)
    parts = [NOTE]
    for genus, by_protocol in chosen.items():
        labels = GENUS[genus](digits)
        share = ", ".join(f"{k}: {n}" for k, n in enumerate(labels.bincount(minlength=3).tolist()))
        parts.append(f"## {TITLES[genus]}\n\n`{options.split}`, {len(labels)} digits, by genus {share}.")
        for protocol, rows in by_protocol.items():
            undeformed = None if protocol == "plain" else by_protocol.get("plain")
            parts.append(f"### {TITLES[genus]}, {protocol}\n\n{markdown_table(genus_table(labels, rows, undeformed))}")
        if asked := _asked(labels, by_protocol):
            parts.append(f"### {TITLES[genus]}, asked and measured\n\n{markdown_table(asked)}")
    print("\n\n".join(parts))
    write_page(options.output, "MNIST genus", command_text("genus", parser, options), parts, options.seed)


if __name__ == "__main__":
    main()
