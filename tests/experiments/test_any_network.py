import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from docs.experiments import any_network as page
from docs.experiments.made_up_bodies import SIZE, body, unet, write_bundle, write_folder


def test_a_seed_gives_one_body_with_all_classes_in_an_oblong_frame():
    (image, label), (again, _), (other, _) = body((0, 1, 2)), body((0, 1, 2)), body((0, 1, 3))
    assert image.shape == (*SIZE, 3) and label.shape == SIZE and SIZE[0] != SIZE[1]
    assert np.array_equal(image, again) and not np.array_equal(image, other)
    shares = [float((label == k).mean()) for k in (0, 1, 2)]
    assert sum(shares) == pytest.approx(1) and all(0.01 < share < 0.2 for share in shares[1:])
    rows, columns = np.nonzero(label == 1)
    assert columns.mean() < SIZE[1] / 2 < np.nonzero(label == 2)[1].mean(), "liver left, spleen right of the picture"


def test_the_bundle_reads_the_folder_as_it_was_written(tmp_path):
    write_folder(tmp_path / "bodies", seed=3, splits={"val": 2})
    network = unet()
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "models").mkdir()
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    data = page.read_split(tmp_path / "bodies" / "val", bundle)
    for i in range(2):
        image, label = body((3, 1, i))
        assert torch.equal(data["label"][i, 0], torch.from_numpy(label).float())
        torch.testing.assert_close(data["image"][i], torch.from_numpy(image).movedim(-1, 0) / 255)
    config = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    config["bundle_root"], config["dataset_dir"] = str(bundle), str(tmp_path / "bodies" / "val")
    config["output_dir"] = str(tmp_path / "out")
    config.get_parsed_content("evaluator").run()
    with torch.no_grad():
        expected = network.eval()(data["image"]).argmax(1)
    for i in range(2):
        written = np.asarray(Image.open(tmp_path / "out" / f"val_{i:03d}" / f"val_{i:03d}_trans.png"))
        assert np.array_equal(written.T if written.shape != SIZE else written, expected[i].numpy())


def test_a_deformed_label_belongs_to_the_deformed_image_and_turning_changes_the_frame():
    label = torch.zeros(2, 1, *SIZE)
    label[:, :, 60:100, 30:70], label[:, :, 90:140, 90:130] = 1, 2
    image = page.one_hot(label)
    sets = page.shown_sets(image, label, seed=5)
    for name, (shown, classes) in sets.items():
        turned = name.endswith(("90°", "270°"))
        assert shown.shape[2:] == classes.shape[2:] == (SIZE[::-1] if turned else SIZE), name
        assert torch.equal(classes[:, 0] == 2, shown[:, 2] > 0.5), name
    assert not torch.equal(sets["TPS"][1], label)


def test_dice_counts_organs_and_not_the_background():
    label = torch.zeros(1, 1, 8, 8)
    label[..., :4, :4], label[..., 4:, 4:] = 1, 2
    found = label.clone()
    found[..., 4:, 4:] = 0
    row = page.dice_of_organs(lambda _: page.one_hot(found), torch.zeros(1, 3, 8, 8), label)
    assert row["organs"].tolist() == [[1, 0]] and row["dice"].tolist() == [0.5]


def found(upright, tps, ours, ours_tps, turned):
    values = {"undeformed": (upright, ours), "TPS": (tps, ours_tps)}
    values |= {f"turned by {k}°": (0.1, turned) for k in (90, 180, 270)}
    rows = {name: [{"dice": torch.tensor([value])} for value in both] for name, both in values.items()}
    return {name: dict(zip((page.BARE, page.OURS), both)) for name, both in rows.items()}


@pytest.mark.parametrize(
    "values, minutes, missed",
    [
        ((0.95, 0.75, 0.9475, 0.911, 0.932), 15, []),
        ((0.95, 0.75, 0.9475, 0.909, 0.932), 15, ["TPS"]),
        ((0.95, 0.75, 0.9460, 0.911, 0.932), 15, ["undeformed"]),
        ((0.95, 0.75, 0.9475, 0.911, 0.930), 16, ["minutes", "turned", "turned", "turned"]),
    ],
)
def test_a_figure_is_met_only_on_the_right_side(values, minutes, missed):
    failed = [row["what"] for row in page.body_figures(found(*values), minutes) if row["met"] != "yes"]
    assert len(failed) == len(missed) and all(word in what for word, what in zip(missed, failed)), failed


@pytest.mark.slow
def test_the_page_of_few_bodies_and_one_minute(tmp_path):
    pytest.importorskip("monai_diffeo.fit")
    words = ["--weights_dir", str(tmp_path / "keep"), "--output", str(tmp_path / "page.md"), "--scale", "0.1", "--minutes", "1"]
    page.main([*words, "--iterations", "20", "--parts", "bodies"])
    text = (tmp_path / "page.md").read_text()
    assert "| 2D: CPU minutes of `fit` | at most 15 |" in text and "| turned by 270° | wrapped, one answer |" in text
    page.main([*words, "--iterations", "20", "--parts", "bodies"])  # nothing is trained twice
    again = (tmp_path / "page.md").read_text()
    assert [line for line in text.splitlines() if "fit`" in line] == [line for line in again.splitlines() if "fit`" in line]
