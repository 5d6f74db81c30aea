"""The client's rules are the server's rules."""

import itertools
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from recparams_client import DecisionRequest, PersonalityProfile, Recommendation
from recparams_client.conversion import request_message
from recparams_client.fallback import recommend
from recparams_rl.action import Action
from recparams_rl.rules import rule_based_action
from recparams_rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY, Context, time_of_day

SCORES = (0, 10, 39.5, 40, 50, 59.5, 60, 90, 100)
score = st.floats(0, 100, width=32) | st.sampled_from(SCORES)
traits = st.tuples(score, score, score, score, score)


def rules(request: DecisionRequest) -> Recommendation:
    return recommend(request_message(request), "client_deadline")


def check(scores: tuple[float, ...], context: Context) -> None:
    answer = rules(DecisionRequest("u", *vars_of(context), personality=PersonalityProfile(*scores)))
    action = Action(answer.energy, answer.diversity, answer.novelty)
    assert action == rule_based_action(scores, context)
    assert answer.params.as_dict() == vars(action.to_params())


def vars_of(context: Context) -> tuple[str, str, str]:
    return context.content_type, context.mood, context.time_of_day


@given(
    traits, st.sampled_from(CONTENT_TYPES), st.sampled_from(MOODS), st.sampled_from(TIMES_OF_DAY)
)
def test_they_agree_on_any_scores(
    scores: tuple[float, ...], content_type: str, mood: str, time: str
) -> None:
    check(scores, Context(content_type, mood, time))


def test_they_agree_in_every_context_and_at_every_leaning() -> None:
    """Midpoints of 5 bins: 10 and 30 lean alike, as do 70 and 90."""
    leanings = list(itertools.product((30.0, 50.0, 70.0), repeat=5))
    for context in itertools.starmap(
        Context, itertools.product(CONTENT_TYPES, MOODS, TIMES_OF_DAY)
    ):
        for scores in leanings:
            check(scores, context)


def test_without_a_profile_everybody_is_in_the_middle() -> None:
    for mood in MOODS:
        answer = rules(DecisionRequest("u", "music", mood, "morning"))
        expected = rule_based_action((50.0,) * 5, Context("music", mood, "morning"))
        assert (answer.energy, answer.diversity) == (expected.energy, expected.diversity)
        assert answer.novelty == expected.novelty


def test_every_hour_has_the_servers_time_of_day() -> None:
    for hour in range(24):
        moment = datetime(2026, 3, 1, hour, 59, tzinfo=UTC)
        by_hour = rules(DecisionRequest("u", "game", timestamp=moment))
        by_name = rules(DecisionRequest("u", "game", time_of_day=time_of_day(hour)))
        assert by_hour == by_name
