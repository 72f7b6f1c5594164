"""An Orthanc of one's own on loopback, from Debian's packages orthanc and orthanc-dicomweb."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

PLUGIN = next(Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*"), None)
ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def orthanc(folder, **more):
    """Run an archive that keeps its films in a folder: gives the address of its pages, and the port of its DICOM service.

    ``more`` are further settings of Orthanc.
    """
    web, dicom = free_port(), free_port()
    settings = {"StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "Plugins": [str(PLUGIN)]}
    settings |= {"HttpPort": web, "DicomPort": dicom, "RemoteAccessAllowed": False, "AuthenticationEnabled": False}
    settings |= {"DicomAlwaysAllowStore": True, "DicomCheckCalledAet": False, "HttpBindAddresses": ["127.0.0.1"]}
    settings |= more
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with open(folder / "orthanc.log", "wb") as log:
        process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{web}/system", timeout=5)
                break
            except urllib.error.HTTPError:  # it wants a login
                break
            except OSError:
                assert process.poll() is None, (folder / "orthanc.log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{web}", dicom
    finally:
        process.terminate()
        process.wait(30)
