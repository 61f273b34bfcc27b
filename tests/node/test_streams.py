import asyncio

from openlora.node.streams import KEPT_AFTER_END, JobStreams


async def collect(streams: JobStreams, job_id: int) -> str:
    return "".join([piece async for piece in streams.read(job_id)])


async def test_every_reader_gets_everything_whenever_it_comes():
    streams = JobStreams()
    streams.open(1)
    streams.publish(1, "He")
    async with asyncio.TaskGroup() as group:
        early = group.create_task(collect(streams, 1))
        await asyncio.sleep(0)
        streams.publish(1, "llo")
        late = group.create_task(collect(streams, 1))
        await asyncio.sleep(0)
        streams.publish(1, "")
        streams.publish(1, "!")
        streams.end(1)
    assert early.result() == late.result() == "Hello!"
    assert await collect(streams, 1) == "Hello!"


async def test_an_unknown_job_has_no_text():
    streams = JobStreams()
    streams.end(5)
    assert streams.run_of(5) is None
    assert await collect(streams, 5) == ""


async def test_a_job_that_runs_again_ends_its_old_readers():
    streams = JobStreams()
    streams.open(1)
    streams.publish(1, "first")
    async with asyncio.TaskGroup() as group:
        old = group.create_task(collect(streams, 1))
        await asyncio.sleep(0)
        streams.open(1)
    assert old.result() == "first"
    assert streams.run_of(1) == 2


async def test_only_the_last_ended_streams_are_kept():
    streams = JobStreams()
    streams.open(0)
    for job_id in range(1, KEPT_AFTER_END + 3):
        streams.open(job_id)
        streams.end(job_id)
    assert streams.run_of(0) == 1  # still running
    assert streams.run_of(2) is None
    assert streams.run_of(3) == 1
