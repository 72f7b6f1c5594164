"""`monai-diffeo mercure` as mercure runs it, and the image that it runs."""

import json
import re
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

for package in ("highdicom", "ignite", "nibabel", "pydicom", "skimage"):
    pytest.importorskip(package)

import pydicom  # noqa: E402

from monai_diffeo.cli import program  # noqa: E402
from tests.dicom_output.films import film  # noqa: E402

ROOT = Path(__file__).parents[2]


def run(*folders, **environment):
    """Exit status and lines of standard error."""
    done = CliRunner(env={key: str(value) for key, value in environment.items()}).invoke(
        program, ["mercure", *map(str, folders)]
    )
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stderr.splitlines()


@pytest.fixture
def task(tmp_path):
    """A folder as mercure makes it: a film, its tags, and a task with settings."""
    folder = tmp_path / "in"
    folder.mkdir()
    film(folder / "1.2.3#1.2.4.dcm")
    (folder / "1.2.3#1.2.4.tags").write_text("{}")

    def write(**settings):
        content = {"id": "7", "info": {}, "process": {"module_name": "lungs", "settings": settings}}
        (folder / "task.json").write_text(json.dumps(content))
        return folder

    write(enabled=False, figures=False)
    return write


def test_a_task_gives_dicom_results_and_a_result_file(task, tmp_path):
    folder, out = task(enabled=False, figures=True), tmp_path / "out"
    (folder / "9.9#9.9.dcm").write_text("no film")
    assert run(MERCURE_IN_DIR=folder, MERCURE_OUT_DIR=out)[0] == 0
    made = {path.name for path in out.iterdir()}
    assert made == {"result.json", *(f"1.2.3#1.2.4_lungs.{kind}.dcm" for kind in ("seg", "sr", "sc"))}
    source = pydicom.dcmread(folder / "1.2.3#1.2.4.dcm")
    assert {pydicom.dcmread(path).StudyInstanceUID for path in out.glob("*.dcm")} == {source.StudyInstanceUID}
    result = json.loads((out / "result.json").read_text())
    assert [(line["input"], line["decision"]) for line in result["films"]] == [
        ("1.2.3#1.2.4.dcm", "not judged"),
        ("9.9#9.9.dcm", "no result"),
    ]
    assert result["films"][0]["mode"] == "single_pass" and result["films"][1]["error"] == "NotAFilm"
    notice = result["__mercure_notification"]
    assert notice == {"text": "Lung films: 1 not judged, 1 no result.", "requested": True}
    assert "4711" not in (out / "result.json").read_text()


def test_the_arguments_do_the_same_and_only_a_film_that_is_well_asks_for_nothing(task, tmp_path, monkeypatch):
    folder, results = task(enabled=False, figures=False, mode="refine"), []
    for out in (tmp_path / "not judged", tmp_path / "ok"):
        assert run(folder, out)[0] == 0 and len([*out.iterdir()]) == 3
        results.append(json.loads((out / "result.json").read_text()))
        monkeypatch.setattr("monai_diffeo.report.decision.decision", lambda line: "ok")
    assert results[0]["films"][0]["mode"] == "refine"
    notices = [result["__mercure_notification"] for result in results]
    assert notices[0] == {"text": "Lung films: 1 not judged.", "requested": True}
    assert notices[1] == {"text": "Lung films: 1 nothing to do.", "requested": False}


def test_without_a_result_the_status_is_4_and_the_result_file_says_why(task, tmp_path):
    folder = task(enabled=False)
    film(folder / "1.2.3#1.2.4.dcm", StudyInstanceUID=None)
    assert run(folder, tmp_path / "out")[0] == 4
    (line,) = json.loads((tmp_path / "out" / "result.json").read_text())["films"]
    assert line["decision"] == "no result" and "StudyInstanceUID is missing" in line["notes"]
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "out2")[0] == 4
    assert json.loads((tmp_path / "out2" / "result.json").read_text())["films"] == []


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"enabeld": True}, "has no option --enabeld"),
        ({"trust_bundle": True}, "has no option --trust_bundle"),
        ({"mode": "$__import__('os').getpid()"}, "among the modes"),
        ({"network_def": {"_target_": "os.system", "command": "true"}}, "must be a transform"),
        ({"bundle_root": "/no/such"}, "or the name of a bundle"),
    ],
)
def test_settings_are_options_and_run_no_code(task, tmp_path, settings, says):
    status, lines = run(task(**settings), tmp_path / "out")
    assert status == 1 and says in lines[-1] and not (tmp_path / "out").exists()


def test_the_image_is_made_of_files_that_are_there_and_runs_as_a_user_without_rights():
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    for words in (words.split()[:-1] for step, words in steps if step == "COPY"):
        assert words and all((ROOT / word).exists() for word in words)
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {word for step, words in steps if step == "COPY" for word in words.split()[:-1]}
    assert {line[1:] for line in sent if line.startswith("!")} == copied and "*" in sent
    assert "bundles/*/output" in sent  # results of a clone, which may be of patients
    said = dict(steps)  # the last of each
    assert said["USER"] == "10001" and json.loads(said["ENTRYPOINT"]) == ["monai-diffeo"]
    assert json.loads(said["CMD"])[0] in program.commands
    (install,) = (words for step, words in steps if step == "RUN" and "pip" in words)
    assert install.count("-c constraints.txt") == install.count("pip install") == 2
    torch = re.search(r"^torch==.*", (ROOT / "constraints.txt").read_text(), re.M)[0]
    assert torch in install and stat.S_ISREG((ROOT / "Dockerfile").stat().st_mode)
