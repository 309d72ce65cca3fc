"""Places in front of the database are handed on in turn, and none is lost."""

import asyncio

from space_runtime.serving.limiter import ConcurrencyLimiter


def test_who_leaves_just_when_its_turn_comes_keeps_no_place() -> None:
    async def crowd() -> None:
        limiter = ConcurrencyLimiter(3)
        while limiter.try_to_enter():
            pass
        waiting = asyncio.create_task(limiter.enter())
        await asyncio.sleep(0)
        limiter.leave()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert limiter.try_to_enter()

    asyncio.run(crowd())
