"""With "best", a doubted answer gives way to one that no sign speaks against more; else every bit stays."""

from dataclasses import replace

import pytest
import torch
from monai.data import MetaTensor

from monai_diffeo.inferers import DiffeoInferer
from monai_diffeo.trust import NO_RESULT, OK, REVIEW, FilmJudge, References, Score, TrustModel
from tests.helpers import blob, tiny_canonicalizer
from tests.trust.test_signs import two_parts

LUNGS = two_parts(40, shift=0)
MODEL = TrustModel(
    limits={"energy": 1e3, "shape": 6.0, "blur": 0.2, "second": 0.3},
    error=Score(0.0, {"blur": 1.0}, 0.1),
    spread=(0.1, 0.1),
    foreign=Score(-9.0, {"energy": 1.0}, 0.0),
    unusual=-1.0,
    references=References.of(torch.rand(40, 1, 32, 32), LUNGS[:, None]),
    sha256="",
    fitted_on="",
)
CLEAR = (20 * two_parts(1) - 10)[:, None]  # logits of two lungs
VAGUE = CLEAR / 20  # the same edges, uncertain everywhere
STAIN = CLEAR.clone()
STAIN[..., 26:30, 4:28] = 10.0  # one body more


def judged(wrapped, bare, second=None, model=MODEL, fallback="best", rows=1):
    """What a judge makes of given answers; a tensor that is not moved is the film as the canonicaliser left it."""
    film = MetaTensor(blob(rows), meta={"film_notes": [""] * rows, "kept": "yes"})
    result = DiffeoInferer(tiny_canonicalizer(), tta_samples=2).infer(film, lambda x: x, plain=True)
    wrapped = MetaTensor(wrapped.expand(rows, -1, -1, -1).clone(), meta={"kept": "yes"})
    result = replace(result, prediction=wrapped, plain=bare.expand(rows, -1, -1, -1).clone())
    if second is not None:
        result = replace(
            result, searched=replace(result.searched, ddf=0 * result.searched.ddf, inverse_ddf=0 * result.searched.ddf)
        )
    return FilmJudge(model, None if second is None else lambda image: second, fallback=fallback)(film, lambda image: result)


def test_a_doubted_answer_gives_way_to_a_bare_one_that_is_nowhere_worse():
    found = judged(VAGUE, CLEAR)
    (verdict,) = found.verdicts
    assert torch.equal(found.prediction.as_tensor(), CLEAR) and found.prediction.meta["kept"] == "yes"
    assert verdict.answer == "bare network" and verdict.kind == REVIEW and verdict.dice is None
    assert verdict.text.startswith("review: the answer is that of the bare network; the edges of the answer are uncertain")


@pytest.mark.parametrize(
    "wrapped, bare, change",
    [
        (VAGUE, STAIN, {}),  # sharper, but with a part too many
        (VAGUE, VAGUE, {}),  # no better
        (CLEAR, CLEAR * 2, {}),  # better, but nothing is doubted
        (VAGUE, CLEAR, {"error": Score(0.0, {"blur": 1.0}, 1e3)}),
    ],
)
def test_otherwise_the_wrapped_answer_stays_bit_for_bit(wrapped, bare, change):
    found = judged(wrapped, bare, model=replace(MODEL, **change))
    assert torch.equal(found.prediction.as_tensor(), wrapped) and found.verdicts[0].answer == "wrapped"
    assert found.verdicts[0].dice is not None


@pytest.mark.parametrize("fallback", ["identity", "raise"])
def test_without_best_nothing_is_chosen_and_nothing_is_said(fallback):
    found = judged(VAGUE, CLEAR, CLEAR, fallback=fallback)
    assert torch.equal(found.prediction.as_tensor(), VAGUE) and found.verdicts[0].answer == ""
    assert torch.equal(found.second, CLEAR)


def test_the_second_network_answers_where_it_alone_has_the_shape_of_lungs():
    odd = -CLEAR / 20
    found = judged(odd, odd, CLEAR)
    assert found.verdicts[0].answer == "second network" and torch.equal(found.prediction.as_tensor(), CLEAR)
    corner = torch.full_like(CLEAR, -10.0)
    corner[..., :6, :6] = 10.0
    assert judged(odd, odd, corner).verdicts[0].answer == "wrapped"
    assert judged(odd, odd).verdicts[0].answer == "wrapped"


def test_each_film_of_a_batch_is_chosen_for_alone_and_no_result_stays_none():
    film = blob(2)
    result = DiffeoInferer(tiny_canonicalizer(), tta_samples=2).infer(film, lambda x: x, plain=True)
    result = replace(result, prediction=torch.cat([VAGUE, CLEAR]), plain=torch.cat([CLEAR, STAIN]))
    found = FilmJudge(MODEL, fallback="best")(film, lambda image: result)
    assert [one.answer for one in found.verdicts] == ["bare network", "wrapped"] and found.verdicts[1].kind == OK
    assert torch.equal(found.prediction, torch.cat([CLEAR, CLEAR]))
    alien = replace(MODEL, foreign=Score(9.0, {"energy": 1.0}, 0.0))
    assert [one.kind for one in FilmJudge(alien, fallback="best")(film, lambda image: result).verdicts] == [NO_RESULT] * 2


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="'identity', 'raise', 'best'"):
        FilmJudge(MODEL, fallback="good")
