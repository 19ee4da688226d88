"""Queues, blocking and async: order, limits, errors that belong to their item, and endings."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from hybridge.client import AsyncClient, Client, Finished, Retry
from hybridge.client.queue import ReorderBuffer
from hybridge.errors import ClientError, RequestError, ServerRefused
from hybridge.protocol import HttpResponse

LATENTS = np.ones((1, 4, 2, 2), np.float32)
WAIT_S = 10


def numbered(index: int) -> np.ndarray:
    """Latents whose decoded pixels say which they were."""
    return LATENTS * (index / 100)


def number_in(seen_body: bytes) -> int:
    return round(float(np.frombuffer(seen_body, np.float32)[0]) * 100)


def number_of(pixels: Any) -> int:
    return round((float(pixels[0, 0, 0, 0]) / 255 - 0.5) * 200)


class Gates:
    """A stub whose answers wait until they are let go, each item by its number."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub
        self.arrived = threading.Semaphore(0)
        self.order: list[int] = []
        self._open: dict[int, threading.Event] = {}
        self._lock = threading.Lock()

    def gate(self, number: int) -> threading.Event:
        with self._lock:
            return self._open.setdefault(number, threading.Event())

    def handle(self, request: httpx.Request) -> httpx.Response:
        number = number_in(request.read())
        with self._lock:
            self.order.append(number)
        self.arrived.release()
        assert self.gate(number).wait(WAIT_S)
        with self._lock:
            return self.stub.handle(request)

    def let_go(self, *numbers: int) -> None:
        for number in numbers:
            self.gate(number).set()

    def client(self) -> Client:
        return Client("http://h", transport=httpx.MockTransport(self.handle))


@pytest.fixture
def gates(stub: Any) -> Gates:
    return Gates(stub)


def test_results_come_in_the_order_of_putting_with_their_tags(gates: Gates) -> None:
    with gates.client() as client, client.decode_queue(output="pixels", limit=3) as queue:
        for index in range(3):
            queue.put(numbered(index), tag=f"prompt {index}")
        gates.let_go(2, 1, 0)
        results = list(queue)
    assert [(r.index, r.tag, number_of(r.result())) for r in results] == [
        (0, "prompt 0", 0),
        (1, "prompt 1", 1),
        (2, "prompt 2", 2),
    ]
    assert list(queue) == []


def test_results_come_as_they_are_done_if_asked(gates: Gates) -> None:
    with gates.client() as client, client.decode_queue(output="pixels", limit=3, order="done") as queue:
        for index in range(3):
            queue.put(numbered(index))
        results = iter(queue)
        order = []
        for index in (2, 0, 1):
            gates.let_go(index)
            order.append(next(results).index)
    assert order == [2, 0, 1]


def test_putting_waits_for_a_place_and_not_before(gates: Gates) -> None:
    has_put = threading.Event()

    def put_third() -> None:
        queue.put(numbered(2))
        has_put.set()

    with gates.client() as client, client.decode_queue(output="pixels", limit=2) as queue:
        queue.put(numbered(0))  # both return while nothing has been answered
        queue.put(numbered(1))
        for _ in range(2):
            assert gates.arrived.acquire(timeout=WAIT_S)
        third = threading.Thread(target=put_third)
        third.start()
        assert not has_put.wait(0.05)
        assert sorted(gates.order) == [0, 1]
        gates.let_go(0)
        assert has_put.wait(WAIT_S)
        gates.let_go(1, 2)
        third.join(WAIT_S)
    assert [r.index for r in queue] == [0, 1, 2]


def test_decoding_overlaps_the_next_generation(gates: Gates) -> None:
    """Each "generation" ends only once the decode before it is at work, and that decode only ends afterwards."""
    with gates.client() as client, client.decode_queue(output="pixels", limit=2) as queue:
        for index in range(6):
            latents = numbered(index)  # made while item index - 1 is being decoded
            if index:
                assert gates.arrived.acquire(timeout=WAIT_S)
                assert not gates.gate(index - 1).is_set()
            queue.put(latents)
            if index:
                gates.let_go(index - 1)
        gates.let_go(5)
    assert [number_of(r.result()) for r in queue] == list(range(6))


