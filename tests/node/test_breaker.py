from openlora.node.breaker import FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker


def test_failures_in_a_row_open_it_for_longer_each_time():
    now_s = 100.0
    breaker = Breaker(clock=lambda: now_s)
    pauses = []
    for _ in range(FAILURES + 9):
        breaker.failed()
        started_s = now_s
        while breaker.open:
            now_s += 1
        pauses.append(now_s - started_s)
    assert pauses[: FAILURES + 2] == [0] * (FAILURES - 1) + [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_jobs_that_fail_together_open_it_once_and_one_that_works_starts_anew():
    now_s = 100.0
    breaker = Breaker(clock=lambda: now_s)
    for _ in range(FAILURES + 4):
        breaker.failed()
    now_s += FIRST_PAUSE_S
    assert not breaker.open
    breaker.worked()
    breaker.failed()
    assert not breaker.open
