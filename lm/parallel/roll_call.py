"""Which of the expected processes are there, found out before JAX joins them.

JAX waits for all processes too, but when one is missing it aborts with a stack trace that names no one.
So process 0 first calls the roll on the coordinator's port, which JAX's own service takes afterwards: each
process connects and tells its number, and is told to go on, or who is missing.
"""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass

from lm.errors import UserError

GREETING, GO = "lm", "go"
RETRY_SECONDS = 0.2
PATIENCE_SECONDS = 5.0  # with one connection


@dataclass(frozen=True)
class Expected:
    """What a process was told by its flags."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(f"--coordinator={self.coordinator}: must be host:port of process 0, as node1:8476.")
        return host.strip("[]"), int(port)


@dataclass(frozen=True)
class _Caller:
    """A process that has told process 0 that it is there, and waits."""

    process_id: int
    num_processes: int  # as it was told
    host: str
    connection: socket.socket


def call_roll(expected: Expected, timeout_seconds: float) -> None:
    """Returns when all processes have come. Raises UserError, in all that have, when the time is over."""
    if expected.process_id == 0:
        _call(expected, timeout_seconds)
    else:
        _answer(expected, timeout_seconds)


def _call(expected: Expected, timeout_seconds: float) -> None:
    """Process 0: waits for the others, then tells each of them the result."""
    end = time.monotonic() + timeout_seconds
    callers: list[_Caller] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(expected))
        while not (problem := _contradiction(expected, callers)) and len(callers) < expected.num_processes - 1:
            server.settimeout(max(0.001, min(end - time.monotonic(), PATIENCE_SECONDS)))
            with contextlib.suppress(TimeoutError):
                connection, address = server.accept()
                stack.enter_context(connection)
                words = _receive(connection, PATIENCE_SECONDS).split()
                if len(words) == 3 and words[0] == GREETING and (words[1] + words[2]).isdecimal():
                    host = address[0].removeprefix("::ffff:")
                    callers.append(_Caller(int(words[1]), int(words[2]), host, connection))
            callers = [each for each in callers if _alive(each.connection)]
            if time.monotonic() > end and len(callers) < expected.num_processes - 1:
                problem = _describe(expected, callers, timeout_seconds)
                break
        for each in callers:
            with contextlib.suppress(OSError):
                each.connection.sendall(f"{problem or GO}\n".encode())
        for each in callers:
            _receive(each.connection, PATIENCE_SECONDS)  # until it has closed: then the port is free for JAX
    if problem:
        raise UserError(problem)


def _contradiction(expected: Expected, callers: list[_Caller]) -> str:
    by_id: dict[int, _Caller] = {}
    for each in callers:
        if each.num_processes != expected.num_processes:
            return (
                f"process {each.process_id} on {each.host} was started with --num_processes={each.num_processes}, "
                f"process 0 with {expected.num_processes}; give all the same."
            )
        if each.process_id in by_id:
            hosts = f"{by_id[each.process_id].host} and {each.host}"
            return f"two processes were started with --process_id={each.process_id}, on {hosts}; give each its own."
        by_id[each.process_id] = each
    return ""


def _answer(expected: Expected, timeout_seconds: float) -> None:
    """Another process: tells process 0 that it is there, and waits for the result."""
    end = time.monotonic() + timeout_seconds
    reason = ""
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection(expected.address, timeout=left) as connection:
                connection.sendall(f"{GREETING} {expected.process_id} {expected.num_processes}\n".encode())
                # Process 0 may have started later, and its time be over later.
                result = _receive(connection, timeout_seconds + PATIENCE_SECONDS)
        except socket.gaierror as error:
            raise UserError(f"--coordinator={expected.coordinator}: no such host ({error.strerror}).") from None
        except OSError as error:
            result, reason = "", str(error.strerror or error)
        if result == GO:
            return
        if result:
            raise UserError(result)
        time.sleep(RETRY_SECONDS)
    raise UserError(
        f"process 0 of {expected.num_processes} is missing: nothing answered process {expected.process_id} at "
        f"{expected.coordinator} within {timeout_seconds:g} s ({reason or 'no answer'}); start it, or check that its "
        "host and port can be reached from here."
    )


def _listen(expected: Expected) -> socket.socket:
    port = expected.address[1]
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"--coordinator={expected.coordinator}: process 0 cannot listen on port {port}: {error.strerror}; "
            "choose another port."
        ) from None


def _receive(connection: socket.socket, seconds: float) -> str:
    """One line, without its end; what there is of it if the other side goes silent or away."""
    connection.settimeout(seconds)
    content = b""
    with contextlib.suppress(OSError):
        while not content.endswith(b"\n") and len(content) < 4096 and (part := connection.recv(4096)):
            content += part
    return content.decode(errors="replace").strip()


def _alive(connection: socket.socket) -> bool:
    """Whether the other side still holds the connection, on which it has nothing more to say."""
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _describe(expected: Expected, callers: list[_Caller], timeout_seconds: float) -> str:
    """The table of expected and present processes, in a line."""
    hosts = {each.process_id: each.host for each in callers}
    missing = [each for each in range(1, expected.num_processes) if each not in hosts]
    here = ", ".join(["0", *(f"{each} on {hosts[each]}" for each in sorted(hosts))])
    some = ", ".join(map(str, missing[:20])) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
    return (
        f"{len(missing)} of {expected.num_processes} processes did not come within {timeout_seconds:g} s: missing "
        f"--process_id={some}; present {here}. Start the missing ones with --coordinator={expected.coordinator}, or "
        "give all more time with --startup_timeout."
    )
