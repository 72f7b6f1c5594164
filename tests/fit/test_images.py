"""Images that a fit takes: found in folders and lists, read, and checked to be alike."""

import json

import numpy as np
import pytest
import torch

nibabel = pytest.importorskip("nibabel")
PIL = pytest.importorskip("PIL.Image")

from monai_diffeo.errors import ConfigError, ShapeError  # noqa: E402
from monai_diffeo.fit.images import ImagesReader, find_images, is_held_back  # noqa: E402


def noise(*shape):
    return np.random.default_rng(0).integers(1, 255, shape, dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        PIL.fromarray(array).save(path)
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), path)
    return str(path)


def read(items, transform=None, dims=None):
    lines = []
    reader = ImagesReader(transform, dims, lines.append)
    return [tuple(image.shape) for _, image in reader.usable(items)], lines, reader


def test_a_folder_gives_its_files_below_but_no_lists_and_nothing_hidden(tmp_path):
    for name in ("a.png", "sub/b.png", ".hidden.png", ".git/c.png"):
        save(tmp_path / name, noise(8, 8))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "fit.json").write_text("{}")
    assert [item["image"] for item in find_images(tmp_path)] == [str(tmp_path / "a.png"), str(tmp_path / "sub" / "b.png")]


def test_a_datalist_is_relative_to_its_file_and_a_folder_that_holds_one_is_read_by_it(tmp_path):
    entries = [{"image": "x/a.nii.gz", "label": "y/a.nii.gz"}, {"image": ["b0.png", "b1.png"]}, "c.png"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries, "test": ["d.png"]}))
    (tmp_path / "other.json").write_text(json.dumps(entries))
    root = f"{tmp_path}/"
    expected = [
        {"image": root + "x/a.nii.gz", "label": root + "y/a.nii.gz"},
        {"image": [root + "b0.png", root + "b1.png"]},
        {"image": root + "c.png"},
    ]
    assert find_images(tmp_path) == find_images(tmp_path / "other.json") == expected


def test_of_a_manifest_only_the_training_split_is_taken_and_split_is_optional(tmp_path):
    (tmp_path / "manifest.csv").write_text("image,mask,split\na.png,m.png,train\nb.png,,test\nc.png,,\n")
    found = find_images(tmp_path)
    assert [item["image"] for item in found] == [str(tmp_path / name) for name in ("a.png", "c.png")]
    assert found[0]["label"] == str(tmp_path / "m.png") and "label" not in found[1]
    (tmp_path / "plain.csv").write_text("image\na.png\nb.png\n")
    assert len(find_images(tmp_path / "plain.csv")) == 2


@pytest.mark.parametrize("content", ["{}", "[", '{"training": 3}', '[{"label": "a"}]'])
def test_a_list_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ConfigError, match="fit: the images must be a folder, a datalist.json or a manifest.csv"):
        find_images(tmp_path / "list.json")
    with pytest.raises(ConfigError, match="no_such"):
        find_images(tmp_path / "no_such")


@pytest.mark.parametrize(
    "name, shape, seen",
    [
        ("grey.png", (20, 30), (1, 30, 20)),  # MONAI reads pictures columns first
        ("colour.png", (20, 30, 3), (3, 30, 20)),
        ("slice.nii.gz", (20, 30, 1), (1, 20, 30)),
        ("colour.nii.gz", (20, 30, 3), (3, 20, 30)),
        ("volume.nii.gz", (20, 30, 10), (1, 20, 30, 10)),
        ("channels.nii.gz", (20, 30, 10, 2), (2, 20, 30, 10)),
        ("array.npy", (3, 20, 30), (3, 20, 30)),
    ],
)
def test_pictures_slices_and_volumes_have_their_true_number_of_axes(tmp_path, name, shape, seen):
    shapes, lines, _ = read([{"image": save(tmp_path / name, noise(*shape))}])
    assert shapes == [seen] and lines == []


def test_a_thin_volume_is_one_if_that_is_said(tmp_path):
    assert read([{"image": save(tmp_path / "a.nii.gz", noise(20, 30, 3))}], dims=3)[0] == [(1, 20, 30, 3)]


def test_each_image_that_cannot_be_used_is_a_line_and_the_others_go_on(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = [save(tmp_path / "a.png", noise(20, 30)), str(tmp_path / "broken.png"), save(tmp_path / "c.png", noise(20, 30, 3))]
    names += [save(tmp_path / "flat.png", np.full((20, 30), 7, np.uint8)), save(tmp_path / "e.png", noise(40, 10))]
    shapes, lines, _ = read([{"image": name} for name in names])
    assert shapes == [(1, 30, 20), (1, 10, 40)]
    assert [line.split(": ")[:2] for line in lines] == [["not used", names[i]] for i in (1, 2, 3)]
    assert "(1, H, W)" in lines[1] and "all the same" in lines[2] and not any("\n" in line for line in lines)


def test_one_image_of_another_kind_is_a_shape_error():
    reader = ImagesReader(None, None, print)
    reader.image({"image": torch.rand(1, 8, 8)})
    with pytest.raises(ShapeError, match="the axes and channels of the first one"):
        reader.image({"image": torch.rand(1, 8, 8, 8)})


def test_a_label_lies_on_the_voxels_of_its_preprocessed_image(tmp_path):
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Resized

    mask = np.zeros((20, 30), np.uint8)
    mask[:10] = 2
    item = {"image": save(tmp_path / "a.png", noise(20, 30)), "label": save(tmp_path / "m.png", mask)}
    preprocessing = Compose([LoadImaged("image", ensure_channel_first=True), Resized("image", (15, 10))])
    for transform, shape in ((None, (1, 30, 20)), (preprocessing, (1, 15, 10))):
        reader = ImagesReader(transform, None, print)
        label = reader.label(item, reader.image(item))
        half = label.shape[2] // 2
        assert tuple(label.shape) == shape and (label[..., : half - 1] == 2).all() and (label[..., half + 1 :] == 0).all()
    rows = Compose(
        [
            LoadImaged("image", reader="PILReader", reverse_indexing=False),
            EnsureChannelFirstd("image"),
            Resized("image", (10, 15)),
        ]
    )
    reader = ImagesReader(rows, None, print)
    label = reader.label(item, reader.image(item))
    assert tuple(label.shape) == (1, 10, 15) and (label[:, :4] == 2).all() and (label[:, 6:] == 0).all(), "read as the image"
    lines = []
    assert ImagesReader(None, 2, lines.append).label({**item, "label": "none.png"}, torch.rand(1, 30, 20)) is None
    assert lines[0].startswith("mask not used: none.png")
    assert ImagesReader(None, 2, print).label({"image": item["image"]}, torch.rand(1, 30, 20)) is None


def test_a_label_is_loaded_as_the_preprocessing_loads_its_images(tmp_path):
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

    mask = noise(20, 30)
    item = {"image": save(tmp_path / "a.png", mask), "label": save(tmp_path / "m.png", mask)}
    rows_first = LoadImaged(["image", "other"], reader="PILReader", reverse_indexing=False, allow_missing_keys=True)
    reader = ImagesReader(Compose([rows_first, EnsureChannelFirstd("image")]), None, print)
    image = reader.image(item)
    assert tuple(image.shape) == (1, 20, 30) and torch.equal(reader.label(item, image).as_tensor(), image.as_tensor())


@pytest.mark.parametrize("count, held", [(4, 2), (10, 3), (20, 5), (100, 21), (1000, 32)])
def test_about_a_fifth_is_held_back_two_of_four_and_at_most_32(count, held):
    assert sum(is_held_back(number) for number in range(count)) == held
