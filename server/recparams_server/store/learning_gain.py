"""What learning is worth, as it was last measured: one row."""

from datetime import timedelta

from recparams.v1.evaluation_pb2 import LearningGain
from recparams_server.store.database import Connection, Pool

LONGEST_AGO = timedelta(days=7)
"""While nobody is served what was learned, or nobody the rules, nothing is measured."""


async def newest(connection: Connection | Pool) -> LearningGain | None:
    """Returns what was measured last.

    None before that, where nobody could be compared, and where that is `LONGEST_AGO`.
    """
    found = await connection.fetchval(
        "SELECT gain FROM learning_gain WHERE measured_at > now() - $1::interval", LONGEST_AGO
    )
    return None if found is None else LearningGain.FromString(found)


async def is_due(connection: Connection, seconds: float) -> bool:
    """Returns True if it was not measured within the last seconds."""
    return not await connection.fetchval(
        """
        SELECT EXISTS (
            SELECT FROM learning_gain WHERE measured_at > now() - make_interval(secs => $1)
        )
        """,
        seconds,
    )


async def put(connection: Connection, gain: LearningGain) -> None:
    """Stores a measurement in place of the one before; one without people as nothing."""
    compared = gain.learned_users and gain.rule_based_users
    await connection.execute(
        """
        INSERT INTO learning_gain (gain) VALUES ($1)
        ON CONFLICT (only_row) DO UPDATE SET gain = excluded.gain, measured_at = now()
        """,
        gain.SerializeToString() if compared else None,
    )
