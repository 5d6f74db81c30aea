"""Export and import of Q-tables as the seed's q_table.json."""

from dataclasses import asdict
from typing import Any, BinaryIO, TextIO

import asyncpg

from recparams_rl import q_table
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.tabular import table_statistics
from recparams_rl.policy import publish
from recparams_rl.smoothing import Visited
from recparams_server.contract.vocabulary import unknown_names
from recparams_server.jobs.processes import INVALID_FILE
from recparams_server.settings import Settings
from recparams_server.store import models
from recparams_server.store.database import database_url


async def export_table(settings: Settings, version: int, output: TextIO) -> int:
    """Writes a version's table as JSON text; returns the exit code."""
    connection = await asyncpg.connect(database_url(settings))
    try:
        stored = await models.load_table(connection, version)
    finally:
        await connection.close()
    table = q_table.QTable(
        stored.space, stored.q, stored.visits, stored.rewards, stored.hyperparameters
    )
    for piece in q_table.dump(table):
        output.write(piece)
    output.flush()
    return 0


async def import_table(settings: Settings, source: BinaryIO, output: TextIO) -> int:
    """Stores JSON text as a new version, writes its number, and returns the exit code."""
    try:
        table = q_table.load(source.read(), settings.space())
        unknown = unknown_names(table.space)
        if unknown:
            raise ValueError(f"space: the contract has no {', '.join(unknown)}")
        hyperparameters = _hyperparameters(settings, table.hyperparameters)
    except ValueError as failure:
        # JSON may hold halves of surrogate pairs, which cannot be written as they are.
        output.write(str(failure).encode(errors="backslashreplace").decode())
        return INVALID_FILE
    held = table_statistics(table.q, table.visits)
    epsilon = hyperparameters.epsilon(held.total_updates)
    policy = publish(
        table.space,
        Visited.of(table.q, table.visits, table.rewards),
        learning_rate=hyperparameters.learning_rate,
        epsilon=epsilon,
        smoothing=settings.smoothing(),
    )
    model = models.NewModel(
        origin="imported",
        run_id=None,
        parent_version=None,
        algorithm=q_table.ALGORITHM,
        space=table.space,
        hyperparameters=hyperparameters.to_dict(),
        metrics={**asdict(held), "exploration_rate": epsilon},
        q=table.q,
        visits=table.visits,
        rewards=table.rewards,
        policy=policy,
        objectives=settings.objectives().to_dict(),
        main_line=False,
        trained=None,
    )
    connection = await asyncpg.connect(database_url(settings))
    try:
        version = await models.insert(connection, models.encode(model))
    finally:
        await connection.close()
    output.write(str(version))
    return 0


def _hyperparameters(settings: Settings, given: dict[str, Any]) -> Hyperparameters:
    """Returns the configured hyperparameters with those of a file that every algorithm has."""
    configured = settings.common_hyperparameters()
    common = {name: value for name, value in given.items() if name in configured}
    try:
        return Hyperparameters(**{**configured, **common})
    except ValueError as failure:
        raise ValueError(f"hyperparameters: {failure}") from None
