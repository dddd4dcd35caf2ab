"""A server of the S3 protocol on this machine, and a proxy before it that fails as it is told to."""

import contextlib
import http.client
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_SERVER = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
_SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>'
_DENIED = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'


@dataclass(kw_only=True)
class Fault:
    """What happens to requests.

    Args:
        kind: "drop": the connection is closed unanswered. "lose": the same, after the server has done it. "cut": the
            connection is closed in the middle of the answer. "short": half of the body comes, and its length says so.
            "flip": a bit in the body is another one. "busy": 503. "denied": 403. "stall": nothing comes. "mute": nor a
            word that a body may be sent. "slow": the answer takes its time. "unconditional": the server does not know
            of conditions.
        method: GET, PUT, HEAD or DELETE; "" for all.
        part: What the path contains.
        times: How many requests it happens to.
    """

    kind: str
    method: str = ""
    part: str = ""
    times: int = 1 << 30


class Proxy:
    """Stands before a server, and fails as it is told to.

    Args:
        port: The port of the server on this machine.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.faults: list[Fault] = []
        #: Method and path of every request.
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def fail(self, kind: str, method: str = "", part: str = "", times: int = 1 << 30) -> Fault:
        """Fail from now on."""
        fault = Fault(kind=kind, method=method, part=part, times=times)
        self.faults.append(fault)
        return fault

    def reset(self) -> None:
        """Fail no more."""
        self.faults.clear()
        self.requests.clear()

    def count(self, method: str = "", part: str = "") -> int:
        """How many requests there were."""
        return sum(method in ("", each) and part in path for each, path in self.requests)

    def take(self, method: str, path: str) -> str:
        """What happens to a request."""
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.method in ("", method) and fault.part in path and fault.times > 0:
                    fault.times -= 1
                    return fault.kind
        return ""

    def close(self) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Proxy
    # Clients of S3 wait to be told that they may send a body.
    protocol_version = "HTTP/1.1"

    def handle_expect_100(self) -> bool:
        if any(fault.kind == "mute" and fault.part in self.path and fault.times > 0 for fault in self.owner.faults):
            self.owner.take(self.command, self.path)
            self._wait()
            self._close()
            return False
        return super().handle_expect_100()

    def _wait(self) -> None:
        """Until the client gives up."""
        while not self.owner.ended.is_set():
            if select.select([self.connection], [], [], 0.05)[0]:
                break

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        body = self._body()
        kind = self.owner.take(self.command, self.path)
        if kind == "drop":
            return self._close()
        if kind in ("busy", "denied"):
            content = _SLOW_DOWN if kind == "busy" else _DENIED
            return self._send(503 if kind == "busy" else 403, [("Content-Type", "application/xml")], content)
        if kind == "stall":
            self._wait()
            return self._close()
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        if kind == "unconditional":
            headers.pop("If-None-Match", None)
        headers["Content-Length"] = str(len(body))
        upstream = http.client.HTTPConnection("127.0.0.1", self.owner.upstream, timeout=30)
        try:
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            content = response.read()
        finally:
            upstream.close()
        if kind == "lose":
            return self._close()
        if kind == "slow":
            time.sleep(0.3)
        if kind == "flip" and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if kind == "short":
            content = content[: len(content) // 2]
        said = [(name, value) for name, value in response.getheaders() if name.lower() not in _OWN]
        if kind in ("flip", "short"):
            # So that it is found out by those who know what was written, not by the client of the protocol.
            said = [(name, value) for name, value in said if "checksum" not in name.lower()]
        self._send(response.status, said, content, response.getheader("Content-Length"), kind)
        return None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(
        self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None = None, kind: str = ""
    ) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            # The length of what a HEAD does not send.
            said = length if self.command == "HEAD" and length is not None else str(len(content))
            self.send_header("Content-Length", said)
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if kind == "cut" else content)
        if kind == "cut":
            self._close()

    def _close(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.close()


_OWN = {"content-length", "connection", "transfer-encoding"}


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Run a server of the S3 protocol; yield its port."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.communicate("")
