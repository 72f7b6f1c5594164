import pytest
import torch

from bundles.mnist_genus.scripts.digits import Digits
from docs.experiments import genus
from docs.experiments.genus import asked, choose, genus_table
from docs.experiments.measures import Answer
from monai_diffeo.inferers import DiffeoInferer
from tests.helpers import blob, tiny_canonicalizer


def scores(image):
    """Three scores of an image that change when it moves."""
    return torch.stack([image[:, 0, :10].mean((1, 2)), image[:, 0, 9:19].mean((1, 2)) - 0.1, image[:, 0, 18:].mean((1, 2))], 1)


def choice(answers, folding_fraction=0.0):
    answers = torch.tensor(answers)
    return Answer(answers, torch.full((len(answers),), folding_fraction), torch.ones(len(answers)), 0.5)


def test_a_network_chooses_as_it_is_or_wrapped():
    images = blob(7, (28, 28), shift=torch.linspace(-0.6, 0.6, 7))
    plain, canonicalizer = choose(scores, images), tiny_canonicalizer(tta_samples=2)
    assert plain.masks.tolist() == scores(images).argmax(1).tolist() and plain.moved.sum() == 0
    wrapped = choose(scores, images, canonicalizer)
    assert wrapped.masks.tolist() == DiffeoInferer(canonicalizer)(images, scores).argmax(1).tolist()
    assert wrapped.moved.tolist() == [1] * 7 and wrapped.seconds > 0


def test_differences_are_paired_over_the_digits_of_their_row():
    labels = torch.tensor([0, 1, 2, 0])
    rows = genus_table(
        labels,
        {
            "baseline": choice([0, 0, 0, 0]),
            "augmented baseline": choice([0, 1, 0, 0]),
            "DiffeoNN refine": choice([0, 1], 0.25),
            "DiffeoNN single pass": choice([1, 1, 2, 0]),
        },
    )
    baseline, augmented, refine, single = rows
    assert [r["digits"] for r in rows] == [4, 4, 2, 4]
    assert [r["accuracy"][:6] for r in rows] == ["0.5000", "0.7500", "1.0000", "0.7500"]
    assert baseline["- baseline"] == "" and baseline["- augmented baseline"].startswith("-0.2500 [")
    assert (
        refine["- baseline"].startswith("+0.5000")
        and refine["- augmented baseline"].startswith("+0.0000")
        and refine["- single pass"].startswith("+0.5000")
    )
    assert refine["folded"] == "0.2500" and refine["error"] == "" and single["s/digit"] == "0.5000"


def test_the_error_is_the_share_of_answers_that_change_right_or_wrong():
    labels = torch.zeros(4, dtype=torch.long)
    (row,) = genus_table(labels, {"baseline": choice([1, 1, 0, 0])}, {"baseline": choice([1, 2, 0, 0])})
    assert row["error"] == "0.2500"


@pytest.mark.parametrize("wrong, met", [(1, "yes"), (3, "**no**")])
def test_what_was_asked_is_set_beside_what_was_measured(wrong, met):
    labels = torch.zeros(400, dtype=torch.long)
    right, ours = choice([0] * 400), choice([1] * wrong + [0] * (400 - wrong))
    tps, refine = asked(
        labels, {"TPS": {"augmented baseline": right, "DiffeoNN single pass": ours, "DiffeoNN refine": choice([0] * 200)}}
    )
    assert tps["met"] == met and "1.0000" in tps["measured"]
    assert refine["met"] == ("yes" if wrong == 1 else "**no**") and "first 200" in refine["what"]


class Always(torch.nn.Module):
    """A classifier of one mind."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, image):
        return torch.nn.functional.one_hot(torch.full((len(image),), self.answer), 4).float()


def test_every_row_has_the_answers_of_its_own_network(monkeypatch):
    minds = {"model.pt": 0, "augmented.pt": 1, "euler.pt": 2, "euler_augmented.pt": 3}
    monkeypatch.setattr(genus, "classifier", lambda path: Always(minds[path.name]))
    monkeypatch.setattr(genus, "load_canonicalizer", lambda folder, mode: tiny_canonicalizer())
    digits = Digits(blob(3, (28, 28)), torch.tensor([0, 1, 8]), ("a", "b", "c"))
    chosen = genus.measure("bundle", digits, ["plain", "TPS"], {"refine": 2, "faithful": 1})
    for name, baseline, augmented in (("digit", 0, 1), ("euler", 2, 3)):
        for rows in chosen[name].values():
            assert list(rows) == list(genus.ROWS)
            for row, choice in rows.items():
                assert set(choice.masks.tolist()) == {augmented if "augmented" in row else baseline}
            assert [len(rows[r].masks) for r in ("DiffeoNN faithful", "DiffeoNN refine", "DiffeoNN single pass")] == [1, 2, 3]
