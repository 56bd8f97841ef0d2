"""A headless Chromium, driven by its DevTools protocol over two pipes: opens pages, runs scripts, clicks, takes
pictures.

It must not know which pages.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tests.support.processes import wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
)
EXEC = """
import os, sys
from fcntl import F_DUPFD_CLOEXEC, fcntl
ends = [fcntl(int(end), F_DUPFD_CLOEXEC, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Become the program, with pipes as its file descriptors 3, where it reads, and 4, where it writes."""
START, REPLY = 30.0, 15.0
"""Seconds for the first reply, and for others."""


def program() -> str | None:
    """The browser's, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page. A reply that does not come, or that tells of an error, is an AssertionError."""

    def __init__(self, program: str, folder: Path, headers: Mapping[str, str] | None, size: tuple[int, int]) -> None:
        reader, to_browser = os.pipe()
        from_browser, writer = os.pipe()
        command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"]
        with (folder / "browser.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-ISc", EXEC, str(reader), str(writer), *command, "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reader, writer),
                start_new_session=True,
                env={**os.environ, "TZ": "UTC", "HOME": str(folder)},
            )
        os.close(reader)
        os.close(writer)
        self._out = os.fdopen(to_browser, "wb", buffering=0)
        self._messages: Queue[dict[str, Any] | None] = Queue()
        self._in = os.fdopen(from_browser, "rb")
        self._reader = threading.Thread(target=self._read, name="browser", daemon=True)
        self._reader.start()
        self._count = 0
        self._session: str | None = None
        targets = self._call("Target.getTargets", timeout=START)["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self._call("Network.enable")
        self._call("Network.setExtraHTTPHeaders", headers=dict(headers or {}))

    def open(self, url: str) -> None:
        """Load a page, to its end."""
        answer = self._call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        self.wait(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'", url)

    def run(self, script: str) -> Any:
        """The value of an expression, as JSON has it; promises are waited for."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, script: str, what: str, timeout: float = 10.0) -> Any:
        """The expression's first value that is true."""

        def ask() -> Any:
            with suppress(AssertionError):  # also while the page is being replaced
                return self.run(script)
            return None

        return wait_until(ask, f"{what} in the browser", timeout, interval=0.05)

    def click(self, selector: str) -> None:
        """Press the mouse's button on what is seen in the middle of the element, whatever that is."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()"
        self.wait(f"document.querySelector({json.dumps(selector)})", selector)
        place = self.run(box)
        at = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def source(self) -> str:
        """The whole page, as it is now."""
        return str(self.run("document.documentElement.outerHTML"))

    def picture(self, file: Path) -> None:
        """A PNG of what is seen."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End it, with all of its processes."""
        with suppress(OSError):
            self._out.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5)
        self._in.close()

    def _call(self, method: str, *, timeout: float = REPLY, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            try:
                answer = self._messages.get(timeout=timeout)
            except Empty:
                raise AssertionError(f"the browser did not answer {method} within {timeout:g} s") from None
            assert answer is not None, f"the browser has ended: {method}"
            if answer.get("id") == self._count:  # others are events
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> None:
        for message in _messages(self._in.read1):
            self._messages.put(message)
        self._messages.put(None)


def _messages(read: Callable[[int], bytes]) -> Iterator[dict[str, Any]]:
    # Each has a zero byte behind it.
    rest = b""
    while chunk := read(1 << 16):
        *whole, rest = (rest + chunk).split(b"\0")
        for one in whole:
            yield json.loads(one)


@contextmanager
def browsing(
    program: str, folder: Path, headers: Mapping[str, str] | None = None, size: tuple[int, int] = (1520, 1000)
) -> Iterator[Browser]:
    """A browser with a new profile in this folder, which sends these headers with every request."""
    browser = Browser(program, folder, headers, size)
    try:
        yield browser
    finally:
        browser.close()
