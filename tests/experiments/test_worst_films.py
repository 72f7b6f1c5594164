import pytest
import torch

from docs.experiments.film_data import Films
from docs.experiments.lungs_product import conventions, masks_of
from docs.experiments.worst_films import draw, facts_of, words_on

FOUND = {"rotation": 0, "moved": 0.0, "agreement": 0.99, "energy": 2.0}


def lungs():
    label = torch.zeros(20, 40)
    label[4:16, 4:16] = label[4:16, 24:36] = 1
    return label


def test_what_is_missed_and_added_and_on_which_side():
    label, mask = lungs(), lungs()
    mask[4:16, 24:30] = 0  # half of the lung in the image's right
    mask[0:2, 0:6] = 1
    facts = facts_of(label, mask, mask > 0, 0.8, 0.81, FOUND)
    assert facts["missed"] == pytest.approx(0.25) and facts["extra"] == pytest.approx(12 / 228)
    assert facts["side"] == "right" and facts["side_missed"] == pytest.approx(0.5) and facts["parts"] == 3
    assert words_on(facts) == "25% of the mask missed, most in the image's right (50%); 3 parts before two were kept"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rotation": 1}, "turned by 90 degrees by mistake; "),
        ({"whole": 0.9}, "the mask holds the lung behind heart and diaphragm (Dice 0.90 with whole)"),
        ({"whole": 0.84}, "10% of the mask missed"),
        ({"extra": 0.2}, "20% of the answer lies outside the mask"),
        ({"moved": 0.12}, "deformed by up to 12% of the frame"),
        ({"agreement": 0.9}, "poses disagree (agreement 0.90)"),
        ({"energy": 60.0}, "unlike the training films (energy 60)"),
    ],
)
def test_each_word_has_its_measurement(changes, words):
    plain = {"dice": 0.8, "whole": 0.8, "missed": 0.1, "extra": 0.05, "side": "left", "side_missed": 0.1, "parts": 2, **FOUND}
    assert words in words_on({**plain, **changes})
    assert words not in words_on({**plain, "missed": 0.09})


def test_films_are_counted_by_the_answer_that_fits_their_mask():
    rows = conventions("source", [0.9, 0.8, 0.7, 0.95], [0.91, 0.9, 0.9, 0.8])
    assert [row["films"] for row in rows] == [2, 1, 1]
    assert rows[0]["Dice, visible"] == "0.7500" and rows[0]["Dice, whole"] == "0.9000"
    assert conventions("source", [0.9], [0.5])[0]["Dice, whole"] == ""


def test_a_mask_is_where_the_resized_probability_is_above_the_threshold():
    logits = torch.logit(torch.linspace(0.05, 0.95, 16)).expand(2, 1, 8, 16)
    shares = [masks_of(logits, (16, 16), threshold).mean().item() for threshold in (0.25, 0.5, 0.75)]
    assert shares == [0.75, 0.5, 0.25] and masks_of(logits, (16, 16)).mean() == 0.5


def test_a_sheet_is_a_small_picture(tmp_path):
    pytest.importorskip("matplotlib")
    films = Films(torch.rand(7, 1, 20, 40), lungs().expand(7, 1, 20, 40), tuple("abcdefg"))
    draw(tmp_path / "sheet.jpg", films, films.labels, [{"dice": 0.5, "whole": 0.6}] * 7)
    assert 1000 < (tmp_path / "sheet.jpg").stat().st_size < 500_000
