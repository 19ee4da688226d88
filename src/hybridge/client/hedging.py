"""A second call to another server if the first is not answered soon; the sooner good answer counts.

The other call is cancelled by closing its connection, and its server takes the job off the queue.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Awaitable, Callable

import anyio

from ..protocol import DecodeRequest, Request
from .flow_types import Arrived, Call, Flow, Hedge, Raced, Settled
from .load_balancer import Fleet, Server
from .network import Abort


def is_repeatable(request: Request) -> bool:
    """Return whether two servers give the same answer; others draw at random, without a seed."""
    draws = request.decode_noise_scale if isinstance(request, DecodeRequest) else request.sample
    return not draws or request.seed is not None


def hedged(
    fleet: Fleet, server: Server, call_to: Callable[[Server], Call], after_s: float, model: str | None
) -> Flow[tuple[Server, Settled]]:
    """Make one call to a server and, if it takes long, to another; return whose outcome counts, and the outcome.

    The other server is no longer leased then; that its call was cancelled says nothing about it.

    Args:
        fleet: The servers.
        server: The first one, which is leased.
        call_to: Returns the call to a server.
        after_s: Seconds until the second call.
        model: The model that the call is for.
    """
    leased = [server]

    def another() -> Call | None:
        if not fleet.can_spare(leased):
            return None
        leased.append(fleet.lease(leased, model))
        return dataclasses.replace(call_to(leased[1]), progress=None)

    try:
        raced: Raced = yield dataclasses.replace(call_to(server), hedge=Hedge(after_s, another))
    except BaseException:
        for one in leased:
            fleet.released(one)
        raise
    chosen, outcome = leased[0], raced.first
    if raced.second is not None and (is_good(raced.second) or outcome is None):
        chosen, outcome = leased[1], raced.second
    assert outcome is not None  # noqa: S101 - a race ends with an outcome
    for one in leased:
        if one is not chosen:
            fleet.released(one)
    return chosen, outcome


def race(call: Call, perform: Callable[[Call, Abort], Settled]) -> Raced:
    """Make a call, and its hedge if need be.

    Args:
        call: The call, with a hedge.
        perform: Makes one call, until it is aborted; runs in threads.
    """
    assert call.hedge is not None  # noqa: S101 - or nobody would call
    ended: queue.SimpleQueue[tuple[int, Settled | None, BaseException | None]] = queue.SimpleQueue()
    aborts: list[Abort] = []
    outcomes: list[Settled | None] = [None, None]

    def begin(one: Call) -> None:
        number, abort = len(aborts), Abort()
        aborts.append(abort)

        def work() -> None:
            try:
                ended.put((number, perform(dataclasses.replace(one, hedge=None), abort), None))
            except BaseException as error:
                ended.put((number, None, error))

        threading.Thread(target=work, name="hybridge-call", daemon=True).start()

    begin(call)
    timeout_s: float | None = call.hedge.after_s
    try:
        while any(outcome is None for outcome in outcomes[: len(aborts)]):
            try:
                number, outcome, raised = ended.get(timeout=timeout_s)
            except queue.Empty:
                timeout_s = None
                if (other := call.hedge.call()) is not None:
                    begin(other)
                continue
            if raised is not None:
                raise raised
            outcomes[number] = outcome
            if is_good(outcome):
                break
        return Raced(*outcomes)
    finally:
        for abort, settled in zip(aborts, outcomes, strict=False):
            if settled is None:
                abort()


async def race_async(call: Call, perform: Callable[[Call], Awaitable[Settled]]) -> Raced:
    """:func:`race`, awaited."""
    assert call.hedge is not None  # noqa: S101 - as above
    outcomes: list[Settled | None] = [None, None]
    errors: list[Exception] = []
    first_ended = anyio.Event()

    async def make(number: int, one: Call, scope: anyio.CancelScope) -> None:
        try:
            outcomes[number] = await perform(dataclasses.replace(one, hedge=None))
        except Exception as error:  # raised below, outside of the group
            errors.append(error)
        first_ended.set()
        if errors or is_good(outcomes[number]):
            scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(make, 0, call, group.cancel_scope)
        with anyio.move_on_after(call.hedge.after_s):
            await first_ended.wait()
        if not first_ended.is_set() and (other := call.hedge.call()) is not None:
            group.start_soon(make, 1, other, group.cancel_scope)
    if errors:
        raise errors[0]
    return Raced(*outcomes)


def is_good(outcome: Settled | None) -> bool:
    """Return whether a call was answered as it should be."""
    return isinstance(outcome, Arrived) and 200 <= outcome.status < 300
