"""Errors at the boundary: each says who, what was expected, what came, and what to do."""

import pickle

import pytest
import torch

from docs.experiments.user_errors import CASES, canonicalizer, mean_brightness, rows
from monai_diffeo.canonicalize.checks import check_callable, check_device, check_image, check_number
from monai_diffeo.errors import DiffeoError, ShapeError


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.mistake)
def test_the_message_says_who_what_was_expected_what_came_and_what_to_do(case):
    with pytest.raises(case.kind) as caught:
        case.make()
    message = str(caught.value)
    assert type(caught.value) is case.kind and (issubclass(case.kind, DiffeoError) or case.kind in (TypeError, ValueError))
    assert message.startswith(case.fragments[0])
    assert [fragment for fragment in case.fragments if fragment not in message] == []
    places = [message.index(fragment) for fragment in case.fragments]
    assert places[0] < min(places[1:]) and len(message) < 700


def test_there_are_at_least_25_and_the_page_can_list_them():
    table = rows()
    assert len(table) == len(CASES) >= 25 and len({row["mistake"] for row in table}) == len(CASES)
    assert all(row["message"] != "no error" for row in table)


def test_a_plain_function_is_an_energy():
    images = torch.rand(2, 1, 32, 32)
    found = canonicalizer(mean_brightness)(images)
    assert found.status == ("canonicalized",) * 2 and torch.equal(found.energy_before, images.flatten(1).mean(1))


@pytest.mark.parametrize(("shape", "words"), [
    ((32, 32), r"image\[None, None\]"), ((1, 32, 32), r"image\[None\] for the batch"), ((1, 1, 8, 8, 8), "give slices"),
    ((1, 1, 1, 8, 8, 8), "Check its axes"),
])  # fmt: skip
def test_the_advice_fits_the_number_of_axes(shape, words):
    with pytest.raises(ShapeError, match=words):
        check_image("f()", torch.zeros(shape), 2)
    check_image("f()", torch.zeros(1, 1, 8, 8), 2)
    with pytest.raises(TypeError, match="with real values, got Tensor .* torch.complex64"):
        check_image("f()", torch.zeros(1, 1, 8, 8, dtype=torch.complex64), 2)


def test_numbers_devices_and_callables():
    for value in (1, 2.0):
        check_number("f()", "n", value, 1)
    check_number("f()", "n", None, 1, optional=True)
    for value in (None, True, 1.5, "1", 0, float("inf"), float("nan"), [1]):
        with pytest.raises(ValueError, match="f.*'n' must be"):
            check_number("f()", "n", value, 1)
    check_number("f()", "n", 1.5, 1, whole=False)
    assert check_device("f()", "cpu") == torch.device("cpu") and check_device("f()", torch.device("cpu")).type == "cpu"
    for wrong in ("gpu", "cuda:99", None):
        with pytest.raises(ValueError, match=r"f\(\): 'device' must be"):
            check_device("f()", wrong)
    check_callable("f()", "c", len, "a function", "")
    for wrong in (int, 3, None, "x"):
        with pytest.raises(TypeError, match=r"f\(\): 'c' must be a function, got"):
            check_callable("f()", "c", wrong, "a function", "Do.")


def test_an_error_that_is_not_about_channels_passes_as_it_is():
    def broken(image):
        raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="^my own$"):
        canonicalizer(broken)(torch.rand(1, 1, 32, 32))

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Conv2d(1, 1, 3)

        def forward(self, image):
            return self.first(image).flatten(1).mean(1)

    with pytest.raises(ShapeError, match="was made for images with 1 channels") as caught:
        canonicalizer(Own())(torch.rand(1, 3, 32, 32))
    assert caught.value.actual == (1, 3, 32, 32) and isinstance(caught.value.__cause__, RuntimeError)
    assert pickle.loads(pickle.dumps(canonicalizer(mean_brightness)))(torch.rand(1, 1, 32, 32)).status == ("canonicalized",)
