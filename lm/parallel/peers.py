"""The processes of one program: they end together if one of them fails, dies or gets a signal.

Messages are values in the store of JAX's coordination service, which runs in process 0. A connection between process 0
and each of the others shows that both are alive: the system closes it when one of them dies. JAX itself would notice
that much later, and abort with a native stack trace.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from typing import Any

from lm.errors import SAVED_ON_SIGNAL
from lm.parallel import signals

END, STOP, POSITIONS, PORT = "lm/end", "lm/stop", "lm/positions/", "lm/port"
WAIT_MS = 60_000
LONGEST_RUN_MS = 1000 * 3600 * 24 * 365
POLL_SECONDS = 0.05
SECONDS_TO_READ = 0.5  # within which every process has received a message
# Of an unused connection, so that the death of a machine is noticed after 20 seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Peers(signals.Others):
    """The processes of a program, as seen by one of them.

    Args:
        client: JAX's distributed runtime client.
        index: the index of this process, among `count`.
        host: the host of process 0.
        bind_address: the address on which process 0 listens; "" for all interfaces.
    """

    def __init__(self, client: Any, index: int, count: int, host: str, bind_address: str) -> None:
        self.name = f"process {index} of {count}"
        self._client, self._index, self._count = client, index, count
        self._host, self._bind_address = host, bind_address
        self._finished = False
        self._listeners = [
            threading.Thread(target=watch, name=f"peers{watch.__name__}", daemon=True)
            for watch in (self._watch_end, self._watch_stop)
        ]

    def start(self) -> None:
        signals.state.others = self
        watch = self._watch_deaths if self._index == 0 else self._watch_first
        for thread in (*self._listeners, threading.Thread(target=watch, name=f"peers{watch.__name__}", daemon=True)):
            thread.start()

    def end(self, status: int, reason: str) -> None:
        self._end(status, f"{self.name}: {reason}")

    def stop(self, name: str) -> None:
        self._set(STOP, f"{name} in {self.name}")

    def finish(self) -> None:
        """Waits until every process has finished. Until then, any of them may still end all."""
        self._client.wait_at_barrier("lm/finished", LONGEST_RUN_MS)
        self._finished = True
        for key in (END, STOP):
            self._set(key, "")
        for thread in self._listeners:  # none may return from JAX while Python is shutting down
            thread.join(WAIT_MS / 1000)

    def _end(self, status: int, line: str) -> None:
        self._set(END, json.dumps([self._index, status, line]))
        if self._index == 0:
            time.sleep(SECONDS_TO_READ)  # the store ends with this process

    def _watch_end(self) -> None:
        if message := self._get(END):
            index, status, line = json.loads(message)
            if index != self._index:
                signals.end_process(status, f"error: {line}")

    def _watch_stop(self) -> None:
        """After a signal to any process, computes the step after which all stop: the next one that none has passed."""
        if not (reason := self._get(STOP)):
            return
        loop = signals.state.loop
        step = None if loop is None else loop.request(reason.split()[0])
        self._set(f"{POSITIONS}{self._index}", json.dumps(step))
        found: list[tuple[str, str]] = []
        while len(found) < self._count:
            time.sleep(POLL_SECONDS)
            with contextlib.suppress(Exception):
                found = self._client.key_value_dir_get(POSITIONS)
        steps = [json.loads(value) for _, value in found]
        if loop is None or None in steps:  # a process is not in the training loop yet, or has left it
            signals.end_process(SAVED_ON_SIGNAL, f"stopped by {reason}; run the same command again.")
        loop.stop_after(max(steps) + 1)

    def _watch_deaths(self) -> None:
        """In process 0: accepts a connection from each other process, and waits until one of them is closed."""
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as waiting:
            server = stack.enter_context(listen(self._bind_address, 0))
            self._set(PORT, str(server.getsockname()[1]))
            waiting.register(server, selectors.EVENT_READ)
            while not self._finished:
                for key, _ in waiting.select():
                    if key.fileobj is server:
                        connection = stack.enter_context(server.accept()[0])
                        index = connection.recv(8)
                        if index.isdigit():
                            waiting.register(_kept_alive(connection), selectors.EVENT_READ, int(index))
                    elif not _received(key.fileobj):
                        waiting.unregister(key.fileobj)
                        self._lost(key.data)

    def _watch_first(self) -> None:
        """In the other processes: connects to process 0, and waits until the connection is closed."""
        address = self._host, int(self._get(PORT) or 0)
        try:
            connection = _kept_alive(socket.create_connection(address, timeout=WAIT_MS / 1000))
        except OSError as error:
            signals.write_line(f"{self.name} will not notice if another one dies: {address}: {error.strerror or error}")
            return
        with connection:
            connection.settimeout(None)
            connection.sendall(str(self._index).encode())
            _received(connection)
            self._lost(0)

    def _lost(self, index: int) -> None:
        """Ends all processes because one has died, unless it had a reason to end."""
        if index:
            time.sleep(2 * SECONDS_TO_READ)  # its own message comes first
        if self._finished:
            return
        line = f"process {index} of {self._count} died; run the same command again."
        if index:
            self._end(SAVED_ON_SIGNAL, line)
        signals.end_process(SAVED_ON_SIGNAL, f"error: {line}")

    def _set(self, key: str, value: str) -> None:
        """Sets a key, unless another process has set it already or process 0 has ended."""
        with contextlib.suppress(Exception):  # the types of jaxlib's errors differ between versions
            self._client.key_value_set(key, value)

    def _get(self, key: str) -> str:
        """Waits for the value of a key. Returns "" if process 0 has ended."""
        while True:
            try:
                return str(self._client.blocking_key_value_get(key, WAIT_MS))
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    return ""


def listen(address: str, port: int) -> socket.socket:
    """Returns a socket that listens on one address, or for "" on all interfaces. Raises OSError."""
    dual = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, dualstack_ipv6=dual)


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _received(connection: Any) -> bytes:
    try:
        return bytes(connection.recv(1))
    except OSError:
        return b""