def test_the_memory_of_an_item_may_be_used_again_at_once(gates: Gates) -> None:
    buffer = numbered(7).copy()
    with gates.client() as client, client.decode_queue(output="pixels", limit=1) as queue:
        queue.put(buffer)
        buffer[:] = 0.5
        gates.let_go(7)
    assert number_of(next(iter(queue)).result()) == 7


def fails_on(stub: Any, *numbers: int) -> Callable[[httpx.Request], httpx.Response]:
    def handle(request: httpx.Request) -> httpx.Response:
        if number_in(request.read()) in numbers:
            return httpx.Response(507, json={"error": "no room", "code": "OutOfMemory"})
        return stub.handle(request)

    return handle


def test_an_error_belongs_to_its_item(stub: Any) -> None:
    transport = httpx.MockTransport(fails_on(stub, 1))
    with Client("http://h", transport=transport) as client, client.decode_queue(output="pixels") as queue:
        for index in range(3):
            queue.put(numbered(index))
    first, second, third = queue
    assert (number_of(first.result()), number_of(third.result())) == (0, 2)
    assert isinstance(second.error, ServerRefused)
    with pytest.raises(ServerRefused, match="no room"):
        second.result()


def test_an_error_ends_the_queue_if_asked(stub: Any) -> None:
    def work() -> None:
        with client.decode_queue(output="pixels", limit=1, stop_on_error=True) as queue:
            queue.put(numbered(0))
            queue.put(numbered(1))  # waits for the only place, and learns of the failure

    client = Client("http://h", transport=httpx.MockTransport(fails_on(stub, 0)))
    with client, pytest.raises(ServerRefused, match="no room"):
        work()
    assert stub.seen == []


def test_an_exception_inside_cancels_what_was_not_sent(gates: Gates) -> None:
    def work() -> None:
        with queue:
            pool = queue._pool
            pool._max_workers = 1  # one thread for two places: the second item waits for the first to end
            queue.put(numbered(0))
            assert gates.arrived.acquire(timeout=WAIT_S)
            queue.put(numbered(1))
            end = pool.shutdown
            pool.shutdown = lambda wait: (gates.let_go(0), end(wait))
            raise KeyError("the generator broke")

    with gates.client() as client:
        queue = client.decode_queue(output="pixels", limit=2)
        with pytest.raises(KeyError, match="the generator broke"):
            work()
    sent, unsent = queue
    assert number_of(sent.result()) == 0
    assert isinstance(unsent.error, ClientError)
    assert "item 1 was not sent" in str(unsent.error)
    assert gates.order == [0]


def test_an_item_that_waits_while_another_thread_ends_the_block_is_refused(gates: Gates) -> None:
    errors: list[Exception] = []

    def put() -> None:
        try:
            queue.put(numbered(1))
        except Exception as error:
            errors.append(error)

    with gates.client() as client:
        queue = client.decode_queue(output="pixels", limit=1)
        with queue:
            queue.put(numbered(0))
            assert gates.arrived.acquire(timeout=WAIT_S)
            late = threading.Thread(target=put)
            late.start()  # it waits for the first item's place
            end = queue._pool.shutdown
            queue._pool.shutdown = lambda wait: (gates.let_go(0), late.join(WAIT_S), end(wait))
        (only,) = queue  # and does not wait for an item that nobody will send
    assert number_of(only.result()) == 0
    assert [type(error) for error in errors] == [RequestError]


def test_a_callback_gets_results_in_order_and_one_at_a_time(gates: Gates) -> None:
    got: list[int] = []

    def callback(finished: Finished) -> None:
        got.append(finished.index)

    with gates.client() as client, client.decode_queue(output="pixels", limit=3, callback=callback) as queue:
        for index in range(3):
            queue.put(numbered(index))
        gates.let_go(2, 1, 0)
    assert got == [0, 1, 2]
    with pytest.raises(RequestError, match="callback"):
        list(queue)


