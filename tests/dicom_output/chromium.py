"""Chromium without a window, driven by its DevTools protocol over two pipes: no package is needed, and no port is open."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium")
FLAGS = "--headless=new --no-sandbox --remote-debugging-pipe --use-angle=swiftshader --enable-unsafe-swiftshader --no-first-run"
FLAGS += " --disable-dev-shm-usage --disable-component-update --disable-background-networking --force-device-scale-factor=1"
LOOPBACK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # no page reaches anything else


class Page:
    """The page of a browser that listens on one file descriptor and answers on another."""

    def __init__(self, to, answers):
        self.to, self.answers, self.number, self.session, self.said = to, answers, 0, None, []
        (target,) = (t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        """Call a method of the protocol and give its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.to.write(json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            if answer.get("method") == "Runtime.exceptionThrown" or answer.get("params", {}).get("type") == "error":
                self.said.append(json.dumps(answer["params"])[:500])
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self):
        text = bytearray()
        while not text.endswith(b"\0"):
            assert (part := self.answers.read(1)), "Chromium has ended"
            text += part
        return json.loads(text[:-1])

    def value(self, script):
        """Value of a JavaScript expression; a promise is awaited."""
        answer = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script, seconds=90):
        """The first value of an expression that is true."""
        end = time.monotonic() + seconds
        while not (value := self.value(script)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}\n" + "\n".join(self.said[-5:])
            time.sleep(0.2)
        return value

    def click(self, x, y, times=1):
        """Click at a place of the page, in pixels."""
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=count)

    def picture(self):
        """A PNG of the page."""
        return base64.b64decode(self("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def chromium(folder, width=1280, height=800):
    """Run a browser that keeps its profile in a folder: gives its page."""
    there, to = os.pipe()
    answers, back = os.pipe()
    command = ["bash", "-c", f'exec "$@" 3<&{there} 4>&{back}', "bash", CHROMIUM, *FLAGS.split(), LOOPBACK]
    command += [f"--user-data-dir={folder}", f"--window-size={width},{height}", "about:blank"]
    process = subprocess.Popen(command, pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(there)
    os.close(back)
    try:
        with os.fdopen(to, "wb", 0) as writes, os.fdopen(answers, "rb") as reads:
            yield Page(writes, reads)
    finally:
        process.terminate()
        process.wait(30)
