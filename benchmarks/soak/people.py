"""Who is recommended to, and what state a request of theirs is in."""

import random
from dataclasses import astuple, dataclass

from benchmarks.soak.ledger import Answer
from recparams_client import DecisionRequest, PersonalityProfile, Recommendation
from recparams_rl.action import ACTIONS
from recparams_rl.rules import rule_based_action
from recparams_rl.state import Context, StateSpace

NEUTRAL = (50.0, 50.0, 50.0, 50.0, 50.0)
_BY_NAMES = {(one.energy, one.diversity, one.novelty): one.index for one in ACTIONS}
_BY_PARAMS = {astuple(one.to_params()): one.index for one in ACTIONS}


@dataclass(frozen=True)
class People:
    """A number of people whose scores never change, so that every answer can be checked."""

    space: StateSpace
    scores: tuple[tuple[float, ...], ...]

    @classmethod
    def drawn(cls, number: int, space: StateSpace, draw: random.Random) -> "People":
        """People with whole scores."""
        return cls(
            space,
            tuple(tuple(float(draw.randint(0, 100)) for _ in range(5)) for _ in range(number)),
        )

    def profile(self, person: int) -> PersonalityProfile:
        """A person's scores."""
        return PersonalityProfile(*self.scores[person])

    def request(self, draw: random.Random) -> tuple[int, DecisionRequest]:
        """Somebody in some context, with the profile or without."""
        person = draw.randrange(len(self.scores))
        return person, DecisionRequest(
            user_id=user_id(person),
            content_type=draw.choice(self.space.content_types),
            mood=draw.choice(self.space.moods),
            time_of_day=draw.choice(self.space.times_of_day),
            personality=self.profile(person) if draw.random() < 0.5 else None,
        )

    def answer(self, request: DecisionRequest, given: Recommendation) -> Answer:
        """An answer with what it is to be checked against."""
        assert request.time_of_day is not None
        context = Context(request.content_type, request.mood, request.time_of_day)
        scores = self.scores[int(request.user_id.removeprefix("person-"))]
        return Answer(
            state=self.space.index(scores, context),
            neutral=rule_based_action(NEUTRAL, context).index,
            action=_BY_PARAMS.get(astuple(given.params), -1),
            named=_BY_NAMES[given.energy, given.diversity, given.novelty],
            version=given.model_version,
            source=given.source,
            propensity=given.propensity,
            reason=given.fallback_reason,
        )


def user_id(person: int) -> str:
    """The name by which servers know a person."""
    return f"person-{person}"
