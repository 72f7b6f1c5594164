import pytest
import torch

pytest.importorskip("nibabel")

from bundles.brain_3d.scripts.brains import write_volumes
from docs.experiments.any_network_3d import FOREIGN_OF_CLASS, Truth, dice_of, figures, table, write_shown, zoo_bundle
from monai_diffeo.cli.bundle import bundle_parser
from monai_diffeo.flow import rotate_axes


def test_the_zoos_bundle_knows_nothing_of_us_and_may_run_without_trust(tmp_path):
    root = zoo_bundle(tmp_path / "zoo")
    assert "diffeo" not in (root / "configs" / "inference.json").read_text()
    network = bundle_parser(root, {}).get_parsed_content("network_def")
    with torch.no_grad():
        assert network(torch.rand(1, 1, 16, 16, 16)).shape == (1, max(FOREIGN_OF_CLASS) + 1, 16, 16, 16)


def test_labels_are_compared_on_the_turned_grid(tmp_path):
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(6, (1, 1, 4, 6, 5), generator=draw)
    truths = [Truth(*(rotate_axes(x, index) for x in (label / 5.0, label))) for index in (0, 7, 23)]
    names = write_shown(tmp_path / "shown", {"turned": truths})["turned"]
    assert names == ["turned_00", "turned_01", "turned_02"]
    for name, truth in zip(names, truths):  # as a bundle would name them, in folders of their own
        write_volumes(tmp_path / "out" / name, truth.label.byte(), f"{name}_trans")  # adds a number to the name
    assert dice_of(tmp_path / "out", names, truths).tolist() == [1, 1, 1]
    other = [*truths[:2], truths[2]._replace(label=truths[2].label.flip(2))]
    assert dice_of(tmp_path / "out", names, other)[2] < 0.5
    few = torch.tensor(FOREIGN_OF_CLASS)[label]
    write_volumes(tmp_path / "few" / "turned_00", few.byte(), "turned_00_trans")
    assert dice_of(tmp_path / "few", names[:1], truths[:1], FOREIGN_OF_CLASS).tolist() == [1]


def found(wrapped_deformed, wrapped_turned, folded):
    plain = {"upright": [0.9, 0.9], "deformed": [0.4, 0.6], "turned": [0.2, 0.3]}
    wrapped = {"upright": [0.9, 0.9], "deformed": wrapped_deformed, "turned": wrapped_turned}
    runs = {name: {"dice": dice, "seconds": 1.0} for name, dice in {"plain": plain, "wrapped": wrapped}.items()}
    return {**runs, "fields": {"folded": folded, "moved": 6, "seconds": 2.0}, "cpu_minutes": 19.0}


def test_the_figures_are_what_was_asked():
    rows = figures(found([0.8, 0.8], [0.89, 0.89], 0), "net")
    assert rows[0]["measured"].startswith("0.75: from 0.5000 to 0.8000 of 0.9000") and [r["met"] for r in rows] == ["yes"] * 4
    rows = figures(found([0.7, 0.8], [0.87, 0.89], 1), "net")
    assert [r["met"] for r in rows] == ["**no**", "**no**", "**no**", "yes"]
    lines = table(found([0.8, 0.8], [0.89, 0.87], 0), "net")
    assert lines[1]["volumes with folds"] == "0 of 6" and lines[1]["lowest, turned"] == "0.8700" and "moved" not in lines[0]
