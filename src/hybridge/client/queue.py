"""Queues of calls that overlap with the computation of the next input; results come in order or as they are done.

:class:`ReorderBuffer` decides which results may be delivered, without threads or an event loop.
:class:`CallQueue` uses threads, :class:`AsyncCallQueue` tasks.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast, get_args

import anyio

from ..errors import ClientError, RequestError
from .flow_types import Flow

#: The order of results: as their items were ``put``, or as they are ``done``.
Order = Literal["put", "done"]


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Finished(Generic[ResultT]):
    """The outcome of one item.

    Attributes:
        index: The item's number, from 0, in the order of :meth:`CallQueue.put`.
        tag: The tag that was put with the item.
        error: The error of a failed call; None if there is a result.
    """

    index: int
    tag: Any
    value: ResultT | None = None
    error: Exception | None = None

    def result(self) -> ResultT:
        """Return the call's result, or raise its error."""
        if self.error is not None:
            raise self.error
        return cast(ResultT, self.value)


@dataclass(frozen=True, slots=True)
class Recipe(Generic[ResultT]):
    """The settings of a queue; :meth:`Client.decode_queue` documents the fields.

    Raises:
        RequestError: for an invalid limit or order.
        TypeError: for arguments that the call does not have.
    """

    begin: Callable[..., Flow[ResultT]]
    call: Callable[..., Any]
    arguments: Mapping[str, Any]
    limit: int
    order: Order
    callback: Callable[[Finished[ResultT]], None] | None
    progress: bool | Callable[..., Any]
    total: int | None
    stop_on_error: bool

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise RequestError("a queue without a place", saw=f"limit={self.limit}", expected="at least 1")
        if self.order not in get_args(Order):
            raise RequestError("unknown order", saw=repr(self.order), expected=" or ".join(get_args(Order)))
        inspect.signature(self.call).bind(None, **self.arguments)


class ReorderBuffer(Generic[ResultT]):
    """A buffer of results that delivers them in the queue's order."""

    def __init__(self, order: Order) -> None:
        self._keeps_order = order == "put"
        self._put = 0
        self._handed = 0
        self._early: dict[int, Finished[ResultT]] = {}

    def put(self) -> int:
        """Record a new item and return its index."""
        self._put += 1
        return self._put - 1

    def done(self, finished: Finished[ResultT]) -> list[Finished[ResultT]]:
        """Record a result, and return the results that may be delivered now, in order."""
        self._early[finished.index] = finished
        ready = []
        while self._early:
            index = self._handed if self._keeps_order else next(iter(self._early))
            if index not in self._early:
                break
            ready.append(self._early.pop(index))
            self._handed += 1
        return ready

    @property
    def is_settled(self) -> bool:
        """Whether the results of all items have been delivered."""
        return self._handed == self._put


class _Bars:
    """Two progress bars, or none."""

    def __init__(self, progress: bool | Callable[..., Any], total: int | None) -> None:
        self._bars: list[Any] = []
        if progress is False:
            return
        bar = _tqdm() if progress is True else progress
        self._bars = [
            bar(desc=name, total=total, position=position) for position, name in enumerate(("put", "done"))
        ]

    def put(self) -> None:
        if self._bars:
            self._bars[0].update(1)

    def done(self) -> None:
        if self._bars:
            self._bars[1].update(1)

    def close(self) -> None:
        for bar in self._bars:
            bar.close()


def _tqdm() -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        raise RequestError(
            "progress bars need tqdm", expected="it installed", hint="`pip install tqdm`, or callback="
        ) from None
    return tqdm


class CallQueue(Generic[ItemT, ResultT]):
    """Calls in threads, at most ``limit`` at a time.

    ::

        with client.decode_queue(model="sdxl", limit=4) as queue:
            for prompt in prompts:
                queue.put(pipe(prompt, output_type="latent").images, tag=prompt)
        for finished in queue:
            finished.result().save(f"{finished.index}.png")

    A failure affects only its item, and :meth:`Finished.result` raises it.  With ``stop_on_error`` the next
    :meth:`put`, or the end of the block, raises the first failure.  The end of the block waits for all results.  An
    exception inside the block cancels items that have not been sent; calls in progress are waited for.
    """

    def __init__(self, recipe: Recipe[ResultT], run: Callable[[Flow[ResultT]], ResultT]) -> None:
        self._recipe = recipe
        self._run = run
        self._order: ReorderBuffer[ResultT] = ReorderBuffer(recipe.order)
        self._results: deque[Finished[ResultT]] = deque()
        self._changed = threading.Condition()
        self._handing = threading.Lock()
        self._places = threading.Semaphore(recipe.limit)
        self._is_cancelled = False
        self._failure: Exception | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> CallQueue[ItemT, ResultT]:
        self._bars = _Bars(self._recipe.progress, self._recipe.total)
        self._pool = ThreadPoolExecutor(self._recipe.limit, "hybridge-queue")
        return self

    def put(self, item: ItemT, *, tag: Any = None) -> None:
        """Start the call of an item; with ``limit`` calls in progress, first wait until one ends.

        The item is read before this returns, so its memory may be reused for the next item.

        Args:
            item: Latents for a decode queue, a picture for an encode queue.
            tag: Any value to return with the result, such as the prompt or a file name.

        Raises:
            RequestError: when the item cannot be sent, or outside of the ``with`` block.
        """
        self._open_pool()
        flow = self._recipe.begin(item, **self._recipe.arguments)
        self._places.acquire()
        try:
            if self._failure is not None:
                raise self._failure
            with self._changed:
                pool = self._open_pool()  # another thread may have ended the block meanwhile
                index = self._order.put()
                self._bars.put()
                pool.submit(self._work, index, tag, flow)
        except BaseException:
            self._places.release()
            raise

    def __iter__(self) -> Iterator[Finished[ResultT]]:
        """Yield each result once, and end when the results of all items put so far have been yielded.

        Inside the block this waits for results; to receive them while items are still being put, use ``callback``.
        """
        _refuse_both(self._recipe)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._results or self._order.is_settled)
                if not self._results:
                    return
                finished = self._results.popleft()
            yield finished

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_cancelled = kind is not None
        with self._changed:
            pool, self._pool = self._open_pool(), None
        pool.shutdown(wait=True)
        self._bars.close()
        if kind is None and self._failure is not None:
            raise self._failure

    def _open_pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            raise _closed()
        return self._pool

    def _work(self, index: int, tag: Any, flow: Flow[ResultT]) -> None:
        try:
            if self._is_cancelled or self._failure is not None:
                raise _not_sent(index)
            finished = Finished(index, tag, self._run(flow))
        except Exception as error:  # any error is the item's result
            finished = Finished(index, tag, error=error)
            if self._recipe.stop_on_error:
                self._failure = self._failure or error
        self._bars.done()
        # Released before the callback, which may put the next item.
        self._places.release()
        with self._handing:  # one callback at a time, in order
            with self._changed:
                ready = self._order.done(finished)
                if self._recipe.callback is None:
                    self._results.extend(ready)
                self._changed.notify_all()
            try:
                _call_back(self._recipe, ready)
            except Exception as error:  # raised later, by put or at the end of the block
                self._failure = self._failure or error


