"""The roll call among threads, each of which stands for a process."""

import socket
import threading
import time

import pytest

from lm.errors import UserError
from lm.parallel.distributed import initialize
from lm.parallel.roll_call import Expected, call_roll


@pytest.fixture
def port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def answers(port: int, callers: list[tuple[int, float, int]], seconds: float) -> dict[int, str]:
    """The result of each caller (process_id, delay, its --num_processes): "" to continue, or the error."""
    found: dict[int, str] = {}

    def take_part(key: int, process_id: int, delay: float, num_processes: int) -> None:
        time.sleep(delay)
        try:
            call_roll(Expected(f"localhost:{port}", num_processes, process_id), seconds)
            found[key] = ""
        except UserError as error:
            found[key] = str(error)

    threads = [threading.Thread(target=take_part, args=(i, *caller)) for i, caller in enumerate(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(callers)
    return found


def test_all_continue_once_all_are_present_in_any_order(port):
    callers = [(2, 0.0, 4), (0, 0.2, 4), (1, 0.3, 4), (3, 0.5, 4)]
    assert set(answers(port, callers, 10).values()) == {""}
    socket.create_server(("localhost", port)).close()  # free again


def test_all_present_processes_name_the_missing_ones(port):
    found = answers(port, [(0, 0.0, 5), (3, 0.0, 5), (1, 0.1, 5)], 1)
    assert len(set(found.values())) == 1
    assert "2 of 5 processes" in found[0] and "missing --process_id=2, 4" in found[0]
    assert "present 0, 1 on 127.0.0.1, 3 on 127.0.0.1." in found[0]


def test_missing_process_0_is_named(port):
    found = answers(port, [(1, 0.0, 2)], 0.5)
    assert "process 0 of 2 is missing" in found[0] and f"localhost:{port}" in found[0]


def test_contradictory_flags_are_reported_by_all(port):
    found = answers(port, [(0, 0.0, 3), (1, 0.2, 3), (1, 0.4, 3)], 10)
    assert all("two processes were started with --process_id=1" in each for each in found.values())
    found = answers(port, [(0, 0.0, 3), (1, 0.2, 4)], 10)
    assert all("--num_processes=4, but process 0 uses 3" in each for each in found.values())


def test_dead_processes_and_other_clients_do_not_count(port):
    def die_and_disturb() -> None:
        for message in (b"lm 1 4\n", b"GET / HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("localhost", port)) as connection:
                connection.sendall(message)
            time.sleep(0.1)

    # Four are expected, so that the roll is not complete between the call of a process and its death.
    for late, result in (
        ([], "missing --process_id=1, 3; present 0, 2 on 127.0.0.1."),
        ([(1, 1.2, 4), (3, 1.0, 4)], ""),
    ):
        disturbance = threading.Timer(0.6, die_and_disturb)
        disturbance.start()
        found = answers(port, [(0, 0.0, 4), (2, 0.1, 4), *late], 10 if late else 2)
        assert all(result in each if result else each == "" for each in found.values()), found


@pytest.mark.parametrize(
    ("coordinator", "num_processes", "process_id", "message"),
    [
        ("localhost", 2, 0, "must be the host:port"),
        ("localhost:http", 2, 0, "must be the host:port"),
        ("no-such-host.invalid:9000", 2, 1, "no such host"),
        ("localhost:9000", 2, 2, "must be from 0 to 1"),
        ("", 2, 0, "needs --coordinator"),
    ],
)
def test_bad_flags_are_rejected(coordinator, num_processes, process_id, message):
    with pytest.raises(UserError, match=message):
        initialize(coordinator, num_processes, process_id, 1)


@pytest.mark.parametrize(
    ("coordinator", "address"),
    [
        ("127.0.0.1:9000", "127.0.0.1"),
        ("localhost:9000", "127.0.0.1"),
        ("127.0.0.2:9000", "127.0.0.2"),
        ("[::1]:9000", "::1"),
        ("0.0.0.0:9000", "0.0.0.0"),
        ("own-name:9000", ""),  # stands for a loopback address here, and for another one elsewhere
        ("192.0.2.1:9000", ""),  # an address that no interface here has, as behind a translation
    ],
)
def test_process_0_listens_only_on_the_address_of_the_coordinator(coordinator, address, monkeypatch):
    if address == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6")
    known = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **more: known("127.0.1.1" if host == "own-name" else host, *args, **more),
    )
    assert Expected(coordinator, 2, 0).bind_address == address


def test_a_roll_call_on_the_loopback_address_cannot_be_reached_from_elsewhere(port):
    """The whole of 127.0.0.0/8 is this machine, so 127.0.0.2 shows whether other interfaces are open."""
    waiting = threading.Thread(target=answers, args=(port, [(0, 0.0, 2)], 2))
    waiting.start()
    time.sleep(0.5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))
    with socket.create_connection(("127.0.0.1", port)):
        pass
    waiting.join()


def test_port_in_use_is_named(port):
    with socket.create_server(("", port)):
        with pytest.raises(UserError, match=f"cannot listen on port {port}"):
            initialize(f"localhost:{port}", 2, 0, 1)
