"""The batcher alone: a fake model, a fake clock, and for the thread none."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_model import LAYERS, LEVELS, Bench

from consistentee_ext.serving.request import DrainingError, OverloadedError, Request


def values(request: Request) -> list[float]:
    """The answers' first logits, which the fake makes each row's last id."""
    return [answer.logits[0] for answer in request.answers if answer is not None]


def expected(request: Request) -> list[float]:
    return [float(row.ids[-1]) for row in request.rows]


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(
        st.lists(st.tuples(st.integers(2, 20), st.integers(1, LAYERS)), min_size=1, max_size=5),
        max_size=12,
    ),
    budget=st.integers(1, 40),
    data=st.data(),
)
def test_each_request_is_answered_once_within_the_budget(
    sizes: list[list[tuple[int, int]]], budget: int, data: st.DataObject
) -> None:
    bench = Bench(batch=budget, queue=10_000)
    requests = []
    for size in sizes:
        requests.append(bench.ask(*(bench.row(*shape) for shape in size)))
        if data.draw(st.booleans()):
            bench.batcher.run_batch()
    bench.run()
    assert sorted(map(id, bench.delivered)) == sorted(map(id, requests))
    for request in requests:
        assert request.error is None
        assert values(request) == expected(request)
        assert [a.exit_layer for a in request.answers if a] == [row.ids[0] for row in request.rows]
    run = [row for batch in bench.model.batches for row in batch]
    assert [row.ids[-1] for row in run] == [r.ids[-1] for q in requests for r in q.rows]
    for batch in bench.model.batches:
        assert sum(len(row.ids) for row in batch) <= budget or len(batch) == 1
    assert bench.batcher.queued_tokens == 0


def test_a_batch_takes_all_that_fits_of_what_is_there() -> None:
    bench = Bench(batch=10)
    for length in (4, 4, 4, 12, 2):
        bench.ask(bench.row(length))
    assert bench.run() == 4
    lengths = [[len(row.ids) for row in batch] for batch in bench.model.batches]
    assert lengths == [[4, 4], [4], [12], [2]]
    assert bench.log.sizes == [(2, 8), (1, 4), (1, 12), (1, 2)]


def test_an_answer_does_not_wait_for_the_batch() -> None:
    bench = Bench()
    slow, fast = bench.ask(bench.row(layer=4)), bench.ask(bench.row(layer=1))
    bench.run()
    assert bench.delivered == [fast, slow]
    assert fast.finished < slow.finished
    assert bench.model.steps == [False] * 4


def test_rows_that_are_answered_together_run_in_one_step() -> None:
    bench = Bench()
    bench.ask(bench.row(layer=1), bench.row(layer=3))
    bench.run()
    assert bench.model.steps == [True]


def test_the_queue_is_bounded_in_tokens() -> None:
    bench = Bench(batch=8, queue=20)
    bench.ask(bench.row(8))
    bench.run()
    for _ in range(5):
        bench.ask(bench.row(4))
    with pytest.raises(OverloadedError) as refused:
        bench.ask(bench.row(2))
    assert refused.value.retry_after == 1
    with pytest.raises(ValueError, match="request of 21 tokens > maximum queue of 20 tokens"):
        bench.ask(bench.row(21))
    bench.batcher.run_batch()
    bench.ask(bench.row(8))
    assert max(bench.log.queued) == 20


def test_retry_after_is_the_time_the_queue_takes() -> None:
    bench = Bench(batch=8, queue=20)
    bench.model.seconds = 0.5  # so much for each of 4 layers: 2 s a token
    bench.ask(bench.row(8))
    bench.run()
    bench.ask(bench.row(20))
    with pytest.raises(OverloadedError) as refused:
        bench.ask(bench.row(2))
    assert refused.value.retry_after == 40


def test_brown_out_comes_before_a_refusal_and_goes_with_the_queue() -> None:
    bench = Bench(LEVELS, batch=10, queue=100)
    first = [bench.ask(bench.row(10)) for _ in range(6)]
    assert bench.batcher.level.name == "fast"
    bench.ask(bench.row(10))
    assert bench.batcher.level.name == "fast"  # a second has to pass
    bench.clock.now += 1.0
    bench.ask(bench.row(10))
    assert bench.batcher.level.name == "faster"
    own = bench.ask(bench.row(10), threshold=0.9)
    bench.clock.now += 1.0
    bench.ask(bench.row(10))
    with pytest.raises(OverloadedError):
        bench.ask(bench.row(10))
    bench.model.seconds = 0.0
    bench.run()
    assert [row[0] for row in bench.model.thresholds] == [0.2] * 8 + [0.9, 0.5]
    assert first[0].answers[0] is not None
    assert first[0].answers[0].level == "faster"
    assert own.answers[0] is not None
    assert own.answers[0].level is None
    assert bench.batcher.level.name == "fast"  # back by one, a second after the last change
    bench.clock.now += 5.0
    bench.ask(bench.row(2))
    assert bench.batcher.level.name == "exact"
    assert bench.log.levels[-1] == 0


def test_the_level_holds_between_the_marks() -> None:
    bench = Bench(LEVELS, batch=10, queue=100)
    for _ in range(6):
        bench.ask(bench.row(10))
    bench.model.seconds = 0.0
    for queued in (50, 40, 30, 20):
        bench.clock.now += 2.0
        bench.batcher.run_batch()
        assert bench.batcher.queued_tokens == queued
        assert bench.batcher.level.name == "fast"
    bench.clock.now += 2.0
    bench.batcher.run_batch()
    assert bench.batcher.level.name == "exact"


def test_the_level_is_faster_where_deadlines_pass_in_a_queue_with_room() -> None:
    bench = Bench(LEVELS, batch=10, queue=1000)
    late = bench.ask(bench.row(10), deadline=bench.clock.now + 0.5)
    kept = bench.ask(bench.row(10))
    bench.clock.now += 1.0
    bench.run()
    assert late.error is not None
    assert kept.answers[0] is not None
    assert kept.answers[0].level == "fast"


def test_expired_rows_enter_no_batch() -> None:
    bench = Bench(batch=8)
    late = bench.ask(bench.row(4), bench.row(8), deadline=bench.clock.now + 0.5)
    kept = bench.ask(bench.row(4), deadline=bench.clock.now + 5.0)
    bench.clock.now += 0.5
    bench.run()
    assert bench.model.batches == [[kept.rows[0]]]
    assert bench.delivered == [late, kept]
    assert isinstance(late.error, OverloadedError)
    assert bench.log.drops == {"deadline": 2}
    assert bench.batcher.queued_tokens == 0


def test_a_row_leaves_before_its_deadline_would_be_missed() -> None:
    """A step takes 8 ms with both rows there: at 20 ms two were done, a third would be late."""
    bench = Bench(batch=16)
    bench.ask(bench.row(8))  # from which the batcher learns what a step takes
    bench.ask(bench.row(8))
    bench.run()
    begun = bench.clock.now
    urgent = bench.ask(bench.row(4), deadline=begun + 0.020)
    patient = bench.ask(bench.row(4), deadline=begun + 10.0)
    bench.run()
    assert urgent.answers[0] is not None
    assert (urgent.answers[0].exit_layer, urgent.answers[0].at_deadline) == (2, True)
    assert urgent.finished - begun == pytest.approx(0.016)
    assert patient.answers[0] is not None
    assert (patient.answers[0].exit_layer, patient.answers[0].at_deadline) == (4, False)
    assert bench.model.released == [urgent.rows[0].ids[-1]]


@settings(max_examples=100, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(2, 9), st.integers(1, LAYERS), st.floats(0.001, 0.2)), min_size=1
    )
)
def test_no_answer_is_later_than_its_deadline_and_a_layer(
    shapes: list[tuple[int, int, float]],
) -> None:
    bench = Bench(batch=16, queue=10_000)
    bench.ask()
    bench.ask()
    bench.run()  # the batcher has learnt what a step takes
    requests = [
        bench.ask(bench.row(length, layer), deadline=bench.clock.now + seconds)
        for length, layer, seconds in shapes
    ]
    bench.run()
    for request in requests:
        assert request in bench.delivered
        if request.error is None:
            assert request.deadline is not None
            assert request.finished <= request.deadline + 16 * bench.model.seconds + 1e-9


def test_rows_of_clients_that_hung_up_are_dropped() -> None:
    bench = Bench(batch=8, queue=24)
    gone, kept = bench.ask(bench.row(8), bench.row(8)), bench.ask(bench.row(8))
    bench.batcher.hang_up(gone)
    bench.batcher.hang_up(gone)
    assert bench.batcher.queued_tokens == 8
    bench.ask(bench.row(8), bench.row(8))  # there is room again
    bench.run()
    assert gone not in bench.delivered
    assert bench.model.batches[0] == [kept.rows[0]]
    assert bench.log.drops == {"hung_up": 2}
    bench.batcher.hang_up(kept)
    assert bench.log.drops == {"hung_up": 2}


def test_rows_of_a_client_that_hangs_up_leave_the_pass() -> None:
    bench = Bench(batch=16)
    gone, kept = bench.ask(bench.row(8)), bench.ask(bench.row(8))
    bench.model.while_running = lambda: bench.batcher.hang_up(gone)
    bench.run()
    assert bench.model.released == [gone.rows[0].ids[-1]]
    assert bench.delivered == [kept]
    assert values(kept) == expected(kept)


def test_a_failing_pass_fails_its_requests_alone() -> None:
    bench = Bench(batch=8)

    def fail() -> None:
        raise RuntimeError("no memory")

    bench.model.while_running = fail
    failed = bench.ask(bench.row(4), bench.row(8))
    assert bench.batcher.run_batch()
    assert str(failed.error) == "no memory"
    assert bench.delivered == [failed]
    bench.model.while_running = lambda: None
    after = bench.ask(bench.row(4))
    bench.run()
    assert values(after) == expected(after)
    assert bench.batcher.queued_tokens == 0


def test_a_drained_batcher_has_answered_all_and_takes_nothing() -> None:
    bench = Bench(batch=8, queue=1000)
    begun = threading.Event()

    def wait() -> None:
        assert begun.wait(10)

    bench.model.while_running = wait
    batcher = bench.batcher
    assert not batcher.is_healthy
    batcher.start()
    assert batcher.is_healthy
    requests = [bench.ask(bench.row(4)) for _ in range(20)]
    draining = threading.Thread(target=batcher.drain)
    draining.start()
    begun.set()
    draining.join(10)
    assert not draining.is_alive()
    assert sorted(map(id, bench.delivered)) == sorted(map(id, requests))
    assert not batcher.is_healthy
    with pytest.raises(DrainingError):
        bench.ask()


def test_threads_submit_at_once() -> None:
    bench = Bench(batch=64, queue=100_000)
    bench.batcher.start()
    rows = [[bench.row(4) for _ in range(50)] for _ in range(8)]
    requests: list[Request] = []

    def submit(own: list) -> None:
        for row in own:
            request = Request([row])
            bench.batcher.submit(request)
            requests.append(request)

    threads = [threading.Thread(target=submit, args=(own,)) for own in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.batcher.drain()
    assert len(bench.delivered) == len(set(map(id, bench.delivered))) == 400
    assert all(values(request) == expected(request) for request in requests)
