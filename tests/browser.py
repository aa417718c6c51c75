"""A headless Chromium that opens pages from disk, spoken to over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
needs_chromium = pytest.mark.skipif(
    PROGRAM is None, reason=f"needs a Chromium: none of {', '.join(NAMES)} is installed"
)
# WebGL without a graphics card. A sandbox needs rights that containers lack; the pages are our own.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip
PATIENCE = 120  # seconds until a condition that does not come is a failure
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Enter": 13, "Escape": 27, " ": 32}


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser whose profile and downloads lie in `folder`."""
    profile = folder / "profile"
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [str(PROGRAM), *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        opened = profile / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE
        while not (opened.exists() and opened.read_text().count("\n")):
            assert process.poll() is None, (folder / "chromium.log").read_text(errors="replace")
            assert time.monotonic() < end, "Chromium opened no port"
            time.sleep(0.05)
        port = int(opened.read_text().splitlines()[0])
        browser = Browser(port, folder / "downloads")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Browser:
    """One tab. Commands wait for their answer; what happens meanwhile is kept.

    Attributes:
        requests: addresses that the page asked for, data and blob URIs left out.
        errors: uncaught exceptions, console errors and warnings, and what the browser logs as an error.
        downloads: the folder that they go to.
    """

    def __init__(self, port: int, downloads: Path) -> None:
        self.downloads = downloads
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self._loop.run_until_complete(self._connect(port))
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        downloads.mkdir()
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            tabs = await answer.json(content_type=None)
        address = next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page")
        self._socket = await self._session.ws_connect(address, max_msg_size=0, heartbeat=None)

    def close(self) -> None:
        """Let go of the tab."""

        async def end() -> None:
            await self._socket.close()
            await self._session.close()

        self._loop.run_until_complete(end())
        self._loop.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol and its result."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, params), 2 * PATIENCE))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        number = self._number
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(await self._socket.receive_str())
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message.get('error')}"
                return message["result"]
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, what: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            url = what["request"]["url"]
            if not url.startswith(("data:", "blob:")):
                self.requests.append(url)
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(what["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(what["args"]))
        elif event == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.errors.append(json.dumps(what["entry"]))

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file from disk in a window of this size and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call(
            "Emulation.setEmulatedMedia", features=[scheme, {"name": "prefers-reduced-motion", "value": "reduce"}]
        )
        self.js("globalThis.pageBefore = true")
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("!globalThis.pageBefore && document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until the condition holds in the page."""
        end = time.monotonic() + PATIENCE
        while not self.js(f"!!({condition})"):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.02)

    def settle(self) -> None:
        """Until what the page asked for is drawn."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def press(self, key: str, times: int = 1) -> None:
        """A key, to whatever has the focus."""
        code = {"windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper()))}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text, **code)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **code)

    def pixels(self, selector: str) -> np.ndarray:
        """What an element looks like: [H, W, 3] int."""
        self.js(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        self.settle()
        place = f"(r => [r.x + scrollX, r.y + scrollY, r.width, r.height])(document.querySelector({selector!r})"
        x, y, width, height = self.js(f"{place}.getBoundingClientRect())")
        return self.shot(x, y, width, height)

    def shot(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """A part of the page: [H, W, 3] int."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def download(self, click: str) -> bytes:
        """Click on what gives a file, and return the file."""
        before = set(self.downloads.iterdir())
        self.js(f"document.querySelector({click!r}).click()")
        end = time.monotonic() + PATIENCE
        while not (new := [p for p in self.downloads.iterdir() if p not in before and p.suffix != ".crdownload"]):
            self.settle()  # also takes in what the browser tells
            assert time.monotonic() < end, f"{click} gave no file"
            time.sleep(0.02)
        return new[0].read_bytes()
