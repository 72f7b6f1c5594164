"""`monai-diffeo calibrate` on a folder of films, and `segment --trust_model` with what it wrote."""

import json

import pytest

for package in ("ignite", "nibabel", "pydicom", "PIL", "matplotlib", "skimage"):
    pytest.importorskip(package)

from monai_diffeo.cli.bundle import bundle_parser  # noqa: E402
from monai_diffeo.files import sha256_of  # noqa: E402
from monai_diffeo.trust import load_trust  # noqa: E402
from tests.bundles.command import lines_of  # noqa: E402
from tests.cli.test_segment import invoke  # noqa: E402
from tests.cli.tiny_lungs import films_in, tiny_lungs  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A bundle and 51 films of a site, one of them damaged."""
    folder = tmp_path_factory.mktemp("site")
    films = films_in(folder / "films", 50)
    (films / "broken.png").write_text("no film")
    return tiny_lungs(folder / "bundle"), films


def decisions(root, films, output, *words):
    status, _, lines = invoke(
        "segment", "--bundle_root", root, "--dataset_dir", films, "--output_dir", output, *words, "--figures", "false"
    )
    return status, lines, [line["decision"].partition(":")[0] for line in lines_of(output)[0].values()] if status != 1 else []


def test_a_calibrated_model_flags_at_most_the_share_and_counts_for_its_own_run_alone(site, tmp_path):
    (root, films), file = site, tmp_path / "ours.json"
    shipped = sha256_of(root / "models" / "trust.json")
    status, said, lines = invoke("calibrate", "--bundle_root", root, "--dataset_dir", films, "--output", file, "--share", "4")
    assert status == 0, lines
    assert (
        "50 films used; 1 could not" in said
        and f"1 failed, the first is {str(films / 'broken.png')!r}. NotAFilm: " in lines[-1]
        and "ok.\nThen do not calibrate." in said  # no share is as large
        and "Before, 50 of 50 were flagged" in said
        and "not refitted" in said
        and f"--trust_model {file}" in said
    )
    before, after = zip(*(said.split(f"\n{kind}")[1].split()[:2] for kind in ("ok", "review", "no result")))
    assert before == ("0", "50", "0") and after in (("48", "2", "0"), ("49", "1", "0"))
    assert sha256_of(root / "models" / "trust.json") == shipped
    status, _, kinds = decisions(root, films, tmp_path / "out", "--trust_model", file)
    report = lines_of(tmp_path / "out")[0]
    assert status == 3 and [kinds.count(kind) for kind in ("ok", "review")] == [int(count) for count in after[:2]]
    assert all(line.get("predicted_dice") is None for line in report.values())
    usual = sorted(line["signs"]["energy"] for line in report.values() if "signs" in line)
    assert usual[-4] < load_trust(file).limits["energy"] <= usual[-1] * 1.00001  # the same signs as in the other run
    status, lines, _ = decisions(root, films, tmp_path / "other", "--trust_model", file, "--mode", "refine")
    assert status == 1 and "ours.json must be fitted to" in lines[-1] and "calibrate" in lines[-1]


def test_the_model_of_a_bundle_counts_for_its_own_settings_alone(site, caplog):
    def judge(**typed):
        parser = bundle_parser(site[0], {"dataset_dir": str(site[1])})
        parser.update(typed)
        return parser.get_parsed_content("judge")

    limits = {"energy": 60, "disagreement": 0.35, "overlap": 0.97}
    assert judge() and judge(mask_threshold="0.47", motion_limits=limits, image_size=(32, 32)) and not caplog.text
    for other in ({"mask_threshold": "0.5"}, {"motion_limits": limits | {"energy": 20}}, {"image_size": [40, 40]}):
        caplog.clear()
        assert judge(**other) is None and "not calibrated" in caplog.text


def test_other_weights_and_settings_can_be_calibrated_on_too(site, tmp_path, caplog):
    (root, films), words = site, ("--convention", "whole", "--tta_samples", "2", "--mask_threshold", "0.3")
    assert decisions(root, films / "000.png", tmp_path / "before", *words)[0] == 0 and "not calibrated" in caplog.text
    assert "signs" not in lines_of(tmp_path / "before")[0]["000.png"]
    given = ("--bundle_root", root, "--dataset_dir", films, "--output", tmp_path / "ours.json", "--share", "10")
    assert invoke("calibrate", *given, *words)[0] == 0
    model = load_trust(tmp_path / "ours.json")
    assert model.sha256 != load_trust(root / "models" / "trust.json").sha256 and "50 unlabelled films" in model.fitted_on
    status, _, kinds = decisions(root, films / "000.png", tmp_path / "out", *words, "--trust_model", tmp_path / "ours.json")
    assert status == 0 and "signs" in lines_of(tmp_path / "out")[0]["000.png"]
    words = (*words[:-1], "0.4", "--trust_model", tmp_path / "ours.json")
    status, lines, _ = decisions(root, films / "000.png", tmp_path / "other", *words)
    assert status == 1 and "ours.json must be fitted to" in lines[-1]


def test_what_cannot_be_done_is_said_and_nothing_is_written(site, tmp_path):
    root, films = site
    given = ("calibrate", "--bundle_root", root, "--dataset_dir", films)
    few = films_in(tmp_path / "few", 3)
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    for number in range(67):
        (tmp_path / "broken" / f"{number:02d}.png").write_text("no film")
    status, _, lines = invoke(*given[:-1], tmp_path / "broken", "--output", tmp_path / "a.json")
    assert status == 1 and "got 0." in lines[-1] and "67 failed, the first is" in lines[-2] and "00.png" in lines[-2]
    for words, says in (
        ((*given[:-1], few, "--output", tmp_path / "a.json"), "must be 67 films"),
        ((*given, "--output", tmp_path / "there.json"), "exists. Give another name"),
        ((*given, "--output", root / "models" / "mine.json"), "lies in a bundle"),
        ((*given, "--share", "70", "--output", tmp_path / "a.json"), "the share must be"),
        (
            ("calibrate", "--dataset_dir", films, "--bundle_root", "cxr_lung_template", "--output", tmp_path / "a.json"),
            "no judge",
        ),
        (("calibrate",), "--dataset_dir is needed"),
    ):
        status, _, lines = invoke(*words)
        assert status == 1 and says in lines[-1], lines
    assert not (tmp_path / "a.json").exists() and not (root / "models" / "mine.json").exists()
    assert json.loads((tmp_path / "there.json").read_text()) == {}
