import csv
from pathlib import Path

import pytest

from monai_diffeo.radiograph.manifest import read_manifest, spread_rows

ROWS = [
    {"id": "a", "image": "films/a.png", "mask": "masks/a.png", "split": "train", "source": "east", "age": "31"},
    {"id": "b", "image": "films/b.png", "mask": "", "split": "test", "source": "west", "age": "52"},
    {"id": "c", "image": "films/c, left.png", "mask": "masks/c.png", "split": "test", "source": "east", "age": ""},
]


def write(folder, rows=ROWS, name="manifest.csv", columns=None):
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def ids(items):
    return [item["id"] for item in items]


def test_rows_come_in_order_with_paths_below_the_folder_and_all_columns(tmp_path):
    items = read_manifest(write(tmp_path))
    assert ids(items) == ["a", "b", "c"]
    assert items[0] == {**ROWS[0], "image": str(tmp_path / "films/a.png"), "label": str(tmp_path / "masks/a.png")}
    assert "label" not in items[1]
    assert items[2]["image"].endswith("c, left.png")
    assert read_manifest(str(tmp_path)) == items


def test_split_source_and_limit_choose_rows(tmp_path):
    write(tmp_path)
    assert ids(read_manifest(tmp_path, split="test")) == ["b", "c"]
    assert ids(read_manifest(tmp_path, sources=["east"])) == ["a", "c"]
    assert ids(read_manifest(tmp_path, sources=iter(["east", "west"]))) == ["a", "b", "c"]
    assert ids(read_manifest(tmp_path, split="test", sources={"east"})) == ["c"]
    assert ids(read_manifest(tmp_path, split="test", limit=1)) == ["b"]
    assert ids(read_manifest(tmp_path, limit=99)) == ["a", "b", "c"]


def test_rows_are_chosen_and_left_out_by_their_ids_in_the_order_of_the_list(tmp_path):
    write(tmp_path)
    (tmp_path / "list.txt").write_text("c\na\n")
    assert ids(read_manifest(tmp_path, ids=tmp_path / "list.txt")) == ids(read_manifest(tmp_path, ids=["c", "a"])) == ["c", "a"]
    assert ids(read_manifest(tmp_path, without=str(tmp_path / "list.txt"))) == ["b"]
    assert ids(read_manifest(tmp_path, ids=["c", "b"], limit=1)) == ["c"]
    with pytest.raises(ValueError, match="manifest.csv lacks 1 of 2 ids, first 'x'"):
        read_manifest(tmp_path, ids=["a", "x"])
    with pytest.raises(ValueError, match="lacks 1 of 1 ids, first 'a'"):  # of another split
        read_manifest(tmp_path, split="test", ids=["a"])
    with pytest.raises(ValueError, match=r"lacks the columns \['id'\]"):
        read_manifest(write(tmp_path, columns=["image"]), without=["a"])


def test_a_manifest_of_images_alone_is_enough(tmp_path):
    write(tmp_path, columns=["image"])
    assert [sorted(item) for item in read_manifest(tmp_path)] == [["image"]] * 3


def test_another_file_name_may_be_given(tmp_path):
    assert len(read_manifest(write(tmp_path, name="films.csv"), manifest="films.csv")) == 3


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="manifest.csv") as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "columns, asked, lacking",
    [
        (["id", "mask"], {}, "image"),
        (["image"], {"split": "test"}, "split"),
        (["image"], {"sources": ["east"]}, "source"),
    ],
)
def test_a_missing_column_is_named(tmp_path, columns, asked, lacking):
    write(tmp_path, columns=columns)
    with pytest.raises(ValueError, match=f"lacks the columns \\['{lacking}'\\]"):
        read_manifest(tmp_path, **asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"split": "validation"},
        {"sources": ["north"]},
        {"sources": []},
        {"split": "train", "sources": ["west"]},
    ],
)
def test_no_row_left_is_an_error_that_says_what_was_asked(tmp_path, asked):
    with pytest.raises(ValueError, match="no film") as caught:
        read_manifest(write(tmp_path), **asked)
    if "split" in asked:
        assert asked["split"] in str(caught.value)


def test_an_empty_file_is_an_error(tmp_path):
    (tmp_path / "manifest.csv").write_text("")
    with pytest.raises(ValueError, match="image"):
        read_manifest(tmp_path)


def test_one_source_by_its_name_and_any_for_all_even_without_the_column(tmp_path):
    (tmp_path / "manifest.csv").write_text("image,split\na.png,train\nb.png,train\n")
    assert len(read_manifest(tmp_path, "train", "any")) == 2
    (tmp_path / "manifest.csv").write_text("image,split,source\na.png,train,east\nb.png,train,west\n")
    assert [Path(r["image"]).name for r in read_manifest(tmp_path, "train", "east")] == ["a.png"]


def test_rows_are_spread_from_the_first_to_the_last():
    assert spread_rows(10, 4) == [0, 3, 6, 9] and spread_rows(10, 1) == [0]
    assert spread_rows(3, None) == spread_rows(3, 5) == [0, 1, 2]
    assert len(set(spread_rows(354, 100))) == 100
