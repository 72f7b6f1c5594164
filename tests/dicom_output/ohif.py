"""The viewer OHIF: its built pages from the npm registry, served beside an archive. ``python ohif.py`` fetches the pages."""

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

VERSION = "3.13.2"
PAGES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai_diffeo" / f"ohif-{VERSION}"
ARCHIVE = "/dicom-web"
SOURCE = dict.fromkeys(("wadoUriRoot", "qidoRoot", "wadoRoot"), ARCHIVE)
SOURCE |= {"name": "archive", "friendlyName": "archive", "imageRendering": "wadors", "thumbnailRendering": "wadors"}
SOURCE |= {"supportsWildcard": True, "bulkDataURI": {"enabled": True, "relativeResolution": "studies"}}
CONFIG = {
    "routerBasename": "/",
    "extensions": [],
    "modes": [],
    "maxNumberOfWebWorkers": 1,
    "showStudyList": False,
    "disableConfirmationPrompts": True,
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "archive",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "archive",
            "configuration": SOURCE,
        }
    ],
}
KINDS = {".js": "text/javascript", ".html": "text/html", ".css": "text/css", ".wasm": "application/wasm"}


def fetch(seconds=300):
    """Put the pages into PAGES, if they are not there; networks for drawing masks by hand, 130 MB, are left out."""
    if PAGES.is_dir():
        return
    PAGES.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PAGES.parent) as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"@ohif/app@{VERSION}"]
        subprocess.run(command, cwd=folder, check=True, timeout=seconds, stdout=subprocess.DEVNULL)
        (packed,) = Path(folder).glob("*.tgz")
        with tarfile.open(packed) as pack:
            wanted = [m for m in pack if m.isfile() and m.name.startswith("package/dist/") and "/dist/ort/" not in m.name]
            pack.extractall(folder, wanted, filter="data")
        shutil.move(Path(folder) / "package" / "dist", PAGES)


class Handler(http.server.BaseHTTPRequestHandler):
    """Pages of the viewer, and the archive below ``/dicom-web``."""

    archive = ""

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith(f"{ARCHIVE}/"):
            wanted = urllib.request.Request(self.archive + self.path, headers={"Accept": self.headers.get("Accept", "*/*")})
            try:
                answer = urllib.request.urlopen(wanted, timeout=60)
            except urllib.error.HTTPError as error:
                answer = error
            self.answer(answer.status, answer.headers.get("Content-Type", "text/plain"), answer.read())
        elif path == "/app-config.js":
            self.answer(200, "text/javascript", f"window.config = {json.dumps(CONFIG)};".encode())
        else:
            file = (PAGES / path.lstrip("/")).resolve()
            file = file if file.is_relative_to(PAGES) and file.is_file() else PAGES / "index.html"
            self.answer(200, KINDS.get(file.suffix, "application/octet-stream"), file.read_bytes())

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def viewer(archive):
    """Serve the viewer of an archive on loopback: gives its address."""
    handler = type("ArchiveHandler", (Handler,), {"archive": archive})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


SHOWN = "window.services?.cornerstoneViewportService?.getCornerstoneViewport('default')"


def open_study(page, address, study):
    """Open a study in the viewer; waits until it shows a film."""
    page("Page.addScriptToEvaluateOnNewDocument", source="localStorage.setItem('shownTours', '[\"basicViewerTour\"]')")
    page("Page.navigate", url=f"{address}/viewer?StudyInstanceUIDs={study}")
    page.wait(f"{SHOWN}?.getCurrentImageId?.()")


def show_seg(page, seg):
    """Show a SEG of the study over its film, by a double click on its name, as a reader does; waits until both are shown."""
    found = f"window.services.displaySetService.getActiveDisplaySets().find(set => set.SeriesInstanceUID === '{seg}')"
    entry = f"""(() => {{
        const entry = document.getElementById('thumbnail-' + {found}?.displaySetInstanceUID)
        entry?.scrollIntoView()
        const box = entry?.getBoundingClientRect()
        return box && [box.x + box.width / 2, box.y + box.height / 2]
    }})()"""
    page.click(*page.wait(entry), times=2)
    parts = "window.services.segmentationService.getSegmentationRepresentations('default')[0]"
    film = f"window.services.displaySetService.getDisplaySetByUID({found}.referencedDisplaySetInstanceUID)"
    page.wait(f"{parts}?.segmentationId === {found}.displaySetInstanceUID")
    page.wait(f"{SHOWN}?.getCurrentImageId?.()?.includes({film}.SeriesInstanceUID)")


if __name__ == "__main__":
    fetch()
