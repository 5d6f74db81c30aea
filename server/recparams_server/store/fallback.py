"""What is served in place of an activation that cannot be."""

from dataclasses import dataclass

from recparams_rl.arms import NEVER_ACTIVATED, Activation
from recparams_rl.policy import Policy
from recparams_rl.state import StateSpace
from recparams_server.store.activations import fetch_activation
from recparams_server.store.database import Connection
from recparams_server.store.model_errors import ModelError
from recparams_server.store.models import load_plan


@dataclass(frozen=True)
class Servable:
    """An activation that can be served.

    Attributes:
        plan: the activation.
        policies: of its arms, by version, without the rules.
        refused: why those before it cannot be served; empty where there were none.
    """

    plan: Activation
    policies: dict[int, Policy]
    refused: str = ""


async def nearest_servable(
    connection: Connection, activation: Activation, space: StateSpace, *, but: int | None = None
) -> Servable:
    """Returns an activation, or the nearest that rollbacks of it lead to and that can be served.

    The last are the rules, also where the record leads back to where it came from.

    Args:
        connection: where to read.
        activation: where to begin.
        space: the state space to serve.
        but: the number of an activation that is not wanted.
    """
    refused = ""
    seen, in_vain = {but}, set()
    while activation.id not in seen:
        seen.add(activation.id)
        arms = tuple(activation.arms().values())
        if arms not in in_vain:
            try:
                return Servable(activation, await load_plan(connection, activation, space), refused)
            except ModelError as failure:
                in_vain.add(arms)
                refused = refused or str(failure)
        activation = await fetch_activation(connection, activation.rollback_to or 0)
    circle = f"activation {activation.id} is rolled back to itself: the rules are served"
    return Servable(NEVER_ACTIVATED, {}, f"{refused}; {circle}" if refused else circle)