def test_a_callback_that_fails_is_heard_of(stub: Any) -> None:
    def callback(_: Finished) -> None:
        raise ZeroDivisionError("in the callback")

    def work() -> None:
        with client.decode_queue(callback=callback) as queue:
            queue.put(LATENTS)

    with Client("http://h", transport=stub.transport) as client, pytest.raises(ZeroDivisionError):
        work()


def test_bars_are_told_of_what_was_put_and_what_is_done(stub: Any) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, **arguments: Any) -> None:
            self.arguments, self.count, self.is_closed = arguments, 0, False
            bars.append(self)

        def update(self, step: int) -> None:
            self.count += step

        def close(self) -> None:
            self.is_closed = True

    client = Client("http://h", transport=stub.transport)
    with client, client.decode_queue(progress=Bar, total=3, limit=1) as queue:
        for _ in range(3):
            queue.put(LATENTS)
    assert [(bar.arguments["desc"], bar.arguments["total"]) for bar in bars] == [("put", 3), ("done", 3)]
    assert [(bar.count, bar.is_closed) for bar in bars] == [(3, True), (3, True)]


def test_tqdm_draws_two_bars(stub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    client = Client("http://h", transport=stub.transport)
    with client, client.decode_queue(progress=True, total=2) as queue:
        queue.put(LATENTS)
        queue.put(LATENTS)
    drawn = capsys.readouterr().err
    assert "put: 100%" in drawn
    assert "done: 100%" in drawn


def test_pictures_to_latents(stub: Any) -> None:
    picture = Image.new("RGB", (16, 8), (255, 0, 0))
    with Client("http://h", transport=stub.transport) as client, client.encode_queue(kind="numpy") as queue:
        queue.put(picture, tag="red")
    (finished,) = queue
    assert (finished.tag, finished.result().shape) == ("red", (1, 4, 1, 2))


def test_mistakes_are_named_before_anything_is_sent(stub: Any) -> None:
    with Client("http://h", transport=stub.transport) as client:
        with pytest.raises(TypeError, match="modle"):
            client.decode_queue(modle="sd-v1")
        with pytest.raises(RequestError, match="limit=0"):
            client.decode_queue(limit=0)
        with pytest.raises(RequestError, match="put or done"):
            client.decode_queue(order="random")
        with pytest.raises(RequestError, match="not open"):
            client.decode_queue().put(LATENTS)
        with client.decode_queue() as queue, pytest.raises(RequestError, match="saw list"):
            queue.put([[1.0]])
        assert list(queue) == []
    assert stub.seen == []


def test_the_reorder_buffer_alone() -> None:
    buffer = ReorderBuffer("put")
    assert [buffer.put() for _ in range(3)] == [0, 1, 2]
    assert buffer.done(Finished(1, None)) == []
    assert [f.index for f in buffer.done(Finished(0, None))] == [0, 1]
    assert not buffer.is_settled
    assert [f.index for f in buffer.done(Finished(2, None))] == [2]
    assert buffer.is_settled


# ------------------------------------------------------------------------------------------------- async


class AsyncGates:
    def __init__(self, stub: Any) -> None:
        self.stub = stub
        self.order: list[int] = []
        self.cancelled: list[int] = []
        self.gates = [asyncio.Event() for _ in range(8)]
        self.arrived = asyncio.Semaphore(0)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        number = number_in(await request.aread())
        self.order.append(number)
        self.arrived.release()
        try:
            await self.gates[number].wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        return self.stub.handle(request)

    def client(self) -> AsyncClient:
        return AsyncClient("http://h", transport=httpx.MockTransport(self.handle), retries=Retry(attempts=1))


def run(main: Callable[[], Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(main(), WAIT_S)

    return asyncio.run(bounded())


def test_async_results_in_order_while_putting_goes_on(stub: Any) -> None:
    async def main() -> list[Finished]:
        gates = AsyncGates(stub)
        async with gates.client() as client, client.decode_queue(output="pixels", limit=2) as queue:
            await queue.put(numbered(0), tag="a")
            await queue.put(numbered(1), tag="b")
            third = asyncio.ensure_future(queue.put(numbered(2), tag="c"))
            for _ in range(2):
                await gates.arrived.acquire()
            assert not third.done()
            assert sorted(gates.order) == [0, 1]
            gates.gates[1].set()
            await third
            gates.gates[0].set()
            gates.gates[2].set()
            return [finished async for finished in queue]

    assert [(f.tag, number_of(f.result())) for f in run(main)] == [("a", 0), ("b", 1), ("c", 2)]


def test_async_order_of_being_done_and_errors_of_their_own(stub: Any) -> None:
    async def main() -> list[Finished]:
        async with AsyncClient("http://h", transport=httpx.MockTransport(fails_on(stub, 1))) as client:
            async with client.decode_queue(output="pixels", order="done", limit=1) as queue:
                for index in range(3):
                    await queue.put(numbered(index))
            return [finished async for finished in queue]

    first, second, third = run(main)
    assert (number_of(first.result()), number_of(third.result())) == (0, 2)
    assert isinstance(second.error, ServerRefused)


def test_an_exception_inside_cancels_async_calls_under_way(stub: Any) -> None:
    async def work(queue: Any, gates: AsyncGates) -> None:
        async with queue:
            await queue.put(numbered(0))
            await gates.arrived.acquire()
            raise KeyError("the generator broke")

    async def main() -> None:
        gates = AsyncGates(stub)
        async with gates.client() as client:
            queue = client.decode_queue(output="pixels", limit=2)
            with pytest.raises(KeyError, match="the generator broke"):
                await work(queue, gates)
            assert gates.cancelled == [0]
            (unsent,) = [finished async for finished in queue]
            assert isinstance(unsent.error, ClientError)

    run(main)


def test_an_async_item_that_waits_while_another_task_ends_the_block_is_refused(stub: Any) -> None:
    async def main() -> None:
        gates = AsyncGates(stub)
        async with gates.client() as client:
            queue = client.decode_queue(output="pixels", limit=1)
            async with queue:
                await queue.put(numbered(0))
                await gates.arrived.acquire()
                late = asyncio.ensure_future(queue.put(numbered(1)))
                await asyncio.sleep(0)  # it waits for the first item's place
                asyncio.get_running_loop().call_later(0.05, gates.gates[0].set)
            with pytest.raises(RequestError, match="not open"):
                await late
            (only,) = [finished async for finished in queue]
            assert number_of(only.result()) == 0

    run(main)


def test_async_stop_on_error_and_callback(stub: Any) -> None:
    got: list[int] = []

    async def main() -> None:
        async with (
            AsyncClient("http://h", transport=httpx.MockTransport(fails_on(stub, 1))) as client,
            client.decode_queue(
                output="pixels", limit=1, stop_on_error=True, callback=lambda f: got.append(f.index)
            ) as queue,
        ):
            for index in range(4):
                await queue.put(numbered(index))

    with pytest.raises(ServerRefused, match="no room"):
        run(main)
    assert got == [0, 1]


def test_without_tqdm_the_hint_says_what_to_install() -> None:
    code = """
import sys
sys.modules["tqdm"] = None
from hybridge import Client
from hybridge.errors import RequestError
try:
    with Client("http://h") as client, client.decode_queue(progress=True):
        pass
except RequestError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install tqdm" in output


def test_a_busy_server_delays_its_item_alone(stub: Any) -> None:
    stub.first = [HttpResponse(429, {"retry-after": "2", "content-type": "application/json"}, b'{"error": "full"}')]
    waits: list[float] = []
    with (
        Client(
            "http://h", transport=stub.transport, retries=Retry(random=lambda: 0.0), sleep=waits.append
        ) as client,
        client.decode_queue(output="pixels", limit=1) as queue,
    ):
        queue.put(numbered(3))
    assert waits == [2.0]
    assert number_of(next(iter(queue)).result()) == 3
