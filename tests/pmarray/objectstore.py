"""An S3 server of our own for the tests, and a proxy in front of it that misbehaves when told."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3

__all__ = ["KEYS", "Proxy", "Server", "running_server"]

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "no-secret"}
REGION = "us-east-1"

# A process of its own: what it warns of and how it uses threads is not what is tested. It ends
# when its standard input does, which is also when the tests are killed.
_SERVE = """
import logging, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Server:
    """moto's S3 on a port of this machine; `client` is a client that owes nothing to ours."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def keys(self, bucket: str, prefix: str = "") -> set[str]:
        """Return the names of all objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {item["Key"] for page in pages for item in page.get("Contents", [])}


@contextmanager
def running_server() -> Iterator[Server]:
    """Start a server, and stop it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        server = Server(int(process.stdout.readline()))
        try:
            yield server
        finally:
            server.client.close()
    finally:
        process.kill()
        process.communicate()


Fault = Callable[[socket.socket, bytes, socket.socket], bool]
"""Given the client's connection, the head of its request, perhaps with some of its body, and a
connection to the server: whether it has dealt with it."""


class Proxy:
    """Passes requests on to a server, one a connection, and misbehaves as `fault` has it.

    `faults` are used up from the front, one a request; None lets one pass. `always` is for every
    request after those.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self.faults: list[Fault | None] = []
        self.always: Fault | None = None
        self.requests: list[str] = []
        """The first lines of the requests, method and path."""
        self._books = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, again on the same port."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections: the server is gone."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
            self._listener.close()
            self._listener = None

    @property
    def endpoint(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                data = client.recv(65536)
                if not data:
                    return
                head += data
            with self._books:
                self.requests.append(head.split(b" HTTP", 1)[0].decode())
                fault = self.faults.pop(0) if self.faults else self.always
            with socket.create_connection(self._target) as server:
                if fault is None or not fault(client, head, server):
                    _exchange(client, server, _close_after(head))


def _close_after(head: bytes) -> bytes:
    """Ask for one request a connection, so that each connection is one request to count."""
    line, _, rest = head.partition(b"\r\n")
    return line + b"\r\nConnection: close\r\n" + rest


def _exchange(client: socket.socket, server: socket.socket, first: bytes) -> None:
    server.sendall(first)
    while True:
        for ready in select.select([client, server], [], [])[0]:
            data = ready.recv(1 << 16)
            if not data:
                return
            (server if ready is client else client).sendall(data)


# -- faults ----------------------------------------------------------------------------------------


def slow_down(client: socket.socket, head: bytes, server: socket.socket) -> bool:
    """What S3 answers when it is asked too often."""
    _read_body(client, head)
    body = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
    client.sendall(
        b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )
    return True


def drop(client: socket.socket, head: bytes, server: socket.socket) -> bool:
    """Break the connection before there is an answer."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # by RST
    return True


def half_an_answer(client: socket.socket, head: bytes, server: socket.socket) -> bool:
    """Break the connection in the middle of what the server has to say."""
    server.sendall(_close_after(head))
    answer = b"".join(iter(lambda: server.recv(1 << 16), b""))
    length = len(answer) - answer.index(b"\r\n\r\n")
    client.sendall(answer[: len(answer) - length // 2])
    time.sleep(0.1)  # a reset would overtake it
    return drop(client, head, server)


def delay(seconds: float) -> Fault:
    """Answer late."""

    def fault(client: socket.socket, head: bytes, server: socket.socket) -> bool:
        time.sleep(seconds)
        return False

    return fault


def _read_body(client: socket.socket, head: bytes) -> None:
    header, _, body = head.partition(b"\r\n\r\n")
    for line in header.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            missing = int(value) - len(body)
            while missing > 0:
                data = client.recv(min(missing, 1 << 16))
                if not data:
                    return
                missing -= len(data)
