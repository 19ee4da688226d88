"""Where one request ends and the next begins, on raw sockets: what a proxy's clients share with each other."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from raw import AMBIGUOUS, BODY, CHUNKS, SMUGGLED, UPGRADES, Echo, Peer, post

from hybridge.server.process.server import running


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def server(echo) -> Iterator[str]:
    with running(echo) as address:
        yield address


def assert_the_next_is_my_own(peer: Peer) -> None:
    peer.send(b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n")
    status, said = peer.answer()
    assert (status, said["path"], said["body"]) == (200, "/next", "")


class TestUpgrades:
    @pytest.mark.parametrize("headers", UPGRADES.values(), ids=UPGRADES)
    @pytest.mark.parametrize("pieces", ["together", "after the head", "in bytes"])
    @pytest.mark.parametrize("framing", ["length", "chunks"])
    def test_the_body_stays_a_body(self, server, headers, pieces, framing) -> None:
        """Before, it was read as the next request, which behind a proxy was somebody else's."""
        body = SMUGGLED + BODY
        head = post(headers=headers, length=len(body) if framing == "length" else None)
        if framing == "chunks":
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        sent = {"together": [head + body], "after the head": [head, body]}.get(pieces)
        with Peer(server) as peer:
            for piece in sent or [(head + body)[at : at + 1] for at in range(len(head + body))]:
                peer.send(piece)
            status, said = peer.answer()
            assert (status, said["method"], said["path"]) == (200, "POST", "/first")
            assert said["body"] == (SMUGGLED + BODY).decode()
            assert "host: x" in said["headers"]
            assert_the_next_is_my_own(peer)

    @pytest.mark.parametrize("headers", UPGRADES.values(), ids=UPGRADES)
    def test_without_a_body(self, server, headers) -> None:
        with Peer(server) as peer:
            peer.send(b"GET /first HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n")
            assert peer.answer()[1]["path"] == "/first"
            assert_the_next_is_my_own(peer)

    def test_pipelined(self, server) -> None:
        """All in one packet, upgrades between others."""
        upgrade = UPGRADES["h2c of curl"]
        with Peer(server) as peer:
            peer.send(b"".join(post(b"/%d" % n, headers=upgrade if n % 2 else b"") + BODY for n in range(20)))
            assert [peer.answer()[1]["path"] for _ in range(20)] == [f"/{n}" for n in range(20)]
            assert_the_next_is_my_own(peer)

    def test_a_websocket_gets_an_ordinary_answer(self, server) -> None:
        with Peer(server) as peer:
            peer.send(b"GET /first HTTP/1.1\r\nhost: x\r\n" + UPGRADES["websocket"] + b"\r\n")
            assert peer.answer()[0] == 200

    def test_what_is_ambiguous_stays_refused(self, server) -> None:
        for second in (b"transfer-encoding: chunked", b"content-length: 4"):
            with Peer(server) as peer:
                peer.send(b"POST / HTTP/1.1\r\n" + UPGRADES["websocket"] + b"content-length: 4\r\n" + second)
                peer.send(b"\r\n\r\nabcd" + SMUGGLED)
                assert peer.answer()[0] == 400
                assert peer.hung_up()

    def test_connect(self, server) -> None:
        with Peer(server) as peer:
            peer.send(b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\ncontent-length: 40\r\n\r\n" + SMUGGLED)
            status, said = peer.answer()
            assert status == 405
            assert "CONNECT" in said["error"]
            assert peer.hung_up()


class TestAmbiguous:
    @pytest.mark.parametrize("name", AMBIGUOUS)
    def test_heads(self, server, name) -> None:
        with Peer(server) as peer:
            peer.send(
                b"POST /early HTTP/1.1\r\nhost: x\r\n" + AMBIGUOUS[name] + b"\r\n\r\n" + b"0\r\n\r\n" + SMUGGLED
            )
            status, said = peer.answer()
            assert status == 400
            assert "error" in said
            assert peer.hung_up()

    @pytest.mark.parametrize("upgrade", [b"", *UPGRADES.values()])
    def test_no_host(self, server, upgrade) -> None:
        with Peer(server) as peer:
            peer.send(b"GET /first HTTP/1.1\r\n" + upgrade + b"\r\n" + SMUGGLED)
            status, said = peer.answer()
            assert status == 400
            assert "no Host header" in said["error"]
            assert peer.hung_up()
        for head in (b"GET /first HTTP/1.0\r\n\r\n", b"GET /first HTTP/1.1\r\nhost:\r\n\r\n"):  # both may be
            with Peer(server) as peer:
                peer.send(head)
                assert peer.answer()[0] == 200

    @pytest.mark.parametrize("name", CHUNKS)
    def test_chunks(self, server, name) -> None:
        with Peer(server) as peer:
            peer.send(post(length=None) + CHUNKS[name] + SMUGGLED)
            status, said = peer.answer()
            assert status == 400
            assert "error" in said
            assert peer.hung_up()

    def test_other_versions(self, server) -> None:
        for version in (b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2"):
            with Peer(server) as peer:
                peer.send(post().replace(b"HTTP/1.1", version) + BODY + SMUGGLED)
                assert peer.answer()[0] == 400
                assert peer.hung_up()
        with Peer(server) as peer:
            peer.send(post(length=None).replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n" + SMUGGLED)
            assert peer.answer()[0] == 400
            assert peer.hung_up()

    def test_extensions_of_chunks_are_skipped(self, server) -> None:
        with Peer(server) as peer:
            peer.send(post(length=None) + b'5;a="b";c\r\nhello\r\n0;d\r\n\r\n')
            assert peer.answer()[1]["body"] == "hello"
            assert_the_next_is_my_own(peer)

    def test_white_space_around_a_value_is_no_part_of_it(self, server) -> None:
        with Peer(server) as peer:
            peer.send(b"POST /first HTTP/1.1\r\nhost: \tx \t \r\na:\r\nb: \t\r\nc: d e\t\r\n")
            peer.send(b"content-length: 5 \r\n\r\nhello")
            _, said = peer.answer()
            assert said["headers"] == ["host: x", "a: ", "b: ", "c: d e", "content-length: 5"]
            assert_the_next_is_my_own(peer)

    def test_headers_behind_the_body_do_not_pass_for_those_in_front(self, server) -> None:
        """A proxy that passes them on has checked, and overwritten, the others alone."""
        with Peer(server) as peer:
            trailers = b"x-forwarded-for: 6.6.6.6\r\nauthorization: Bearer x\r\nhost: y\r\nconnection: upgrade\r\n"
            peer.send(post(length=None) + b"5\r\nhello\r\n0\r\n" + trailers + b"upgrade: h2c\r\n\r\n")
            _, said = peer.answer()
            assert said["headers"] == ["host: x", "transfer-encoding: chunked"]
            assert_the_next_is_my_own(peer)


class TestWhatFollows:
    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"PUT"])
    def test_bodies_of_any_method(self, server, method) -> None:
        with Peer(server) as peer:
            peer.send(post().replace(b"POST", method))
            peer.send(SMUGGLED + BODY[len(SMUGGLED) :])
            if method == b"HEAD":
                assert peer.file.readline().startswith(b"HTTP/1.1 200")
                while peer.file.readline().strip():
                    pass
            else:
                assert peer.answer()[1]["path"] == "/first"
            assert_the_next_is_my_own(peer)

    def test_an_early_answer(self, server) -> None:
        """What still comes of the body is skipped, not read as a request."""
        with Peer(server) as peer:
            peer.send(post(b"/early"))
            assert peer.answer()[1]["path"] == "/early"
            peer.send(SMUGGLED + BODY[len(SMUGGLED) :])
            assert_the_next_is_my_own(peer)

    def test_an_answer_in_place_of_100(self, server) -> None:
        """Whether the body comes then is the client's choice, so nothing more is read."""
        with Peer(server) as peer:
            peer.send(post(b"/early", headers=b"expect: 100-continue\r\n", length=len(SMUGGLED)))
            assert peer.answer()[1]["path"] == "/early"
            peer.send(2 * SMUGGLED)
            assert peer.hung_up()

    def test_100_goes_to_nobody_who_does_not_know_it(self, server) -> None:
        head = post(headers=b"expect: 100-continue\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
        with Peer(server) as peer:
            peer.send(head + BODY)
            assert peer.file.readline().startswith(b"HTTP/1.1 200")

    @pytest.mark.parametrize("how", ["close", "1.0", "1.0 keep-alive"])
    def test_nothing_is_answered_after_the_last(self, server, how) -> None:
        head = post(headers={"close": b"connection: close\r\n"}.get(how, b"connection: keep-alive\r\n"))
        if how != "close":
            head = head.replace(b"HTTP/1.1", b"HTTP/1.0")
        with Peer(server) as peer:
            peer.send(head + BODY + SMUGGLED + b"nonsense\r\n\r\n")
            assert peer.answer()[1]["path"] == "/first"
            assert peer.hung_up()

    def test_a_broken_request_behind_others_waits_for_their_answers(self, server, echo) -> None:
        """Before, its refusal went out in place of the first answer."""
        for broken in (b"nonsense\r\n\r\n", post(length=None) + b"zz\r\n", b"GET / HTTP/1.1\r\nx: \0"):
            echo.gate.clear()
            with Peer(server) as peer:
                peer.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" + post() + BODY + broken)
                peer.send(SMUGGLED)
                assert httpx.get(f"{server}/other").status_code == 200  # so the server has read what is above
                echo.gate.set()
                assert [peer.answer()[1].get("path") for _ in range(2)] == ["/slow", "/first"]
                assert peer.answer()[0] == 400
                assert peer.hung_up()
