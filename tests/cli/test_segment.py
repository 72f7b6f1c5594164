"""`monai-diffeo segment`: the command line itself, its exit status and last line, and runs on films."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

for package in ("ignite", "nibabel", "pydicom", "PIL", "matplotlib", "skimage", "highdicom"):
    pytest.importorskip(package)

import monai_diffeo  # noqa: E402
from monai_diffeo.cli import bundle as bundle_module  # noqa: E402
from monai_diffeo.cli import program  # noqa: E402
from monai_diffeo.cli import segment as segment_module  # noqa: E402
from monai_diffeo.errors import ConfigError  # noqa: E402
from tests.bundles.command import lines_of  # noqa: E402
from tests.dicom_output.films import film  # noqa: E402
from tests.radiograph.dicom_factory import corner_film, save  # noqa: E402

ROOT = Path(__file__).parents[2]
LUNGS = ROOT / "bundles" / "cxr_lung_segmentation"


def invoke(*words):
    """Exit status, standard output, and lines of standard error."""
    done = CliRunner().invoke(program, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr.splitlines()


@pytest.fixture
def tiny(tmp_path):
    """A bundle that ends with the number of letters of --mode."""
    root = tmp_path / "tiny"
    (root / "configs").mkdir(parents=True)
    config = {"imports": ["$import sys"], "bundle_root": ".", "mode": "x", "run": [], "finalize": "$sys.exit(len(@mode))"}
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    return root


@pytest.mark.parametrize(
    "words, says",
    [
        ("segment --datasetdir films", "Did you mean '--dataset_dir'?"),
        ("segment --dataset_dri=films", "Did you mean '--dataset_dir'?"),
        ("segmnt --dataset_dir films", "Did you mean 'segment'?"),
        ("segment films", "unexpected extra argument"),
        ("segment --dataset_dir a --dataset_dir b", "--dataset_dir is given 2 times"),
        ("segment --dataset_dir=", "--dataset_dir has no value; a shell variable may be unset"),
        ("segment --dataset_dir", "'--dataset_dir' requires an argument"),
        ("segment --dataset_dir --debug", "--dataset_dir has no value; --debug is an option"),
        ("segment --figures=", "'' is not one of 'true', 'false'"),
        ("segment --enabled perhaps", "'perhaps' is not one of 'true', 'false'"),
        ("segment --tta_samples 0", "0 is not in the range x>=1"),
        ("segment --tta_samples many", "'many' is not a valid integer"),
        ("segment --bundle_root /no/such", "or the name of a bundle ("),
        ("segment --bundle_root cxrr", "got 'cxrr'"),
        ("shwo cxr", "Did you mean 'show'?"),
        ("show cxr --jsn", "Did you mean '--json'?"),
        ("wrap cxr --canonicaliser x", "Did you mean '--canonicalizer'?"),
        ("wrap", "Missing argument 'BUNDLE'"),
        ("", "Missing command"),
    ],
)
def test_a_wrong_command_line_runs_nothing_and_says_why_in_its_last_line(words, says):
    status, _, lines = invoke(*words.split())
    assert status == 1 and says in lines[-1] and not any("Traceback" in line for line in lines)


def test_help_is_quick_and_lists_options_and_exit_status():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "importtime", "-m", "monai_diffeo", "segment", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0 and not re.search(r"\| +(torch|monai|numpy)$", done.stderr, re.M)
    readme = (ROOT / "README.md").read_text()
    table = re.findall(r"^\| (\d+) \|", readme.split("| exit status |")[1], re.M)
    assert all(f"  {status} " in done.stdout for status in [*table, "130"]) and table == ["0", "1", "3", "4"]
    documented = re.findall(r"^\| `(--\w+)", readme.split("| option |")[1], re.M)
    assert len(documented) == 20 and all(option in done.stdout for option in documented)


def test_version():
    assert invoke("--version")[:2] == (0, f"monai-diffeo {monai_diffeo.__version__}\n")


def test_the_exit_status_is_that_of_the_bundle_and_a_last_line_explains_it(tiny):
    assert invoke("segment", "--bundle_root", tiny)[0] == 1
    status, _, lines = invoke("segment", "--bundle_root", tiny, "--mode=abc")
    assert status == 3 and lines[-1] == "Some films have no mask; report.jsonl says which and why."
    status, _, lines = invoke("segment", "--bundle-root", tiny, "--mode", "-abc")
    assert status == 4 and lines[-1] == "Every film failed, or there was none; report.jsonl says why."
    assert invoke("segment", "--bundle_root", tiny, "--mode", "$x,@y")[0] == 5


def test_an_option_that_the_bundle_does_not_know_is_refused_and_debug_is_ours_too(tiny):
    status, _, lines = invoke("segment", "--bundle_root", tiny, "--mode", "abc", "--resume")
    assert status == 1 and lines == [f"Error: segment: the configuration of '{tiny}' has no option --resume. Leave it out."]
    assert invoke("segment", "--bundle_root", tiny, "--mode", "abc", "--debug")[0] == 3


def test_code_of_a_bundle_runs_only_if_it_is_trusted(tiny, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tiny / "scripts").mkdir()
    (tiny / "scripts" / "__init__.py").touch()
    (tiny / "scripts" / "tiny_script.py").write_text("def status():\n    raise SystemExit(7)\n")
    (tiny / "configs" / "inference.json").write_text(json.dumps({"run": [{"_target_": "scripts.tiny_script.status"}]}))
    status, _, lines = invoke("segment", "--bundle_root", tiny)
    assert status == 1 and "'run::0::_target_'" in lines[-1] and lines[-1].endswith("with your rights.")
    assert invoke("segment", "--bundle_root", tiny, "--trust_bundle", "false")[0] == 1
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    assert invoke("segment", "--bundle_root", tiny, "--trust_bundle")[0] == 7
    for name in ("scripts", "scripts.tiny_script"):
        sys.modules.pop(name, None)


def test_a_package_that_is_not_installed_is_named_before_anything_runs(tiny):
    needed = {"monai-diffeo": "1", "pydicom": "3", "no-such-package": "2"}
    (tiny / "configs" / "metadata.json").write_text(json.dumps({"required_packages_version": needed}))
    status, _, lines = invoke("segment", "--bundle_root", tiny)
    assert status == 1 and "not installed: ['no-such-package']." in lines[-1] and '"monai-diffeo[demo]"' in lines[-1]


@pytest.mark.parametrize(
    "error, status, last",
    [
        (KeyboardInterrupt(), 130, "Interrupted. The films without a line in report.jsonl have no mask; --resume goes on."),
        (ModuleNotFoundError("No module named 'x'"), 1, 'come with: pip install "monai-diffeo[demo]"'),
        (ValueError("two\nlines"), 1, "Error: two lines"),
        (KeyError("a"), 1, "Error: segment: no entry 'a'"),
        (MemoryError(), 1, "Error: MemoryError"),
    ],
)  # fmt: skip
def test_whatever_happens_has_a_status_and_a_last_line(tiny, monkeypatch, error, status, last):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(bundle_module, "run_bundle", fail)
    ended, _, lines = invoke("segment", "--bundle_root", tiny)
    assert ended == status and lines[-1].endswith(last)


@pytest.mark.parametrize(
    "error, last, traced",
    [
        (ConfigError("show: said plainly"), "Error: show: said plainly", False),
        (ModuleNotFoundError("No module named 'x'"), 'come with: pip install "monai-diffeo[bundle]"', False),
        (ZeroDivisionError("of ours"), "Error: of ours", True),
        (KeyboardInterrupt(), "Interrupted.", False),
    ],
)
def test_every_sub_command_ends_with_a_line_and_only_a_fault_of_ours_has_a_traceback(monkeypatch, error, last, traced):
    def fail(folder):
        raise error

    monkeypatch.setattr("monai_diffeo.cli.show.describe", fail)
    status, _, lines = invoke("show", "cxr")
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert lines[-1].endswith(last) and any(line.startswith("Traceback") for line in lines) == traced


@pytest.mark.parametrize("extra, needs", [("demo", "pydicom"), ("genus", "mlxtend"), ("experiments", "nilearn")])
def test_a_module_that_cannot_be_imported_is_named_with_its_extra(tiny, monkeypatch, extra, needs):
    """Hidden from Python; then hidden from the list of installed packages."""
    (tiny / "configs" / "metadata.json").write_text(json.dumps({"required_packages_version": {needs: "1"}}))
    monkeypatch.setattr(segment_module.metadata, "distributions", lambda name: [name])
    monkeypatch.setitem(sys.modules, "monai.bundle", None)
    for name in [name for name in sys.modules if name.startswith("monai_diffeo.cli.bundle")]:
        monkeypatch.delitem(sys.modules, name)
    status, _, lines = invoke("segment", "--bundle_root", tiny)
    assert status == 1 and "monai.bundle" in lines[-1] and lines[-1].endswith(f'pip install "monai-diffeo[{extra}]"')
    monkeypatch.setattr(segment_module.metadata, "distributions", lambda name: [])
    status, _, lines = invoke("segment", "--bundle_root", tiny)
    assert status == 1 and f"['{needs}']" in lines[-1] and lines[-1].endswith(f'pip install "monai-diffeo[{extra}]"')


def test_what_a_bundle_is_for_is_said_once_a_run(tiny):
    (tiny / "configs" / "metadata.json").write_text(json.dumps({"intended_use": "Only for\n trying."}))
    assert invoke("segment", "--bundle_root", tiny, "--mode", "abcde")[2] == ["Only for trying."]
    (tiny / "docs").mkdir()
    (tiny / "docs" / "data_license.txt").touch()
    lines = invoke("segment", "--bundle_root", tiny, "--mode", "abc")[2]
    assert lines[:-1] == [f"Only for trying. Terms: {tiny / 'docs' / 'data_license.txt'}"]


def test_the_bundle_of_a_wheel_writes_into_the_current_folder_and_that_of_a_clone_into_itself(tiny, tmp_path, monkeypatch):
    from monai_diffeo import bundles

    seen = []
    monkeypatch.setattr(bundle_module, "run_bundle", lambda root, given, trusted: seen.append((root, given)) or 0)
    assert invoke("segment")[0] == 0 and seen.pop() == (LUNGS, {})
    monkeypatch.setattr(bundles, "__file__", str(tmp_path / "bundles.py"))
    tiny.rename(tmp_path / "tiny2")
    (tmp_path / "_bundles").mkdir()
    (tmp_path / "tiny2").rename(tmp_path / "_bundles" / "cxr_lung_segmentation")
    packaged = tmp_path / "_bundles" / "cxr_lung_segmentation"
    (packaged / "configs" / "metadata.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "_bundles")  # its folder has the name of the bundle
    for words in ([], ["--bundle_root", "cxr"], ["--bundle_root", str(packaged)]):
        assert invoke("segment", *words)[0] == 0 and seen.pop() == (packaged, {"output_dir": "output"})
    assert invoke("segment", "--output_dir", "there")[0] == 0 and seen.pop() == (packaged, {"output_dir": "there"})
    assert invoke("segment", "--bundle_root", str(LUNGS))[0] == 0 and seen.pop() == (LUNGS, {})


def test_films_in_folders_of_any_name_are_segmented(tmp_path, monkeypatch):
    """Without a traceback, with a mask, in the default bundle; then with a broken film, then with it alone."""
    monkeypatch.chdir(tmp_path)
    films, out = Path("$films @a%b#1,[c] 'd\" \n ü"), Path("-20240115")
    films.mkdir()
    save(films / "film.dcm", corner_film(64, 80))
    plain = ("--enabled", "false", "--figures", "false")
    status, _, lines = invoke("segment", "--dataset_dir", films, f"--output_dir={out}", *plain)
    assert status == 0 and [line[:12] for line in lines] == ["Non-commerci"], lines  # once, not for each film
    assert (out / "film_lungs.nii.gz").is_file() and set(lines_of(out)[0]) == {"film.dcm"}
    (films / "broken.png").write_text("no film")
    status, _, lines = invoke("segment", "--dataset_dir", films, "--output_dir", "1e5", *plain)
    assert status == 3 and lines[-1].startswith("Some films") and set(lines_of(Path("1e5"))[0]) == {"film.dcm", "broken.png"}
    status, _, lines = invoke("segment", "--dataset_dir", films / "broken.png", "--output_dir", "None", *plain)
    assert status == 4 and lines[-1].startswith("Every film") and (Path("None") / "report.jsonl").is_file()


def test_without_canonicalisation_a_film_is_not_judged_and_one_with_a_doubt_is_to_be_reviewed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    film(Path("films", "a.dcm"))
    film(Path("films", "lateral.dcm"), ViewPosition="LL")
    words = ("--dataset_dir", "films", "--output_dir", "out", "--enabled", "false", "--dicom_output", "true")
    status, said, _ = invoke("segment", *words)
    report, _ = lines_of(Path("out"))
    decisions = {name: line["decision"] for name, line in report.items()}
    assert status == 0 and decisions == {"a.dcm": "not judged", "lateral.dcm": "review: header names a lateral view"}
    assert all((Path("out") / name).is_file() for line in report.values() for name in (line["mask"], *line["dicom"]))
    assert "2 films: 2 segmented. 1 not judged. Look at 1 of them." in said
    assert " not judged: 'a.dcm' segmented (without canonicalisation)" in Path("out", "run.log").read_text()
    audit = [json.loads(line)["decision"] for line in Path("out", "audit.jsonl").read_text().splitlines()]
    assert audit == ["not judged", "review"]
    before = Path("out", "report.jsonl").read_bytes()
    status, said, _ = invoke("segment", *words, "--resume", "true")
    assert status == 0 and "2 lines of an earlier run kept" in said and Path("out", "report.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "options, says",
    [
        (("--dataset_dir", "$missing"), "no folder or file at $missing"),
        (("--network_weights", "@missing.pt"), "no weights at @missing.pt"),
        (("--mode", "%missing"), "no '%missing' among the modes"),
        (("--device", "nowhere"), "nowhere"),
    ],
)
def test_what_stops_a_run_is_the_last_line_and_the_traceback_only_with_debug(options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, lines = invoke("segment", "--output_dir", "out", *options)
    assert status == 1 and len(lines) == 2 and says in lines[1] and not Path("out").exists()
    status, _, lines = invoke("segment", "--output_dir", "out", *options, "--debug")
    assert status == 1 and lines[1].startswith("Traceback") and says in lines[-1]


def test_modules_in_a_bundle_or_in_the_current_folder_are_not_found(tmp_path):
    """`python -m` in a hostile bundle: none of its modules runs."""
    shutil.copytree(LUNGS / "configs", tmp_path / "configs")
    shutil.copytree(LUNGS / "models", tmp_path / "models")
    (tmp_path / "configs" / "logging.conf").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=h\n[formatters]\nkeys=\n[logger_root]\nhandlers=h\n"
        "[handler_h]\nclass=FileHandler\nargs=('PWNED', 'w')\n"
    )
    for name in ("click", "torch", "monai", "ignite", "matplotlib", "scripts", "json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("open('PWNED', 'w')\n")
    (tmp_path / "films").mkdir()
    save(tmp_path / "films" / "film.dcm", corner_film(64, 80))
    command = [sys.executable, "-m", "monai_diffeo", "segment", "--bundle_root", ".", "--dataset_dir", "films"]
    command += ["--enabled", "false"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "PWNED").exists() and (tmp_path / "output" / "film_lungs_report.png").is_file()
