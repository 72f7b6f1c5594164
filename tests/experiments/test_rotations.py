"""The page on rotated films: what is read off one measurement of an upright film."""

import pytest
import torch
from torch.testing import assert_close

from docs.experiments.rotations import left_wrong, look_at, rotation_row
from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.canonicalize.acceptance import chosen_rotation, possible_rotations
from monai_diffeo.families import ControlGrid
from monai_diffeo.flow import rotate_axes
from tests.helpers import FixedTheta, FromTemplate, some_theta


class Corner(torch.nn.Module):
    """Says how the brightest quarter of a film lies, not without doubt."""

    def probabilities(self, image):
        n = image.shape[-1] // 2
        corners = torch.stack([image[:, 0, :n, :n], image[:, 0, n:, :n], image[:, 0, n:, n:], image[:, 0, :n, n:]], 1)
        return corners.mean((2, 3)).softmax(1), torch.full((len(image),), 0.5)


@pytest.mark.parametrize("temperature, confidence", [(None, 0.3), (100.0, 0.3), (5.0, 0.9)])
def test_one_film_tells_what_happens_to_its_rotations(temperature, confidence):
    film = torch.linspace(1, 0, 32)[:, None] * torch.linspace(1, 0.1, 32)[None, None, None]
    family = ControlGrid(2, controls=4)
    still = FixedTheta(some_theta(family, 0.04))
    canonicalizer = Canonicalizer(FromTemplate(film), family, predictor=still, orientation=Corner())
    look = look_at(canonicalizer, film, mirrored=False)
    for quarters in range(4):
        shown = look_at(canonicalizer, rotate_axes(film, quarters), mirrored=False)
        order = [(k + quarters) % 4 for k in range(4)]
        for name in ("probabilities", "energies"):
            assert_close([shown[name][k] for k in order], look[name], atol=1e-4, rtol=1e-4)
        asked = possible_rotations(shown["probabilities"], confidence, temperature)
        energies = {k: shown["energies"][k] for k in asked}
        chosen = chosen_rotation(shown["probabilities"], energies, confidence, temperature)
        assert left_wrong(look, quarters, confidence, temperature) is (chosen != quarters)


def test_a_row_counts_upright_and_rotated_films():
    sure = {"probabilities": [1.0, 0.0, 0.0, 0.0], "energies": [0.0, 9.0, 9.0, 9.0]}
    lost = {"probabilities": [0.02, 0.98, 0.0, 0.0], "energies": [9.0, 0.0, 9.0, 9.0]}
    row = rotation_row("plain", [sure, sure, lost], 0.9)
    assert row["films"] == "plain, 3" and row["energies refuse"] == "1 / 3 of 9" == row["temperature 5"]
