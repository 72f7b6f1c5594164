import errno
import json
import os
import random
import shutil
import stat
from pathlib import Path

import pytest
import torch

from monai_diffeo.canonicalize import fit_statistics, load_canonicalizer
from monai_diffeo.errors import OutputError, WeightsError
from monai_diffeo.files import check_sha256, record_sha256, sha256_below, sha256_of, write_atomically
from monai_diffeo.networks import load_weights
from tests.helpers import canonicalizer_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bundle(tmp_path):
    """A bundle with a small network and a canonicaliser, and the SHA-256 of all of it."""
    (tmp_path / "b" / "configs").mkdir(parents=True)
    (tmp_path / "b" / "configs" / "metadata.json").write_text('{\n    "version": "1",\n    "shape": [1, 2]\n}\n')
    canonicalizer_folder(tmp_path / "b" / "models" / "energy")
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "b" / "models" / "model.pt")
    record_sha256(tmp_path / "b")
    return tmp_path / "b"


def load_all(bundle, mode=None):
    load_canonicalizer(bundle / "models" / "energy", mode)
    load_weights(torch.nn.Linear(3, 2), bundle / "models" / "model.pt")


def test_every_flipped_bit_in_a_bundle_is_seen(bundle):
    load_all(bundle)
    draw, files = random.Random(0), sorted(path for path in (bundle / "models").rglob("*") if path.is_file())
    assert len(files) == 6
    for number in range(60):
        path, content = files[number % 6], files[number % 6].read_bytes()
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
        with pytest.raises(WeightsError, match=f"{path.name} must have the SHA-256 .* copy it again"):
            load_all(bundle, ("single_pass", "refine", "faithful")[number % 3])
        path.write_bytes(content)
    load_all(bundle)


def test_the_error_names_both_hashes_and_its_remedy_works(bundle):
    before = sha256_of(bundle / "models" / "model.pt")
    torch.save(torch.nn.Linear(3, 2).state_dict(), bundle / "models" / "model.pt")
    with pytest.raises(WeightsError) as error:
        load_weights(torch.nn.Linear(3, 2), bundle / "models" / "model.pt")
    assert before in str(error.value) and sha256_of(bundle / "models" / "model.pt") in str(error.value)
    exec(str(error.value).split('python -c "')[1].rstrip('"'))
    load_all(bundle)


def test_only_what_is_recorded_changes_and_the_rest_of_the_metadata_stays_as_it_is(bundle):
    path = bundle / "configs" / "metadata.json"
    assert path.read_text().startswith('{\n    "version": "1",\n    "shape": [1, 2],\n    "sha256": {\n')
    before = json.loads(path.read_text())["sha256"]
    (bundle / "models" / "model.pt").write_bytes(b"new")
    (bundle / "models" / "energy" / "vae.pt").write_bytes(b"damaged")
    record_sha256(bundle / "models" / "model.pt")
    after = json.loads(path.read_text())["sha256"]
    assert {name for name in before if before[name] != after[name]} == {"models/model.pt"} and set(before) == set(after)
    (bundle / "models" / "model.pt").unlink()
    record_sha256(bundle / "models" / "energy")
    assert json.loads(path.read_text())["sha256"] == {
        f"models/energy/{n}": h for n, h in sha256_below(bundle / "models" / "energy").items()
    }


def test_statistics_that_are_fitted_anew_are_recorded(bundle):
    fit_statistics(bundle / "models" / "energy", [torch.rand(8, 1, 32, 32)])
    load_all(bundle)


def test_what_lies_in_no_bundle_or_is_not_listed_is_not_checked(bundle, tmp_path):
    shutil.copytree(bundle / "models" / "energy", tmp_path / "alone")
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "mine.pt")
    torch.save(torch.nn.Linear(3, 2).state_dict(), bundle / "models" / "mine.pt")
    load_weights(torch.nn.Linear(3, 2), tmp_path / "mine.pt")
    load_weights(torch.nn.Linear(3, 2), bundle / "models" / "mine.pt")
    state = torch.load(tmp_path / "alone" / "vae.pt", weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, tmp_path / "alone" / "vae.pt")
    load_canonicalizer(tmp_path / "alone")


def test_the_recorded_hashes_count_from_wherever_the_bundle_is_run(bundle, monkeypatch):
    (bundle / "models" / "model.pt").write_bytes(b"damaged")
    monkeypatch.chdir(bundle)
    for path in ("./models/model.pt", "models", ".", "configs/../models/model.pt"):
        with pytest.raises(WeightsError, match="models/model.pt"):
            check_sha256(path)
    monkeypatch.chdir(bundle / "models")
    with pytest.raises(WeightsError, match="models/model.pt"):
        check_sha256("model.pt")


def test_damaged_metadata_is_no_way_round(bundle):
    (bundle / "configs" / "metadata.json").write_bytes(b'{"sha256": {')
    with pytest.raises(WeightsError, match="cannot read metadata.json"):
        load_all(bundle)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs the names of open files")
def test_a_file_and_its_folder_are_on_the_disk_before_it_is_said(tmp_path, monkeypatch):
    calls, sync, replace = [], os.fsync, os.replace

    def synced(handle):
        calls.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("rename", str(a), str(b))), replace(a, b)))
    write_atomically(tmp_path / "new" / "mask", b"x")
    ((_, part), rename, folder) = calls
    assert rename == ("rename", part, str(tmp_path / "new" / "mask")) and folder == ("sync", str(tmp_path / "new"))


@pytest.mark.parametrize(
    "number, says",
    [
        (errno.ENOSPC, "The disk is full. Make room"),
        (errno.EDQUOT, "The disk is full. Make room"),
        (errno.EROFS, "may not be written to. Check its permissions"),
        (errno.EACCES, "may not be written to. Check its permissions"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.EIO, r"\(EIO\)"),
    ],
)
def test_what_stops_a_write_is_said_and_the_old_file_stays(tmp_path, monkeypatch, number, says):
    write_atomically(tmp_path / "mask", b"old")

    def fail(*args):
        raise OSError(number, "secret")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=says) as error:
        write_atomically(tmp_path / "mask", b"new")
    assert error.value.__cause__ is None and "secret" not in str(error.value)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_permissions_hold_from_the_first_byte(tmp_path, monkeypatch):
    modes, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (modes.append(stat.S_IMODE(os.fstat(handle).st_mode)), sync(handle)))
    assert stat.S_IMODE(write_atomically(tmp_path / "secret", b"x", mode=0o600).stat().st_mode) == 0o600 == modes[0]


@pytest.mark.parametrize("bundle", sorted((ROOT / "bundles").iterdir()), ids=lambda path: path.name)
def test_the_metadata_of_our_bundles_is_up_to_date(bundle):
    listed = json.loads((bundle / "configs" / "metadata.json").read_text())["sha256"]
    assert listed == {f"models/{name}": value for name, value in sha256_below(bundle / "models").items()}
