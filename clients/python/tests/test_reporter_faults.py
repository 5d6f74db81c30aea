"""The reporter against everything that can be handed to it, and everything a call can end in."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import grpc
import pytest

from recparams_client import Interaction, InteractionReporter, RecParamsClient, RecParamsError
from recparams_client.types import RecordResult

WAIT = 20.0
GOOD = Interaction("ada", b"token", ("like",))


class Recorder(RecParamsClient):
    """A client whose calls end as a test says; what returns has stored its interactions."""

    def __init__(self, ends: Callable[[Sequence[Interaction]], None] = lambda _: None) -> None:
        super().__init__("127.0.0.1:1", write_timeout=0.5)
        self.ends = ends
        self.stored: list[Interaction] = []

    def record_interactions(
        self, interactions: Any, *, timeout: float | None = None
    ) -> RecordResult:
        batch = list(interactions)
        self.ends(batch)
        self.stored += batch
        return RecordResult(len(batch), 0)


def failing(*codes: grpc.StatusCode) -> Callable[[Sequence[Interaction]], None]:
    """The first calls fail with these, one after the other."""
    left = list(codes)

    def ends(_: Sequence[Interaction]) -> None:
        if left:
            raise RecParamsError(left.pop(0), "for now")

    return ends


@pytest.fixture
def given_up() -> list[Interaction]:
    return []


@pytest.fixture
def make(given_up: list[Interaction]) -> Iterator[Callable[..., InteractionReporter]]:
    made: list[InteractionReporter] = []

    def build(client: RecParamsClient, **options: Any) -> InteractionReporter:
        options = {"interval": 0.001, "on_undelivered": lambda i, _: given_up.extend(i), **options}
        made.append(InteractionReporter(client, **options))
        return made[-1]

    yield build
    for one in made:
        one._flush_seconds = 0.0
        one.close()


def wrong(**changes: Any) -> Interaction:
    return Interaction(**{"user_id": "ada", "decision_token": b"token", **changes})


WRONG = [
    wrong(completion_rate="0.7"),
    wrong(completion_rate=True),
    wrong(mood_change=1j),
    wrong(user_id=7),
    wrong(user_id=None),
    wrong(decision_token="token"),
    wrong(decision_token=None),
    wrong(interaction_id=7),
    wrong(reactions=None),
    wrong(reactions="like"),
    wrong(reactions=7),
    wrong(reactions=("like", 1)),
    wrong(reactions={"like": 1}),
    wrong(occurred_at="2026-01-01"),
    wrong(occurred_at=1.5),
    wrong(occurred_at=datetime(2026, 1, 1)),
    None,
    {"user_id": "ada"},
    [GOOD],
]


@pytest.mark.parametrize("interaction", WRONG)
def test_a_wrong_type_is_refused_where_it_is_reported(
    make: Callable[..., InteractionReporter], interaction: Any
) -> None:
    client = Recorder()
    reporter = make(client)
    with pytest.raises((TypeError, ValueError)):
        reporter.report(interaction)
    assert reporter.report(GOOD)
    assert reporter.flush(WAIT)
    assert client.stored == [GOOD]
    assert (reporter.delivered, reporter.undelivered, reporter.queued) == (1, 0, 0)


@pytest.mark.parametrize(
    "spoilt",
    [
        wrong(user_id="\ud800"),
        wrong(decision_token=b""),
        wrong(reactions=("lke",)),
        wrong(completion_rate=10**400),
        wrong(user_id="a" * 10_000),
        wrong(reactions=("like",) * 10_000),
    ],
)
def test_what_cannot_be_sent_is_handed_back_alone(
    make: Callable[..., InteractionReporter], given_up: list[Interaction], spoilt: Interaction
) -> None:
    client = Recorder()
    reporter = make(client, interval=60)
    for one in (GOOD, spoilt, GOOD):
        assert reporter.report(one)
    assert reporter.flush(WAIT)
    assert client.stored == [GOOD, GOOD] and given_up == [spoilt]
    assert (reporter.delivered, reporter.undelivered, reporter.queued) == (2, 1, 0)


def test_what_is_changed_after_it_was_reported_does_not_stop_the_thread(
    make: Callable[..., InteractionReporter], given_up: list[Interaction]
) -> None:
    client = Recorder()
    reporter = make(client, interval=60)
    reactions: Any = ["like"]
    changed = wrong(reactions=reactions)
    for one in (changed, GOOD):
        assert reporter.report(one)
    reactions[:] = [object()]
    assert reporter.flush(WAIT)
    assert client.stored == [GOOD] and given_up == [changed]


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    ],
)
def test_what_may_pass_is_tried_again(
    make: Callable[..., InteractionReporter], code: grpc.StatusCode
) -> None:
    client = Recorder(failing(code, code))
    reporter = make(client)
    assert reporter.report(GOOD)
    assert reporter.flush(WAIT)
    assert client.stored == [GOOD]
    assert (reporter.delivered, reporter.undelivered) == (1, 0)


def test_what_does_not_pass_in_time_is_given_up_without_the_others(
    make: Callable[..., InteractionReporter], given_up: list[Interaction]
) -> None:
    poison = wrong(user_id="poison")

    def ends(batch: Sequence[Interaction]) -> None:
        if poison in batch:
            raise RecParamsError(grpc.StatusCode.INTERNAL, "a bug")

    client = Recorder(ends)
    reporter = make(client, retry_seconds=0.2, interval=60)
    good = [wrong() for _ in range(20)]
    for one in (*good[:10], poison, *good[10:]):
        assert reporter.report(one)
    assert reporter.flush(WAIT)
    assert given_up == [poison] and client.stored == good
    assert (reporter.delivered, reporter.undelivered, reporter.queued) == (20, 1, 0)


def test_a_server_that_takes_small_messages_only_is_sent_small_ones(
    make: Callable[..., InteractionReporter],
) -> None:
    def ends(batch: Sequence[Interaction]) -> None:
        if len(batch) > 100:
            raise RecParamsError(grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max")

    client = Recorder(ends)
    reporter = make(client, interval=60)
    for _ in range(400):
        assert reporter.report(GOOD)
    assert reporter.flush(WAIT)
    assert reporter.delivered == 400


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, MemoryError, TypeError])
def test_no_exception_ends_the_thread(
    make: Callable[..., InteractionReporter], raised: type[BaseException]
) -> None:
    turns = iter([True])

    def ends(_: Sequence[Interaction]) -> None:
        if next(turns, False):
            raise raised

    def complain(*_: object) -> None:
        raise raised

    client = Recorder(ends)
    reporter = make(client, on_undelivered=complain, retry_seconds=0)
    reporter.report(GOOD)
    assert reporter.flush(WAIT)
    reporter.report(wrong(decision_token=b""))
    reporter.report(GOOD)
    assert reporter.flush(WAIT)
    assert GOOD in client.stored
    assert reporter.delivered + reporter.undelivered == 3
    assert reporter._thread.is_alive()


def test_closing_does_not_wait_for_a_call_that_hangs(
    make: Callable[..., InteractionReporter], given_up: list[Interaction]
) -> None:
    go_on = threading.Event()

    def hang(_: Sequence[Interaction]) -> None:
        go_on.wait(WAIT)

    reporter = make(Recorder(hang), flush_seconds=0.1)
    reporter.report(GOOD)
    while not reporter._batch:
        time.sleep(0.001)
    reporter.report(GOOD)
    began = time.monotonic()
    reporter.close()
    assert time.monotonic() - began < 5
    assert (reporter.delivered, reporter.undelivered, reporter.queued) == (0, 2, 0)
    go_on.set()
    reporter._thread.join(WAIT)
    assert (reporter.delivered, reporter.undelivered, len(given_up)) == (0, 2, 2)


def test_it_can_be_closed_where_it_hands_back(make: Callable[..., InteractionReporter]) -> None:
    reporter: InteractionReporter | None = None

    def closing(*_: object) -> None:
        assert reporter is not None
        reporter.close()

    reporter = make(Recorder(), on_undelivered=closing)
    reporter.report(wrong(decision_token=b""))
    reporter._thread.join(WAIT)
    assert not reporter._thread.is_alive()


def test_counts_are_true_at_every_moment(make: Callable[..., InteractionReporter]) -> None:
    codes = (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ABORTED,
    )
    calls = Counter[int]()

    def ends(_: Sequence[Interaction]) -> None:
        calls[0] += 1
        if calls[0] % 3:
            raise RecParamsError(codes[calls[0] % len(codes)], "this time")

    reporter = make(Recorder(ends), capacity=50, retry_seconds=0.05)
    reported, deadline = 0, time.monotonic() + 2
    while time.monotonic() < deadline:
        reporter.report(wrong(decision_token=b"" if reported % 7 == 0 else b"token"))
        reported += 1
        with reporter._changed:
            assert reporter.delivered + reporter.undelivered + reporter.queued == reported
        time.sleep(0.0005)
    reporter._flush_seconds = 0.1
    reporter.close()
    assert reporter.queued == 0
    assert reporter.delivered + reporter.undelivered == reported
