"""What waits for the broker is bounded, newest of each topic, and what is lost is counted."""

import asyncio
from pathlib import Path

from openlora.node.job import JobId, JobState, SkipCode
from openlora.node.telemetry.outbox import Outbox, Waiting
from openlora.node.telemetry.reporter import Reporter
from openlora.node.telemetry.topics import JobMessage, Place, StateMessage
from tests.node.facts import OPERATOR, submitted
from tests.node.telemetry.scene import CHAIN_ID, Scene, observed

PLACE = Place(CHAIN_ID, OPERATOR)


def job(number: int) -> Waiting:
    return Waiting(f"jobs/{number}", JobMessage, {}, retain=False)


def state(online: bool = True) -> Waiting:
    return Waiting("state", StateMessage, {"online": online}, retain=True)


async def drained(outbox: Outbox) -> list[str]:
    topics = []
    while len(outbox):
        message = await outbox.oldest()
        outbox.sent(message)
        topics.append(message.topic)
    return topics


async def test_jobs_are_dropped_and_counted_and_what_is_retained_stays():
    outbox = Outbox(capacity=3)
    outbox.put(state())
    for number in range(5):
        outbox.put(job(number))
    assert (len(outbox), outbox.dropped) == (3, 3)
    assert await drained(outbox) == ["state", "jobs/3", "jobs/4"]


async def test_a_newer_message_takes_the_place_of_the_older_even_while_that_is_sent():
    outbox = Outbox()
    outbox.put(state())
    outbox.put(job(1))
    sending = await outbox.oldest()
    outbox.put(newer := state(online=False))
    outbox.sent(sending)
    assert await outbox.oldest() is newer
    assert outbox.dropped == 0


async def test_an_empty_outbox_waits():
    outbox = Outbox()
    coming = asyncio.ensure_future(outbox.oldest())
    await asyncio.sleep(0)
    assert not coming.done()
    outbox.put(job(1))
    assert (await coming).topic == "jobs/1"


def reporter(scene: Scene, outbox: Outbox) -> Reporter:
    return Reporter(
        place=PLACE,
        outbox=outbox,
        observe=scene.observer.snapshot,
        jobs_changed_since=scene.journal.changed_since,
    )


async def test_a_topic_is_told_when_it_changed_and_not_before(tmp_path: Path):
    async with observed(tmp_path) as scene:
        outbox = Outbox()
        telling = reporter(scene, outbox)
        telling.report(await scene.observer.snapshot())
        names = ("state", "adapters", "earnings", "alerts")
        assert await drained(outbox) == [PLACE.topic(name) for name in names]
        telling.report(await scene.observer.snapshot())
        assert await drained(outbox) == []
        scene.loaded.held = [b"\x01" * 32]
        telling.report(await scene.observer.snapshot())
        assert await drained(outbox) == [PLACE.topic("state"), PLACE.topic("adapters")]
        telling.repeat()
        assert len(outbox) == len(names)


async def test_each_change_of_a_job_is_told_once(tmp_path: Path):
    async with observed(tmp_path) as scene:
        outbox = Outbox()
        telling = reporter(scene, outbox)
        scene.apply(submitted(1), submitted(2))
        telling.report_jobs()
        assert await drained(outbox) == [PLACE.topic("jobs/1"), PLACE.topic("jobs/2")]
        telling.report_jobs()
        scene.journal.move(JobId(2), JobState.SKIPPED, skip=SkipCode.LOW_DISK)
        telling.report_jobs()
        assert await drained(outbox) == [PLACE.topic("jobs/2")]
