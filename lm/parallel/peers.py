"""Makes the processes of one program end together if one of them fails, dies or receives a signal.

Messages are values in the key-value store of JAX's coordination service, which runs in process 0. Every other process
also holds a connection to process 0. The operating system closes this connection when one of the two processes dies.
JAX itself would notice the death of process 0 about as quickly, but the death of any other process only much later. In
both cases, it would abort with a native stack trace.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import select
import selectors
import signal
import socket
import threading
import time
from typing import Any

from lm.errors import SAVED_ON_SIGNAL
from lm.parallel import signals

END, STOP, POSITIONS, PORT = "lm/end", "lm/stop", "lm/positions/", "lm/port"
WAIT_MS = 60_000
DAY_MS = 24 * 3600 * 1000
POLL_SECONDS = 0.05
SECONDS_TO_READ = 1.0  # time for every process to receive a message and end
SECONDS_TO_SEND = 5.0  # a new connection that sends nothing within this time is not from one of our processes
# With these settings for idle connections, the death of a machine is noticed after 20 seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Peers(signals.Others):
    """The processes of a program, as seen by one of them.

    Args:
        client: JAX's distributed runtime client.
        index: the index of this process, from 0.
        count: the number of processes.
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
        """Waits until every process has finished. Until then, any process may still end all of them."""
        self._client.wait_at_barrier("lm/finished", DAY_MS)
        self._finished = True
        for key in (END, STOP):
            self._set(key, "")
        for thread in self._listeners:  # no thread may return from JAX while Python is shutting down
            thread.join(WAIT_MS / 1000)

    def _end(self, status: int, line: str) -> None:
        self._set(END, json.dumps([self._index, status, line]))
        self._outlive_others()

    def _outlive_others(self) -> None:
        """In process 0: gives the others time to read the last message. The store is lost when process 0 exits."""
        if self._index == 0:
            time.sleep(SECONDS_TO_READ)

    def _watch_end(self) -> None:
        if message := self._get(END):
            index, status, line = json.loads(message)
            if index != self._index:
                self._outlive_others()
                signals.end_process(status, f"error: {line}")

    def _watch_stop(self) -> None:
        """On a signal to any process, stops the training loop after the first step that no process has reached yet."""
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
        if loop is None or None in steps:  # some process has not entered the training loop yet, or has left it
            signals.end_process(SAVED_ON_SIGNAL, f"stopped by {reason}; run the same command again.")
        loop.stop_after(max(steps) + 1)

    def _watch_deaths(self) -> None:
        """In process 0: accepts a connection from each other process, and waits until a connection is closed."""
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as waiting:
            server = stack.enter_context(listen(self._bind_address, 0))
            token = secrets.token_hex(8)  # so that no other program can pose as one of the processes
            self._set(PORT, f"{server.getsockname()[1]} {token}")
            waiting.register(server, selectors.EVENT_READ)
            while not self._finished:
                for key, _ in waiting.select():
                    if key.fileobj is server:
                        connection = _kept_alive(stack.enter_context(server.accept()[0]))
                        given, _, index = _received(connection).partition(" ")
                        if given == token:
                            waiting.register(connection, selectors.EVENT_READ, int(index))
                    elif not _received(key.fileobj):
                        waiting.unregister(key.fileobj)
                        self._lost(key.data)

    def _watch_first(self) -> None:
        """In the other processes: connects to process 0, and waits until the connection is closed."""
        port, _, token = self._get(PORT).partition(" ")
        try:
            connection = socket.create_connection((self._host, int(port or 0)), timeout=WAIT_MS / 1000)
        except OSError as error:
            where = f"port {port} of process 0 cannot be reached ({error.strerror or error})"
            signals.write_line(f"warning: {self.name} will not notice if another process dies, because {where}.")
            return
        with _kept_alive(connection):
            connection.sendall(f"{token} {self._index}".encode())
            connection.settimeout(None)
            self._replace_abort(connection)
            _received(connection)
            if not self._finished:
                self._exit_without_first()

    def _replace_abort(self, connection: socket.socket) -> None:
        """If JAX notices the death of process 0 before we do, exits with our message and status instead of aborting."""

        def exit_if_first_died(_number: int) -> None:
            closed, _, _ = select.select([connection], [], [], SECONDS_TO_READ)
            if closed:
                self._exit_without_first()

        # A handler installed with Python's signal module would not run, because the process would die first.
        self._abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(exit_if_first_died)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._abort_handler)

    def _exit_without_first(self) -> None:
        """Exits at once, because JAX itself is about to abort."""
        signals.write_line(f"error: {self._died(0)}")
        os._exit(SAVED_ON_SIGNAL)

    def _lost(self, index: int) -> None:
        """In process 0: ends all processes because one has died, unless the dead process has reported a reason."""
        time.sleep(SECONDS_TO_READ)  # so that a message from the dead process takes precedence
        if not self._finished:
            self._end(SAVED_ON_SIGNAL, self._died(index))
            signals.end_process(SAVED_ON_SIGNAL, f"error: {self._died(index)}")

    def _died(self, index: int) -> str:
        return f"process {index} of {self._count} died; run the same command again."

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
    """Returns a socket that listens on `address`, or on all interfaces if it is "". May raise OSError."""
    dual = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, dualstack_ipv6=dual)


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(SECONDS_TO_SEND)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _received(connection: Any) -> str:
    """Returns the text that the other side has sent, or "" if the connection is closed."""
    try:
        return str(connection.recv(100), "ascii", "replace")
    except OSError:
        return ""