class AsyncCallQueue(Generic[ItemT, ResultT]):
    """:class:`CallQueue` with tasks: ``async with``, ``await queue.put(…)``, ``async for``.

    An exception inside the block cancels all calls, including those in progress.
    """

    def __init__(self, recipe: Recipe[ResultT], run: Callable[[Flow[ResultT]], Awaitable[ResultT]]) -> None:
        self._recipe = recipe
        self._run = run
        self._order: ReorderBuffer[ResultT] = ReorderBuffer(recipe.order)
        self._results: deque[Finished[ResultT]] = deque()
        self._failure: Exception | None = None
        self._is_open = False

    async def __aenter__(self) -> AsyncCallQueue[ItemT, ResultT]:
        self._changed = anyio.Event()
        self._places = anyio.Semaphore(self._recipe.limit)
        self._bars = _Bars(self._recipe.progress, self._recipe.total)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._is_open = True
        return self

    async def put(self, item: ItemT, *, tag: Any = None) -> None:
        """As :meth:`CallQueue.put`."""
        if not self._is_open:
            raise _closed()
        flow = self._recipe.begin(item, **self._recipe.arguments)
        await self._places.acquire()
        if self._failure is not None or not self._is_open:  # another task may have ended the block meanwhile
            self._places.release()
            raise self._failure or _closed()
        index = self._order.put()
        self._bars.put()
        self._tasks.start_soon(self._work, index, tag, flow)

    async def __aiter__(self) -> AsyncIterator[Finished[ResultT]]:
        """As :meth:`CallQueue.__iter__`."""
        _refuse_both(self._recipe)
        while True:
            while not self._results:
                if self._order.is_settled:
                    return
                await self._changed.wait()
            yield self._results.popleft()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_open = False
        if kind is not None:
            self._tasks.cancel_scope.cancel()
        try:
            # Without the block's exception, which the task group would wrap in another.
            await self._tasks.__aexit__(None, None, None)
        finally:
            self._bars.close()
        if kind is None and self._failure is not None:
            raise self._failure

    async def _work(self, index: int, tag: Any, flow: Flow[ResultT]) -> None:
        finished: Finished[ResultT] = Finished(index, tag, error=_not_sent(index))
        try:
            if self._failure is None:
                finished = Finished(index, tag, await self._run(flow))
        except Exception as error:  # any error is the item's result
            finished = Finished(index, tag, error=error)
            if self._recipe.stop_on_error:
                self._failure = self._failure or error
        finally:
            self._hand_over(finished)

    def _hand_over(self, finished: Finished[ResultT]) -> None:
        self._bars.done()
        self._places.release()
        ready = self._order.done(finished)
        if self._recipe.callback is None:
            self._results.extend(ready)
        try:
            _call_back(self._recipe, ready)
        except Exception as error:  # raised later, by put or at the end of the block
            self._failure = self._failure or error
        self._changed.set()
        self._changed = anyio.Event()


def _call_back(recipe: Recipe[ResultT], ready: list[Finished[ResultT]]) -> None:
    if recipe.callback is not None:
        for finished in ready:
            recipe.callback(finished)


def _refuse_both(recipe: Recipe[Any]) -> None:
    if recipe.callback is not None:
        raise RequestError("nothing is kept to iterate", saw="callback=", expected="a callback, or iterating")


def _closed() -> RequestError:
    return RequestError("this queue is not open", hint="`with client.decode_queue(…) as queue:`, and put inside")


def _not_sent(index: int) -> ClientError:
    return ClientError(f"item {index} was not sent", hint="the error that ended the queue says why")
