"""The scheduler under random histories: whatever comes, every page is counted and every answer is the lonely one."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.sequence import Sequence
from openlora.node.errors import Overloaded
from tests.node.engine.passes import Passes, request

BEGINNINGS = ([1] * 30, [1] * 13 + [2] * 17, [3] * 30)
LINES: tuple[tuple[str, ...], ...] = ((), ("x",), ("y",), ("x", "y"))


class Histories(RuleBasedStateMachine):
    requests: Bundle[Sequence] = Bundle("requests")

    @initialize(
        pages=st.integers(25, 60),
        max_batch_tokens=st.integers(6, 64),
        max_running=st.integers(1, 6),
    )
    def begin(self, pages: int, max_batch_tokens: int, max_running: int) -> None:
        self.limits = EngineLimits(
            kv_tokens=pages * 4,
            page_tokens=4,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            max_waiting=30,
        )
        self.passes = Passes(self.limits)
        self.live: dict[str, Sequence] = {}
        self.count = 0

    @rule(
        target=requests,
        beginning=st.sampled_from(BEGINNINGS),
        length=st.integers(1, 30),
        own=st.integers(0, 30),
        output=st.integers(1, 40),
        tenant=st.sampled_from("abc"),
        line=st.sampled_from(LINES),
        shared=st.booleans(),
        wrong=st.sampled_from((None, 0.0, 0.3, 1.0)),
    )
    def submit(
        self,
        beginning: list[int],
        length: int,
        own: int,
        output: int,
        tenant: str,
        line: tuple[str, ...],
        shared: bool,
        wrong: float | None,
    ) -> object:
        self.count += 1
        prompt = beginning[:length] + [self.count % 5] * own
        sequence = request(str(self.count), prompt, output, tenant=tenant, line=line, shared=shared, wrong=wrong)
        try:
            self.passes.add(sequence)
        except Overloaded:
            return multiple()
        self.live[sequence.request_id] = sequence
        return sequence

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.passes.step()
        for request_id in self.passes.finished:
            if (sequence := self.live.pop(request_id, None)) is not None:
                self.check_answer(sequence)

    @rule(sequence=requests)
    def cancel(self, sequence: Sequence) -> None:
        if self.live.pop(sequence.request_id, None) is not None:
            self.passes.scheduler.remove(sequence)

    @precondition(lambda self: self.passes.scheduler.running)
    @rule(which=st.integers(0, 5))
    def compute_again(self, which: int) -> None:
        running = self.passes.scheduler.running
        self.passes.scheduler.recompute(running[which % len(running)])

    @precondition(lambda self: self.passes.scheduler.running)
    @rule(which=st.integers(0, 5))
    def preempt(self, which: int) -> None:
        running = self.passes.scheduler.running
        self.passes.scheduler._preempt(running[which % len(running)])

    @rule(share=st.floats(0, 1))
    def evict(self, share: float) -> None:
        blocks = self.passes.blocks
        blocks.release(blocks.allocate(int(share * blocks.available)))

    @precondition(lambda self: self.passes.scheduler.running)
    @rule()
    def distrust(self) -> None:
        self.passes.scheduler.distrust(self.passes.scheduler.running[0])

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "passes"):
            self.passes.scheduler.check_integrity()

    def teardown(self) -> None:
        if hasattr(self, "passes"):
            self.passes.run()
            self.step(1)
            assert not self.live
            assert self.passes.blocks.available == self.passes.blocks.pages

    def check_answer(self, sequence: Sequence) -> None:
        alone = Passes(self.limits)
        prompt = sequence.tokens[: sequence.prompt_length]
        again = request("again", prompt, sequence.generated, tenant=sequence.tenant, line=sequence.line)
        alone.add(again)
        alone.run()
        assert again.tokens == sequence.tokens


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
