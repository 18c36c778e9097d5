"""Drives a headless Chromium through its DevTools protocol, to do from Python what a user does on a page."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websocket import WebSocket, create_connection

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0",
    "--remote-allow-origins=*", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
_PATIENCE = 60.0  # seconds; other work may keep the cores busy


class PageError(Exception):
    """The page's script raised something, or what was waited for did not come."""


class Tab:
    """One tab.

    Args:
        socket: of its DevTools target.
    """

    def __init__(self, socket: WebSocket):
        self._socket, self._number = socket, 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))
            elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])
            if message.get("id") == self._number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']['message']}")
                return message["result"]

    def go(self, address: str) -> None:
        """Opens an address and waits for the page."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise PageError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, condition: str, *, seconds: float = _PATIENCE) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise PageError(f"waited {seconds:g} s for {condition}; errors: {self.errors}")
            time.sleep(0.02)

    def press(self, key: str, *, modifiers: int = 0, code: int = 0) -> None:
        """A key, pressed and let go. Modifiers: 2 Control, 8 Shift."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=modifiers, windowsVirtualKeyCode=code)

    def size(self, width: int, height: int) -> None:
        """The size of the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


class Browser:
    """A running Chromium.

    Args:
        port: of its DevTools.
    """

    def __init__(self, port: int):
        self._port, self._sockets = port, list[WebSocket]()

    def tab(self) -> Tab:
        """A new tab."""
        with urlopen(f"http://127.0.0.1:{self._port}/json/version") as answer:
            browser = create_connection(json.load(answer)["webSocketDebuggerUrl"], timeout=_PATIENCE)
        with contextlib.closing(browser):
            browser.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
            while "result" not in (message := json.loads(browser.recv())):
                pass
        address = f"ws://127.0.0.1:{self._port}/devtools/page/{message['result']['targetId']}"
        self._sockets.append(create_connection(address, timeout=_PATIENCE))
        return Tab(self._sockets[-1])

    def close(self) -> None:
        """Lets go of all tabs."""
        for socket in self._sockets:
            socket.close()


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A Chromium of its own, which ends with the `with` block.

    Args:
        profile: a new folder; downloads go to it as well.

    Raises:
        PageError: there is none, or it does not start.
    """
    if not EXECUTABLE:
        raise PageError("no Chromium or Chrome is installed")
    mark = profile / "DevToolsActivePort"
    command = [EXECUTABLE, *_FLAGS, f"--user-data-dir={profile}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + _PATIENCE
            while not (mark.exists() and mark.read_text().strip()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise PageError(f"{EXECUTABLE} does not start headless here")
                time.sleep(0.05)
            browser = Browser(int(mark.read_text().split()[0]))
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.kill()
