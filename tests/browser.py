"""Headless Chromium for the tests: what a page is once it is loaded, without a network."""

import asyncio
import json
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"]
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
LOOK = """(() => ({
    width: innerWidth,
    wide: document.documentElement.scrollWidth,
    links: [...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href')),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    images: [...document.querySelectorAll('img')].map(i => [i.alt, i.naturalWidth]),
    tables: [...document.querySelectorAll('div.table')].map(d => [d.scrollWidth - d.clientWidth, d.textContent.trim().slice(0, 60)]),
    formulas: [...document.querySelectorAll('math')].map(m => [m.getBoundingClientRect().width, m.textContent]),
    text: (e => { e.querySelectorAll('script, style, pre, code, annotation').forEach(x => x.remove()); return e.textContent })
        (document.querySelector('main').cloneNode(true)),
}))()"""


class Page:
    """One tab, driven through its debugging socket."""

    def __init__(self, socket: Any):
        self.socket, self.number, self.events = socket, 0, []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.write_message(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await asyncio.wait_for(self.socket.read_message(), 60))
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def evaluate(self, expression: str) -> Any:
        result = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def look(self, url: str, width: int) -> dict[str, Any]:
        """LOOK at the page, and the errors and requests that loading it made."""
        self.events = []
        await self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        await self.send("Page.navigate", url=url)
        while await self.evaluate("document.readyState") != "complete" or await self.evaluate("location.href") != url:
            await asyncio.sleep(0.05)
        seen = await self.evaluate(LOOK)
        kinds = {kind: [event["params"] for event in self.events if event.get("method") == kind] for kind in METHODS}
        errors = [entry["entry"]["text"] for entry in kinds["Log.entryAdded"] if entry["entry"]["level"] == "error"]
        errors += [call["type"] for call in kinds["Runtime.consoleAPICalled"] if call["type"] in ("error", "assert")]
        errors += [thrown["exceptionDetails"]["text"] for thrown in kinds["Runtime.exceptionThrown"]]
        return seen | {"errors": errors, "requests": [sent["request"]["url"] for sent in kinds["Network.requestWillBeSent"]]}


METHODS = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.requestWillBeSent")


@contextmanager
def chromium(program: str, folder: Path):
    """The port of a running browser that keeps its profile in `folder`."""
    command = [program, *FLAGS, NO_NETWORK, f"--user-data-dir={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port, end = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (port.exists() and len(port.read_text().splitlines()) == 2):
            assert process.poll() is None and time.monotonic() < end, f"{program} does not start"
            time.sleep(0.1)
        yield int(port.read_text().splitlines()[0])
    finally:
        process.terminate()
        process.wait(20)


async def look_at(port: int, urls: list[str], widths: tuple[int, ...]) -> dict[tuple[str, int], dict[str, Any]]:
    """(url, width) -> what is there."""
    answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT", body="")
    page = Page(await websocket_connect(json.loads(answer.body)["webSocketDebuggerUrl"], max_message_size=2**28))
    for domain in ("Page", "Runtime", "Log", "Network"):
        await page.send(f"{domain}.enable")
    return {(url, width): await page.look(url, width) for url in urls for width in widths}
