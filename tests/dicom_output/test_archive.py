"""A real archive on loopback: films stored, found, segmented, and results stored twice without a duplicate."""

import io
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

for package in ("dicomweb_client", "highdicom", "ignite", "nibabel", "PIL"):
    pytest.importorskip(package)

import highdicom as hd  # noqa: E402
import nibabel  # noqa: E402
import pydicom  # noqa: E402
from dicomweb_client.api import DICOMwebClient  # noqa: E402

from tests.dicom_output.films import film  # noqa: E402
from tests.dicom_output.test_runs import Drawn  # noqa: E402
from tests.report.runs import run  # noqa: E402

PLUGIN = next(Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*"), None)
ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
needs_archive = pytest.mark.skipif(
    not (ORTHANC and PLUGIN and shutil.which("storescu")), reason="needs apt-get install orthanc orthanc-dicomweb dcmtk"
)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def archive(tmp_path, request):
    """Addresses of an Orthanc of its own, with the settings of a parameter: its pages, and the port of its DICOM service."""
    web, dicom = free_port(), free_port()
    settings = {"StorageDirectory": str(tmp_path / "db"), "IndexDirectory": str(tmp_path / "db"), "Plugins": [str(PLUGIN)]}
    settings |= {"HttpPort": web, "DicomPort": dicom, "RemoteAccessAllowed": False, "AuthenticationEnabled": False}
    settings |= {"DicomAlwaysAllowStore": True, "DicomCheckCalledAet": False, "HttpBindAddresses": ["127.0.0.1"]}
    settings |= getattr(request, "param", {})
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with open(tmp_path / "orthanc.log", "wb") as log:
        process = subprocess.Popen([ORTHANC, str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{web}/system", timeout=5)
                break
            except urllib.error.HTTPError:  # it wants a login
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "orthanc.log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{web}", dicom
    finally:
        process.terminate()
        process.wait(30)


def counts(client, address):
    """Instances by modality, as QIDO finds them, and in all, as the archive counts."""
    with urllib.request.urlopen(f"{address}/statistics") as answer:
        total = json.load(answer)["CountInstances"]
    return {m: len(client.search_for_instances(search_filters={"Modality": m})) for m in ("CR", "SEG", "SR", "OT")} | {
        "all": total
    }


@needs_archive
def test_films_go_to_an_archive_and_back_and_results_are_stored_twice_without_duplicates(archive, tmp_path):
    address, port = archive
    client = DICOMwebClient(f"{address}/dicom-web")
    sent = [film(tmp_path / name) for name in ("one.dcm", "two.dcm")]
    subprocess.run(["storescu", "127.0.0.1", str(port), str(sent[0])], check=True, timeout=60)
    client.store_instances([pydicom.dcmread(sent[1])])
    assert counts(client, address) == {"CR": 2, "SEG": 0, "SR": 0, "OT": 0, "all": 2}
    films = tmp_path / "films"
    films.mkdir()
    for number, found in enumerate(client.search_for_instances(search_filters={"Modality": "CR"})):
        uids = [found[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")]
        client.retrieve_instance(*uids).save_as(films / f"{number}.dcm", enforce_file_format=True)
    for number in range(2):
        output = tmp_path / f"out{number}"
        assert run(films, output, kind=Drawn, dicom=True)[0] == 0
        client.store_instances([pydicom.dcmread(path) for path in sorted(output.glob("*.dcm"))])
        assert counts(client, address) == {"CR": 2, "SEG": 2, "SR": 2, "OT": 2, "all": 8}
    for name in ("0", "1"):
        source = pydicom.dcmread(films / f"{name}.dcm")
        (found,) = client.search_for_instances(source.StudyInstanceUID, search_filters={"Modality": "SEG"})
        stored = client.retrieve_instance(*(found[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")))
        stream = io.BytesIO()
        stored.save_as(stream, enforce_file_format=True)
        stream.seek(0)
        pixels = hd.seg.segread(stream).get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)
        mask = np.asarray(nibabel.load(tmp_path / "out0" / f"{name}_lungs.nii.gz").dataobj)[..., 0].T
        assert np.array_equal(pixels[0].max(-1), mask) and mask.any() and not mask.all()
