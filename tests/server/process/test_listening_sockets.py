"""Which addresses a server listens on, and which it says it has."""

from __future__ import annotations

import socket
import threading

import httpx
import pytest

from hybridge.errors import HybridgeError
from hybridge.server.app import create_app
from hybridge.server.middleware.draining import Drain
from hybridge.server.process.listening_sockets import addresses_elsewhere, opened
from hybridge.server.process.server import ListenOptions, Server, configure

IPV4, IPV6 = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


BOTH = [IPV4, IPV6] if has_ipv6() else [IPV4]


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("localhost", BOTH),
        ("127.0.0.1", [IPV4]),
        ("0.0.0.0", [IPV4]),  # noqa: S104
        *([("::", BOTH), ("::1", [IPV6])] * has_ipv6()),
    ],
)
def test_what_is_reached(host: str, reached: list[tuple[int, str]]) -> None:
    with opened(host, 0) as sockets:
        port = sockets[0].getsockname()[1]
        for one in sockets:
            one.listen()
        for family, address in BOTH:
            with socket.socket(family, socket.SOCK_STREAM) as caller:
                refused = caller.connect_ex((address, port))
            assert bool(refused) is ((family, address) not in reached)


def test_a_server_answers_in_both_versions(engines) -> None:
    from hybridge.server.local_backend import LocalBackend

    drain = Drain()
    with opened("localhost", 0) as sockets:
        port = sockets[0].getsockname()[1]
        app = create_app(LocalBackend(engines), drain=drain)
        server = Server(configure(app, ListenOptions()), ListenOptions(), drain)
        thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
        thread.start()
        try:
            server.has_started.wait()
            for family, address in BOTH:
                host = f"[{address}]" if family == socket.AF_INET6 else address
                assert httpx.get(f"http://{host}:{port}/health").status_code == 200
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HybridgeError) as caught, opened(host, port):
            pass
    assert str(caught.value) == (
        f"cannot listen on {host}:{port}: saw Address already in use. Try: --port 0 for a free one"
    )


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_here(host: str) -> None:
    with pytest.raises(HybridgeError, match=f"^cannot listen on {host}:0: saw "), opened(host, 0):
        pass


def test_addresses_for_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil
    from psutil._ntuples import snicaddr

    def address(family: int, text: str) -> snicaddr:
        return snicaddr(family, text, None, None, None)

    interfaces = {
        "lo": [address(*IPV4), address(*IPV6)],
        "eth0": [
            address(socket.AF_INET, "192.168.1.5"),
            address(socket.AF_INET6, "2001:db8::5"),
            address(socket.AF_INET6, "fe80::1%eth0"),
        ],
        "docker0": [address(socket.AF_INET, "172.17.0.1")],
        "eth1": [address(socket.AF_INET, "10.0.0.5")],
    }
    up = psutil.net_if_stats()["lo"]
    stats = dict.fromkeys(interfaces, up._replace(isup=True)) | {"eth1": up._replace(isup=False)}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: stats)
    with opened("0.0.0.0", 0) as sockets:  # noqa: S104
        port = sockets[0].getsockname()[1]
        assert addresses_elsewhere(sockets) == [f"http://192.168.1.5:{port}"]
    with opened("127.0.0.1", 0) as sockets:
        assert addresses_elsewhere(sockets) == []
    if has_ipv6():
        with opened("::", 0) as sockets:
            port = sockets[0].getsockname()[1]
            expected = [f"https://192.168.1.5:{port}", f"https://[2001:db8::5]:{port}"]
            assert addresses_elsewhere(sockets, scheme="https") == expected
