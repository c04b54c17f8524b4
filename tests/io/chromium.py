"""A headless Chromium for tests, driven over its debugging pipe.

The DevTools protocol goes through two pipes as JSON messages that end in a zero
byte, so nothing but the browser itself is needed. Chromium is looked for in
$CHROMIUM, then under its usual names.
"""

import base64
import io
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import time

import numpy as np
from PIL import Image

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
  "--headless=new",
  "--no-sandbox",
  "--no-first-run",
  "--disable-quic",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-extensions",
  "--hide-scrollbars",
  "--use-angle=swiftshader",
  "--enable-unsafe-swiftshader",
  "--remote-debugging-pipe",
)
# Chromium talks on descriptors 3 and 4; an exec keeps one process.
_LAUNCHER = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
  """The path of a Chromium or Chrome, if there is one."""
  names = (os.environ.get("CHROMIUM", ""), *_NAMES)
  paths = (shutil.which(name) for name in names if name)
  return next(filter(None, paths), None)


class Page:
  """One page of a separate browser; use as a context manager."""

  def __init__(
    self,
    executable: str,
    profile: pathlib.Path,
    *,
    width: int = 1280,
    height: int = 800,
    flags: tuple[str, ...] = (),
    timeout: float = 240.0,
  ):
    self.timeout = timeout
    self.problems: list[str] = []
    self._width, self._height = width, height
    self._buffer = b""
    self._next_id = 0
    self._events: list[dict] = []
    self._session = None
    to_browser, self._write = os.pipe()
    self._read, from_browser = os.pipe()
    self._process = subprocess.Popen(
      [
        sys.executable,
        "-c",
        _LAUNCHER,
        str(to_browser),
        str(from_browser),
        executable,
        *_FLAGS,
        *flags,
        f"--user-data-dir={profile}",
        "about:blank",
      ],
      pass_fds=(to_browser, from_browser),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)

  def __enter__(self):
    targets = self.call("Target.getTargets")["targetInfos"]
    page = next(target for target in targets if target["type"] == "page")
    self._session = self.call(
      "Target.attachToTarget", targetId=page["targetId"], flatten=True
    )["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")
    self.resize(self._width, self._height)
    return self

  def __exit__(self, *_):
    self._session = None
    try:
      self.call("Browser.close")
      self._process.wait(10)
    except (OSError, TimeoutError, subprocess.TimeoutExpired):
      self._process.kill()
      self._process.wait()
    os.close(self._read)
    os.close(self._write)

  def call(self, method: str, **params) -> dict:
    """Calls a method of the DevTools protocol and waits for its answer."""
    self._next_id += 1
    message = {"id": self._next_id, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._write, json.dumps(message).encode() + b"\0")
    deadline = time.monotonic() + self.timeout
    while True:
      answer = self._receive(deadline)
      if answer.get("id") == message["id"]:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

  def open(self, path: pathlib.Path) -> None:
    """Opens a file by its file:// address and waits until it is loaded."""
    self.call("Page.navigate", url=path.resolve().as_uri())
    self.wait_for("document.readyState === 'complete'")

  def evaluate(self, expression: str):
    """The value of a JavaScript expression."""
    answer = self.call(
      "Runtime.evaluate",
      expression=expression,
      returnByValue=True,
      awaitPromise=True,
    )
    if "exceptionDetails" in answer:
      raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
    return answer["result"].get("value")

  def wait_for(self, expression: str) -> None:
    deadline = time.monotonic() + self.timeout
    while not self.evaluate(expression):
      if time.monotonic() > deadline:
        raise TimeoutError(f"still false: {expression}; {self.problems}")
      time.sleep(0.1)

  def click(self, selector: str) -> None:
    """Presses and releases the mouse on the middle of an element."""
    x, y, width, height = self.rectangle(selector)
    self.drag((x + width / 2, y + height / 2), (0, 0))

  def drag(
    self,
    start: tuple[float, float],
    distance: tuple[float, float],
    button: str = "left",
  ) -> None:
    x, y = start
    mouse = {"button": button, "clickCount": 1}
    held = {**mouse, "buttons": {"left": 1, "right": 2}[button]}
    send = lambda kind, x, y, state: self.call(
      "Input.dispatchMouseEvent", type=kind, x=x, y=y, **state
    )
    send("mousePressed", x, y, held)
    if any(distance):
      for share in (0.5, 1.0):
        place = (x + share * distance[0], y + share * distance[1])
        send("mouseMoved", *place, held)
    send("mouseReleased", x + distance[0], y + distance[1], mouse)

  def press(self, key: str, code: str = "", text: str = "") -> None:
    self.call(
      "Input.dispatchKeyEvent", type="keyDown", key=key, code=code, text=text
    )
    self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=code)

  def resize(self, width: int, height: int, scale: float = 1.0) -> None:
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=scale,
      mobile=width < 500,
    )

  def prefer(self, scheme: str) -> None:
    """Sets the preferred colour scheme: light or dark."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    self.call("Emulation.setEmulatedMedia", features=[feature])

  def rectangle(self, selector: str) -> list[float]:
    """Left, top, width and height of an element."""
    return self.evaluate(
      "(({x, y, width, height}) => [x, y, width, height])"
      f"(document.querySelector({selector!r}).getBoundingClientRect())"
    )

  def screenshot(self) -> np.ndarray:
    """What is on the screen, uint8 [h, w, 3]."""
    data = self.call("Page.captureScreenshot", format="png")["data"]
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    return np.asarray(picture.convert("RGB"))

  def _receive(self, deadline: float) -> dict:
    while b"\0" not in self._buffer:
      left = deadline - time.monotonic()
      if left <= 0 or not select.select([self._read], [], [], left)[0]:
        raise TimeoutError("the browser does not answer.")
      part = os.read(self._read, 1 << 20)
      if not part:
        raise OSError("the browser has ended.")
      self._buffer += part
    message, self._buffer = self._buffer.split(b"\0", 1)
    answer = json.loads(message)
    self._note_problem(answer)
    return answer

  def _note_problem(self, event: dict) -> None:
    """Records errors of the console."""
    method, params = event.get("method"), event.get("params", {})
    if method == "Runtime.exceptionThrown":
      details = params["exceptionDetails"]
      thrown = details.get("exception", {}).get("description", "")
      self.problems.append(f"{details['text']} {thrown}")
    elif method == "Runtime.consoleAPICalled":
      if params["type"] in ("error", "warning", "assert"):
        self.problems.append(str(params["args"]))
    elif method == "Log.entryAdded":
      if params["entry"]["level"] in ("error", "warning"):
        self.problems.append(str(params["entry"]))
    elif method == "Network.requestWillBeSent":
      url = params["request"]["url"]
      if not url.startswith(("file:", "data:", "blob:")):
        self.problems.append(f"the page asked for {url}")
