from dataclasses import replace

import pytest
import torch

pytest.importorskip("ignite")

from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from torch.utils.data import DataLoader

from monai_diffeo.engines import FilmEvaluator
from monai_diffeo.errors import FilmError
from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.radiograph.failsafe import FAILURE, FailSafeDataset, collate_one, root_cause
from monai_diffeo.trust import Verdict
from tests.helpers import blob, tiny_canonicalizer


class Seen:
    """A reporter that keeps what it is told."""

    wants_plain = True

    def __init__(self):
        self.good, self.bad = [], []

    def done(self, path, batch, output, result, seconds):
        self.good.append((path, output["pred"], result))

    def failed(self, path, error):
        self.bad.append((path, type(error).__name__))


def load(item):
    if "bad" in item["image"]:
        raise RuntimeError("applying transform") from FilmError("EmptyFile", "The file is empty.")
    return {"image": blob(1)[0] * (0 if "black" in item["image"] else 1)}


def evaluate(names, network=None, inferer=None, kind=Seen, **settings):
    data = FailSafeDataset([{"image": n} for n in names], load)
    loader = DataLoader(data, batch_size=1, collate_fn=collate_one)
    reporter = kind()
    network = torch.nn.Identity() if network is None else network
    inferer = DiffeoInferer(tiny_canonicalizer()) if inferer is None else inferer
    FilmEvaluator(torch.device("cpu"), loader, network, inferer=inferer, reporter=reporter, **settings).run()
    return reporter


def test_a_film_that_does_not_load_is_reported_and_the_next_one_runs():
    seen = evaluate(["a", "bad", "c"])
    assert [name for name, *_ in seen.good] == ["a", "c"]
    assert seen.bad == [("bad", "FilmError")]


def test_a_film_that_fails_in_the_network_or_afterwards_is_reported_too():
    class Picky(torch.nn.Module):
        def forward(self, image):
            if image.abs().max() == 0:
                raise ZeroDivisionError
            return image

    seen = evaluate(["black", "b"], Picky())
    assert [n for n, *_ in seen.good] == ["b"] and seen.bad == [("black", "ZeroDivisionError")]

    class Broken(torch.nn.Module):
        def forward(self, image):
            return torch.full_like(image, torch.nan)

    saved: list = []
    assert evaluate(["a"], Broken(), postprocessing=saved.append).bad == [("a", "NumericalError")] and saved == []

    def post(data):
        raise OSError("disk full")

    assert evaluate(["a"], postprocessing=post).bad == [("a", "OSError")]


def test_where_nothing_more_can_be_reported_the_run_ends():
    class Stops(Seen):
        stopped = None

        def failed(self, path, error):
            super().failed(path, error)
            self.stopped = "The disk is full."

    assert [name for name, *_ in evaluate(["a", "b", "c"], kind=Seen).good] == ["a", "b", "c"]
    seen = evaluate(["a", "bad", "c", "d"], kind=Stops)
    assert [name for name, *_ in seen.good] == ["a"] and seen.bad == [("bad", "FilmError")]


def test_the_report_gets_result_answer_and_the_plain_answer():
    asked = []
    inferer = DiffeoInferer(tiny_canonicalizer(), on_result=asked.append)
    ((_, prediction, result),) = evaluate(["a"], inferer=inferer).good
    found = result.canonicalization
    assert found.status == ("canonicalized",)
    torch.testing.assert_close(prediction[None], found.warp_back(found.image))
    assert torch.equal(result.plain, blob(1))
    assert asked == [found] and inferer.on_result == asked.append  # the caller's own hook is left alone


def test_without_canonicalisation_there_is_no_result():
    ((_, prediction, result),) = evaluate(["a"], inferer=DiffeoInferer(tiny_canonicalizer(), enabled=False)).good
    assert result.canonicalization is None and torch.equal(prediction, blob(1)[0])
    ((_, prediction, result),) = evaluate(["a"], inferer=SimpleInferer()).good
    assert result.canonicalization is None and torch.equal(prediction, blob(1)[0])


def test_the_first_cause_of_a_chain_is_found():
    data = FailSafeDataset([{"image": "bad"}], load)
    assert isinstance(data[0][FAILURE], FilmError)
    assert root_cause(ValueError("x")).args == ("x",)


def test_the_metadata_say_what_happened_to_the_film_that_counts(monkeypatch):
    """A judge may show another film to the inferer than the given one, such as an inverted one, or show two."""

    def judge(image, ask):
        ask(image)
        result = ask(1 - image)
        found = replace(result.canonicalization, notes=("negative corrected",))
        return replace(result, canonicalization=found, verdicts=(Verdict("ok"),))

    monkeypatch.setattr("tests.engines.test_evaluators.load", lambda item: {"image": MetaTensor(blob(1)[0])})
    ((_, prediction, _),) = evaluate(["a"], judge=judge).good
    assert prediction.meta["diffeo"]["notes"] == "negative corrected"
