"""The page in a real browser: an image is dropped, and label, probabilities and heat map appear."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1000,800"),
    "--remote-debugging-pipe",
]

DROP = """
(async () => {
  const bytes = Uint8Array.from(atob(%s), (c) => c.charCodeAt(0));
  document.getElementById("result").hidden = true;
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "image.png", { type: "image/png" }));
  dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
  const done = () => document.getElementById("error").textContent || !document.getElementById("result").hidden;
  for (let turn = 0; turn < 200 && !done(); turn++) await new Promise((resolve) => setTimeout(resolve, 50));
  const canvas = document.getElementById("canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return {
    label: document.querySelector(".label")?.textContent,
    rows: [...document.querySelectorAll(".row")].map((row) => row.textContent),
    error: document.getElementById("error").textContent,
    size: [canvas.width, canvas.height],
    drawn: pixels.some((value) => value > 0),
    heading: document.querySelector("h1").textContent,
    broken: document.documentElement.scrollWidth > innerWidth,
  };
})()
"""


class Browser:
    """A page of headless Chromium, driven by the DevTools protocol over a pair of pipes."""

    def __init__(self, to, back):
        self._to, self._back, self._last, self._session = to, back, 0, None

    def call(self, method, **params):
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            reply = json.loads(self._read())
            if reply.get("id") == self._last:
                assert "error" not in reply, reply
                return reply["result"]

    def _read(self):
        parts = b""
        while not parts.endswith(b"\0"):
            part = os.read(self._back, 1)
            assert part, "the browser has gone"
            parts += part
        return parts[:-1]

    def open(self, url):
        target = self.call("Target.createTarget", url=url)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for _ in range(200):
            if self.evaluate("location.href !== 'about:blank' && document.readyState === 'complete'"):
                return
            time.sleep(0.05)
        raise AssertionError(f"{url} does not load")

    def evaluate(self, expression):
        reply = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def take_image(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browsing():
    there, back = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads from descriptor 3 and writes to 4.
        redirect = f'exec "$0" "$@" 3<&{there[0]} 4>&{back[1]}'
        command = ["bash", "-c", redirect, CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            command, pass_fds=(there[0], back[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield Browser(there[1], back[0])
        finally:
            process.kill()
            process.wait()
            for descriptor in (*there, *back):
                os.close(descriptor)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.slow
def test_a_dropped_image_shows_label_probabilities_and_heat_map(rest, samples, tmp_path):
    image = base64.b64encode(samples[0][0]).decode()
    with browsing() as browser:
        browser.open(rest)
        seen = browser.evaluate(DROP % json.dumps(image))
        browser.take_image(Path(os.environ.get("TLKERAS_SCREENSHOT") or tmp_path / "page.png"))
        assert seen["error"] == ""
        assert seen["label"] in ("day", "night")
        assert len(seen["rows"]) == 2 and seen["rows"][0].startswith(seen["label"]) and "%" in seen["rows"][0]
        assert seen["size"] == [32, 32] and seen["drawn"]
        assert seen["heading"] == "photos version 1" and not seen["broken"]
        refused = browser.evaluate(DROP % json.dumps(base64.b64encode(b"hello").decode()))
        assert "not an image (text)" in refused["error"]
