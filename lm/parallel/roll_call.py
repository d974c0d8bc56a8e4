"""Roll call: finds out which of the expected processes are present before JAX connects them.

JAX itself would abort with a stack trace that does not name the missing processes. Process 0 therefore calls the roll
first, on the port that JAX's own service uses afterwards. Each process connects and sends its index. Process 0 replies
either that all are present or with an error that names the missing processes.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from dataclasses import dataclass
from typing import NamedTuple

from lm.errors import UserError
from lm.parallel.peers import listen

GREETING, GO = "lm", "go"
RETRY_SECONDS = 0.2
PATIENCE_SECONDS = 5.0  # per connection


@dataclass(frozen=True)
class Expected:
    """The command-line flags with which a process was started."""

    coordinator: str  # host:port of process 0
    num_processes: int
    process_id: int

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            needed = "must be the host:port of process 0, e.g. node1:8476"
            raise UserError(f"--coordinator {needed}, not {self.coordinator}.")
        return host.strip("[]"), int(port)

    @property
    def bind_address(self) -> str:
        """The address on which process 0 listens: the address of the coordinator, or "" for all interfaces.

        All interfaces are needed only if this machine does not know the address at which others reach it: its own name
        may resolve to a loopback address (as on Debian), or the address may be translated on the way (NAT).
        """
        host, _ = self.address
        try:
            several = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise _no_such_host(self, error) from None
        # The other processes try every address of a host name, so it is enough to listen on one of them.
        address = str(min(several, key=lambda each: each[0] != socket.AF_INET)[4][0])
        if _is_loopback(address) and not _is_loopback(host):
            return ""
        try:
            listen(address, 0).close()
        except OSError:
            return ""
        return address


class _Caller(NamedTuple):
    """A process that is waiting for process 0's answer."""

    process_id: int
    num_processes: int  # according to the flags of this process
    host: str
    connection: socket.socket


def call_roll(expected: Expected, timeout_seconds: float) -> None:
    """Waits until all processes are present. If time runs out, every process that is present raises UserError."""
    if expected.process_id != 0:
        _answer(expected, timeout_seconds)
        return
    # Process 0 waits for the others, then sends the result to each of them.
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
                problem = _absence(expected, callers, timeout_seconds)
                break
        for each in callers:
            with contextlib.suppress(OSError):
                each.connection.sendall(f"{problem or GO}\n".encode())
        for each in callers:
            # Waits until the caller closes the connection, so that the port is free for JAX.
            _receive(each.connection, PATIENCE_SECONDS)
    if problem:
        raise UserError(problem)


def _contradiction(expected: Expected, callers: list[_Caller]) -> str:
    hosts: dict[int, str] = {}
    for index, count, host, _ in callers:
        if count != expected.num_processes:
            started = f"process {index} on {host} was started with --num_processes={count}"
            return f"{started}, but process 0 uses {expected.num_processes}; use the same value for all processes."
        if index in hosts:
            started = f"two processes were started with --process_id={index}, on {hosts[index]} and {host}"
            return f"{started}; give each process its own index."
        hosts[index] = host
    return ""


def _absence(expected: Expected, callers: list[_Caller], timeout_seconds: float) -> str:
    hosts = {each.process_id: each.host for each in callers}
    missing = [number for number in range(1, expected.num_processes) if number not in hosts]
    present = ", ".join(["0", *(f"{number} on {hosts[number]}" for number in sorted(hosts))])
    some = ", ".join(map(str, missing[:20])) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
    return (
        f"{len(missing)} of {expected.num_processes} processes did not join within {timeout_seconds:g} s: missing "
        f"--process_id={some}; present {present}. Start the missing ones with --coordinator={expected.coordinator}, or "
        "give all processes more time with --startup_timeout."
    )


def _answer(expected: Expected, timeout_seconds: float) -> None:
    """Reports to process 0, and waits for the result of the roll call."""
    end = time.monotonic() + timeout_seconds
    reason = ""
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection(expected.address, timeout=left) as connection:
                connection.sendall(f"{GREETING} {expected.process_id} {expected.num_processes}\n".encode())
                # Process 0 may have started later, so its time limit may end later.
                result = _receive(connection, timeout_seconds + PATIENCE_SECONDS)
        except socket.gaierror as error:
            raise _no_such_host(expected, error) from None
        except OSError as error:
            result, reason = "", str(error.strerror or error)
        if result == GO:
            return
        if result:
            raise UserError(result)
        time.sleep(RETRY_SECONDS)
    raise UserError(
        f"process 0 of {expected.num_processes} is missing: process {expected.process_id} could not reach it at "
        f"{expected.coordinator} within {timeout_seconds:g} s ({reason or 'no answer'}); start it, or check that its "
        "host and port can be reached from here."
    )


def _listen(expected: Expected) -> socket.socket:
    _, port = expected.address
    try:
        return listen(expected.bind_address, port)
    except OSError as error:
        problem = f"process 0 cannot listen on port {port}: {error.strerror}; choose another port."
        raise UserError(f"--coordinator={expected.coordinator}: {problem}") from None


def _no_such_host(expected: Expected, error: socket.gaierror) -> UserError:
    return UserError(f"--coordinator={expected.coordinator}: there is no such host ({error.strerror}).")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _receive(connection: socket.socket, seconds: float) -> str:
    """Returns a line without its line ending, or part of the line if the sender is slow or closes the connection."""
    connection.settimeout(seconds)
    content = b""
    with contextlib.suppress(OSError):
        while not content.endswith(b"\n") and len(content) < 4096 and (part := connection.recv(4096)):
            content += part
    return content.decode(errors="replace").strip()


def _alive(connection: socket.socket) -> bool:
    """Returns whether the connection, on which nothing more is expected, is still open."""
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
