"""A small driver of headless Chromium over the DevTools protocol, with the network cut.

Command line, to look at a page (figures come alive first):
    python tests/browser.py screenshot PAGE OUT.png [--width 1280] [--height 900] [--dark] [--full] [--no-js]
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinetics_lab.book.build import find_chromium

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
]
# Every figure is alive, and drawn for the width that it has.
FIGURES_READY = """[...document.querySelectorAll('figure.kl-chart')].every(f => f.classList.contains('kl-ready')
  && Math.abs(f.clientWidth - f.klWidth) <= 40 && !f.querySelector('.kl-waiting'))"""
# Figures stay the pictures they are until `klStart()` is called.
HOLD = """window.klHeld = new Promise(done => { window.klStart = done; });
window.IntersectionObserver = class extends IntersectionObserver {
  constructor(told, options) { super((seen, me) => window.klHeld.then(() => told(seen, me)), options); } };"""


def lone_page(folder: Path, name: str) -> Path:
    """A page of the book that reckons ("planner"): its HTML and scripts, nothing else; its data lie in ``folder`` already."""
    book = Path(__file__).parent.parent / "book"
    static, page = book / "_static", (book / f"{name}.md").read_text(encoding="utf-8")
    for script in ("law.js", f"{name}.js"):
        (folder / script).write_bytes((static / script).read_bytes())
    body = page.split("```{raw} html\n")[1].split("```")[0].replace("../_static/", "")
    style = "* { box-sizing: border-box } body { margin: 0 } " + (static / "kinetics.css").read_text("utf-8")
    head = f'<!doctype html><meta charset="utf-8"><style>{style}</style>'
    (folder / "index.html").write_text(head + body, encoding="utf-8")
    return folder / "index.html"


class Browser:
    """One Chromium process with a fresh profile; `page` opens tabs in it."""

    def __init__(self) -> None:
        import websocket

        chromium = find_chromium()
        if chromium is None:
            raise FileNotFoundError("no Chromium on this machine (Debian: apt-get install chromium)")
        self.profile = tempfile.mkdtemp(prefix="kl-chromium-")
        self.process = subprocess.Popen(
            [chromium, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            port, path = self._address()
            self.socket = websocket.create_connection(
                f"ws://127.0.0.1:{port}{path}", timeout=180, suppress_origin=True
            )
        except BaseException:
            self.close()
            raise
        self.count = 0
        self.events: dict[str, list[dict[str, Any]]] = {}

    def _address(self) -> tuple[str, str]:
        """Port and path that Chromium chose, from the file it writes once it listens."""
        file = Path(self.profile) / "DevToolsActivePort"
        for _ in range(300):
            if file.is_file() and len(lines := file.read_text().split()) == 2:
                return lines[0], lines[1]
            if self.process.poll() is not None:
                raise RuntimeError(f"Chromium ended at once with status {self.process.returncode}")
            time.sleep(0.1)
        raise TimeoutError("Chromium opened no debugging port within 30 s")

    def command(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events that come meanwhile are kept by session."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            if "method" in answer:
                self.events.setdefault(answer.get("sessionId", ""), []).append(answer)

    @contextlib.contextmanager
    def page(
        self,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        scripts: bool = True,
        hold: bool = False,
    ) -> Iterator[Page]:
        """A tab of the given size in CSS pixels, for the time of a ``with`` block.

        ``scripts`` off is a reader without JavaScript; ``hold`` keeps figures from coming alive until `Page.start`.
        """
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Network", "Runtime", "Log"):
            page.command(f"{domain}.enable")
        page.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.command("Emulation.setEmulatedMedia", features=[scheme])
        if not scripts:
            page.command("Emulation.setScriptExecutionDisabled", value=True)
        if hold:
            page.command("Page.addScriptToEvaluateOnNewDocument", source=HOLD)
        try:
            yield page
        finally:
            self.command("Target.closeTarget", targetId=target)
            self.events.pop(session, None)

    def close(self) -> None:
        """End Chromium and its helpers, remove the profile."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        shutil.rmtree(self.profile, ignore_errors=True)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.command(method, self.session, **params)

    def resize(self, width: int, height: int) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def events(self, method: str) -> list[dict[str, Any]]:
        """Parameters of the events of this kind so far."""
        return [e["params"] for e in self.browser.events.get(self.session, []) if e["method"] == method]

    def goto(self, address: str | Path, timeout: float = 20) -> None:
        """Open a file or an address and wait until it has loaded."""
        url = address.resolve().as_uri() if isinstance(address, Path) else address
        loads = len(self.events("Page.loadEventFired"))
        failed = self.command("Page.navigate", url=url).get("errorText")
        if failed:
            raise RuntimeError(f"{url}: {failed}")
        end = time.monotonic() + timeout
        while len(self.events("Page.loadEventFired")) == loads:
            if time.monotonic() > end:
                raise TimeoutError(f"{url} did not load within {timeout} s")
            time.sleep(0.02)
            self.command("Page.getFrameTree")  # any answer lets waiting events in

    def js(self, expression: str) -> Any:
        """Value of a JavaScript expression (a promise is awaited); a script's error is raised."""
        got = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in got:
            raise RuntimeError(
                f"{expression[:80]}: {got['exceptionDetails'].get('exception', {}).get('description')}"
            )
        return got["result"].get("value")

    def wait(self, expression: str, timeout: float = 10) -> Any:
        """The expression's value as soon as it is true; TimeoutError after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while not (value := self.js(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {timeout} s: {expression}")
            time.sleep(0.03)
        return value

    def mouse(self, x: float, y: float) -> None:
        """Move the pointer there, in two steps as a hand does."""
        for dx in (3, 0):
            self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x - dx, y=y)

    def show_all(self) -> None:
        """Make the tab as tall as its page, so that every figure is in sight, and wait for the figures."""
        size = self.command("Page.getLayoutMetrics")
        self.resize(size["cssLayoutViewport"]["clientWidth"], int(size["cssContentSize"]["height"]) + 1)
        self.wait(FIGURES_READY, 20)

    def start(self) -> None:
        """Let held figures come alive."""
        self.js("window.klStart()")

    def requests(self) -> list[str]:
        """Addresses the page asked for."""
        return [e["request"]["url"] for e in self.events("Network.requestWillBeSent")]

    def errors(self) -> list[str]:
        """Uncaught exceptions, console.error lines and failed loads."""
        thrown = [
            e["exceptionDetails"].get("exception", {}).get("description") or e["exceptionDetails"]["text"]
            for e in self.events("Runtime.exceptionThrown")
        ]
        printed = [
            " ".join(str(a.get("value", a.get("description"))) for a in e["args"])
            for e in self.events("Runtime.consoleAPICalled")
            if e["type"] == "error"
        ]
        logged = [
            f"{e['entry']['text']} {e['entry'].get('url', '')}"
            for e in self.events("Log.entryAdded")
            if e["entry"]["level"] == "error"
        ]
        return thrown + printed + logged

    def screenshot(self, path: str | Path) -> None:
        """Write what the tab shows as a PNG."""
        Path(path).write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Look at a page of the book.")
    shot = parser.add_subparsers(required=True).add_parser("screenshot", help="write a PNG of a page")
    shot.add_argument("page", help="a file or an address")
    shot.add_argument("out", help="the PNG to write")
    shot.add_argument("--width", type=int, default=1280)
    shot.add_argument("--height", type=int, default=900)
    shot.add_argument("--dark", action="store_true", help="as a reader whose system is dark")
    shot.add_argument("--full", action="store_true", help="the whole page, not only the first screen")
    shot.add_argument("--no-js", action="store_true", help="with JavaScript off")
    args = parser.parse_args()
    browser = Browser()
    try:
        with browser.page(args.width, args.height, dark=args.dark, scripts=not args.no_js) as page:
            page.goto(args.page if "://" in args.page else Path(args.page))
            if args.full and args.no_js:
                size = page.command("Page.getLayoutMetrics")["cssContentSize"]
                page.resize(args.width, int(size["height"]) + 1)
            elif args.full:
                page.show_all()
                page.show_all()  # live figures may have changed the height
            time.sleep(0.7)  # equations and fonts settle
            page.screenshot(args.out)
    finally:
        browser.close()


if __name__ == "__main__":
    main()
