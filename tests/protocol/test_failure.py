"""Errors as responses: the status, and JSON with ``error`` whatever happens."""

from __future__ import annotations

import json
import pickle

import pytest

from hybridge import errors
from hybridge.errors import BadAnswer, HybridgeError, Overloaded, RequestError, ServerRefused
from hybridge.protocol import HttpResponse, read_failure, write_failure, write_status

STATUS = {
    "HybridgeError": 500,
    "RequestError": 400,
    "UnknownParameter": 400,
    "NoPreview": 400,
    "UnsupportedMedia": 415,
    "TooLarge": 413,
    "UnknownModel": 404,
    "KeyNeeded": 401,
    "AdminNeeded": 403,
    "PairingRefused": 403,
    "UnknownKey": 404,
    "KeyExists": 409,
    "UnknownJob": 404,
    "NotDone": 409,
    "AmbiguousModel": 400,
    "TooSlow": 408,
    "ModelUnavailable": 503,
    "ReplicaUnavailable": 503,
    "ReplicaLost": 503,
    "Overloaded": 429,
    "ShuttingDown": 503,
    "ClientGone": 499,
    "DeadlinePassed": 504,
    "EngineFailure": 500,
    "OutOfMemory": 507,
    "StorageFailure": 503,
    "StorageFull": 507,
    "CannotLower": 500,
    "Stopped": 500,
    "ClientError": 500,
    "ServerUnreachable": 500,
    "ServerTimeout": 500,
    "BadAnswer": 500,
    "Mismatch": 500,
    "ServerRefused": 500,
}


def every_error() -> list[type[HybridgeError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HybridgeError)]


def make(kind: type[HybridgeError]) -> HybridgeError:
    needed = {
        "Overloaded": {"retry_after_s": 2.5},
        "ServerRefused": {"status": 418},
        "ReplicaLost": {"is_dead": True},
    }
    extra = needed.get(kind.__name__, {})
    return kind("it went wrong", hint="again", **extra)  # type: ignore[arg-type]


def test_the_table_has_every_error() -> None:
    assert {kind.__name__ for kind in every_error()} == set(STATUS)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_has_its_status_and_a_json_body(kind: type[HybridgeError]) -> None:
    response = write_failure(make(kind))
    assert response.status == STATUS[kind.__name__]
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.body) == {
        "error": "it went wrong. Try: again",
        "code": kind.__name__,
        "try": "again",
    }


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_round_trip(kind: type[HybridgeError]) -> None:
    refused = read_failure(write_failure(make(kind)))
    assert isinstance(refused, ServerRefused)
    assert str(refused) == "it went wrong. Try: again"
    assert refused.status == STATUS[kind.__name__]
    assert refused.code == kind.__name__
    assert refused.retry_after_s == (3.0 if kind is Overloaded else None)


def test_a_subclass_that_is_not_in_the_table_has_its_parents_status() -> None:
    class Odd(RequestError):
        pass

    response = write_failure(Odd("x"))
    assert response.status == 400
    assert json.loads(response.body)["code"] == "Odd"


def test_the_parts_of_an_error_stand_beside_the_sentence() -> None:
    error = RequestError("no", saw=[1, 2], expected="π", hint="more")
    assert json.loads(write_failure(error).body) == {
        "error": "no: saw [1, 2], expected π. Try: more",
        "code": "RequestError",
        "saw": "[1, 2]",
        "expected": "π",
        "try": "more",
    }


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(0.0, "1"), (-3.0, "1"), (1.0, "1"), (1.01, "2"), (59.5, "60"), (float("inf"), "86400"), (float("nan"), "1")],
)
def test_retry_after_is_whole_seconds_and_at_least_one(seconds: float, header: str) -> None:
    response = write_failure(Overloaded("full", retry_after_s=seconds))
    assert response.headers["retry-after"] == header


def test_only_the_full_line_says_when_to_come_back() -> None:
    assert "retry-after" not in write_failure(errors.ShuttingDown("bye")).headers


def test_text_that_is_no_unicode_is_still_written() -> None:
    for response in (write_failure(RequestError("a\ud800b")), write_status(404, "a\ud800b")):
        assert json.loads(response.body)["error"] == "a?b"


def test_http_errors_that_are_none_of_ours() -> None:
    response = write_status(405, "POST only")
    assert response.status == 405
    assert response.headers == {"content-type": "application/json"}
    assert json.loads(response.body) == {"error": "POST only", "code": "http-405"}
    refused = read_failure(response)
    assert isinstance(refused, ServerRefused)
    assert (refused.status, refused.code) == (405, "http-405")


def test_the_pilots_own_error_body_is_understood() -> None:
    refused = read_failure(HttpResponse(503, {}, b'{"error": "503 Service Unavailable"}'))
    assert isinstance(refused, ServerRefused)
    assert (str(refused), refused.status, refused.code) == ("503 Service Unavailable", 503, None)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>502</html>", b"{}", b"[]", b'"error"', b"null", b"7", b'{"detail": "x"}', b"\xff", b"[" * 99999],
)
def test_an_error_without_an_explanation(body: bytes) -> None:
    bad = read_failure(HttpResponse(502, {"content-type": "text/html"}, body))
    assert isinstance(bad, BadAnswer)
    assert str(bad).startswith("HTTP 502 without an explanation: saw text/html, beginning with")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("1e12", 86_400.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 9015 07:28:00 GMT", 86_400.0),
        ("Sun, 99 Nov 99999 99:99:99 GMT", None),
    ],
)
def test_reading_retry_after(header: str, seconds: float | None) -> None:
    refused = read_failure(HttpResponse(429, {"retry-after": header}, b'{"error": "full"}'))
    assert isinstance(refused, ServerRefused)
    assert refused.retry_after_s == seconds


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_errors_cross_process_borders(kind: type[HybridgeError]) -> None:
    error = make(kind)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))
