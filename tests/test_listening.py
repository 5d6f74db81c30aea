"""The addresses that a server listens on, of both families, and why where it cannot."""

import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from recparams_server.rpc.listening import ListenError, listen, numeric_addresses, with_port
from recparams_server.settings import Settings
from recparams_simulation.demo_server import free_port
from tests.support import connect, start_in_vain, wait_serving


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("given", "bare", "target"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:7"),
        ("0.0.0.0", "0.0.0.0", "0.0.0.0:7"),
        ("localhost", "localhost", "localhost:7"),
        ("::1", "::1", "[::1]:7"),
        ("[::1]", "::1", "[::1]:7"),
        ("::", "::", "[::]:7"),
        ("[::]", "::", "[::]:7"),
        ("fe80::1%eth0", "fe80::1%eth0", "[fe80::1%eth0]:7"),
    ],
)
def test_brackets_are_where_they_belong(given: str, bare: str, target: str) -> None:
    host = Settings(host=given).host
    assert (host, with_port(host, 7)) == (bare, target)


@pytest.mark.parametrize("given", ["", "[]", "127.0.0.1:80", "[::1]:80", "[localhost]", "[::1"])
def test_what_is_no_host_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="without a port"):
        Settings(host=given)


def test_numbers_stand_for_themselves_and_names_for_their_addresses() -> None:
    for host in ("127.0.0.1", "::1", "::", "fe80::1%eth0"):
        assert numeric_addresses(host) == [host]
    assert "127.0.0.1" in numeric_addresses("localhost")


BOTH = ["::1", "127.0.0.1"]


@pytest.mark.parametrize("missing", [[], ["::1"], ["127.0.0.1"]])
def test_a_name_is_listened_on_where_this_machine_has_it(
    monkeypatch: pytest.MonkeyPatch, missing: list[str]
) -> None:
    monkeypatch.setattr("recparams_server.rpc.listening.numeric_addresses", lambda _: BOTH)
    asked = []

    def add(address: str) -> int:
        asked.append(address)
        host, port = address.rsplit(":", 1)
        if host.strip("[]") in missing:
            raise RuntimeError("failed to bind")
        return int(port) or 4711

    port, addresses = listen("both.example", 0, add)
    assert (port, addresses) == (4711, [one for one in BOTH if one not in missing])
    if not missing:
        assert asked == ["[::1]:0", "127.0.0.1:4711"]


def test_a_name_is_not_half_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recparams_server.rpc.listening.numeric_addresses", lambda _: BOTH)

    def add(address: str) -> int:
        if not address.startswith("[::1]"):
            raise RuntimeError("failed to bind")
        return int(address.rsplit(":", 1)[1])

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=f"both.example:{port}: is another server there"):
            listen("both.example", port, add)


def test_grpcs_own_reason_is_shown_where_the_system_has_none() -> None:
    def add(address: str) -> int:
        raise RuntimeError("out of patience")

    with pytest.raises(ListenError, match="out of patience"):
        listen("127.0.0.1", 0, add)


REACHED = {
    "127.0.0.1": ("127.0.0.1",),
    "localhost": ("localhost",),
    "::1": ("::1",),
    "[::1]": ("::1",),
    "::": ("::1", "127.0.0.1"),
    "[::]": ("::1", "127.0.0.1"),
}


def scraped(address: str, port: int) -> bytes:
    with urllib.request.urlopen(f"http://{with_port(address, port)}/metrics") as answer:
        found: bytes = answer.read()
    return found


@needs_ipv6
@pytest.mark.parametrize("host", REACHED)
async def test_calls_and_metrics_are_served(start_server: Any, host: str) -> None:
    metrics_port = free_port("127.0.0.1", 0)
    server = start_server(host=host, metrics_port=metrics_port)
    for name in REACHED[host]:
        for address in numeric_addresses(name):
            async with connect(with_port(address, server.port)) as client:
                await wait_serving(client)
            assert b"recparams_serving" in scraped(address, metrics_port)


@needs_ipv6
async def test_workers_share_a_port_of_ipv6(start_server: Any) -> None:
    server = start_server(host="::1", workers=2)
    async with connect(with_port("::1", server.port)) as client:
        await wait_serving(client)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:0: Cannot assign requested address"),
        ("2001:db8::1", "cannot listen on [2001:db8::1]:0: "),
        ("nosuch.invalid", "cannot listen on nosuch.invalid:0: "),
    ],
)
def test_the_reason_is_the_systems_own(tmp_path: Path, host: str, said: str, workers: int) -> None:
    done = start_in_vain(host=host, port=0, workers=workers, data_dir=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert said in last
    assert "another server" not in last


@needs_ipv6
@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_of_ipv6_that_is_taken(tmp_path: Path, workers: int) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        done = start_in_vain(host="::1", port=port, workers=workers, data_dir=tmp_path)
    assert done.returncode == 1
    assert f"cannot listen on [::1]:{port}: is another server there?" in done.stderr
