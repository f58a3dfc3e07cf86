"""A headless Chromium driven through its debugging pipe: real clicks, keys, schemes and screenshots."""

import base64
import json
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Page:
    """One page in one browser. Messages go over a pipe as JSON, each ended by a zero byte."""

    def __init__(
        self, program: str, profile: Path, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        ours, theirs = os.pipe(), os.pipe()  # (read, write) of what we say, and of what it says
        flags = [
            "--headless=new",
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-pipe",
            "--hide-scrollbars",
        ]
        flags += [f"--user-data-dir={profile}", "--disable-dev-shm-usage"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to run as root otherwise

        def connect() -> None:  # the browser reads from descriptor 3 and writes to 4
            read, write = os.dup(ours[0]), os.dup(theirs[1])
            high_read, high_write = os.dup(read), os.dup(write)
            os.dup2(high_read, 3)
            os.dup2(high_write, 4)

        self.browser = subprocess.Popen(
            [program, *flags, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            pass_fds=(3, 4),
        )
        os.close(ours[0])
        os.close(theirs[1])
        self.out, self.incoming = ours[1], theirs[0]
        self.buffer, self.number = b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.size(width, height)
        self.scheme("dark" if dark else "light")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.browser.terminate()
        self.browser.wait(timeout=20)
        os.close(self.out)
        os.close(self.incoming)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            got = os.read(self.incoming, 1 << 20)
            if not got:
                raise RuntimeError("the browser closed the connection")
            self.buffer += got
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def size(self, width: int, height: int, ratio: float = 1) -> None:
        shape: dict[str, Any] = {"width": width, "height": height, "deviceScaleFactor": ratio}
        self.send("Emulation.setDeviceMetricsOverride", mobile=False, **shape)

    def scheme(self, name: str) -> None:
        """Prefer "light" or "dark"."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def open(self, address: str) -> None:
        """Load an address afresh and wait until the page has drawn itself or failed."""
        self.send("Page.navigate", url="about:blank")
        self.run("1")
        self.events.clear()
        self.send("Page.navigate", url=address)
        self.wait("document.documentElement?.dataset.ready || document.documentElement?.dataset.error")

    def open_clean(self, address: str) -> None:
        """Load an address, and fail if anything went wrong on the way."""
        self.open(address)
        assert self.errors() == []

    def wait(self, condition: str, seconds: float = 20) -> Any:
        """Wait until a JavaScript expression is true, and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(condition)
            if value:
                return value
            time.sleep(0.03)
        raise TimeoutError(f"{condition!r} did not come true within {seconds} s")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def centre(self, selector: str) -> tuple[float, float]:
        """The middle of the first element that matches, scrolled into view."""
        left, top, width, height = self.run(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
            "node.scrollIntoView({ block: 'center', behavior: 'instant' });"
            "const box = node.getBoundingClientRect();"
            "return [box.left, box.top, box.width, box.height] })()"
        )
        return left + width / 2, top + height / 2

    def hover(self, selector: str) -> None:
        self.move(*self.centre(selector))

    def move(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.frame()

    def click(self, selector: str) -> None:
        x, y = self.centre(selector)
        self.click_at(x, y)

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.frame()

    def press(self, key: str) -> None:
        """Press and release a key by its name, such as ArrowRight or Enter."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {"Enter": 13, " ": 32, "Tab": 9}.get(key, 0)
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, windowsVirtualKeyCode=code)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)
        self.frame()

    def frame(self) -> None:
        """Let the page draw what the last event asked for."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def data(self, name: str) -> str | None:
        """A data attribute of the document."""
        return self.run(f"document.documentElement.dataset[{json.dumps(name)}] ?? null")

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def requests(self) -> list[str]:
        """The addresses of all requests so far."""
        return [params["request"]["url"] for params in self._heard("Network.requestWillBeSent")]

    def errors(self) -> list[str]:
        """What went wrong in scripts, or was refused and logged, so far."""
        thrown = [str(params["exceptionDetails"]) for params in self._heard("Runtime.exceptionThrown")]
        refused = [
            params["entry"]["text"] for params in self._heard("Log.entryAdded") if params["entry"]["level"] == "error"
        ]
        said = self.data("error")
        return thrown + refused + ([said] if said else [])

    def _heard(self, method: str) -> list[dict[str, Any]]:
        """What the browser told us of its own accord since the last page was opened."""
        self.run("1")  # an answer comes after whatever was said before it
        return [event["params"] for event in self.events if event.get("method") == method]

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
