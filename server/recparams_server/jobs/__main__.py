"""Entry of a job.

train RUN | evaluate JSON | tune JSON | diff JSON | experiment ID | gain | export VERSION | import
"""

import asyncio
import os
import sys

import structlog

from recparams_server.jobs.processes import STORE_AWAY, UNUSABLE_MODEL
from recparams_server.observability import logs, tracing
from recparams_server.settings import Settings
from recparams_server.store.errors import STORE_ERRORS
from recparams_server.store.model_errors import ModelError

log = structlog.get_logger()


def main(arguments: list[str]) -> int:
    """Runs one job; the exit code is the job's."""
    settings = Settings()
    logs.configure(settings.log_level, settings.log_format)
    os.nice(5)
    if settings.tracing == "on":
        tracing.start("recparams-worker")
    try:
        with tracing.continued(arguments[0] if arguments else "none"):
            return _work(settings, arguments)
    except STORE_ERRORS as failure:
        log.error("the database cannot be reached", job=arguments[0], error=failure)
        return STORE_AWAY
    except ModelError as failure:
        sys.stdout.buffer.write(f"{failure.reason} {failure}".encode())
        return UNUSABLE_MODEL
    finally:
        tracing.stop()


def _work(settings: Settings, arguments: list[str]) -> int:
    output = sys.stdout.buffer
    # By hand each imports what it needs alone; what it is forked from has imported all of it.
    match arguments:
        case ["train", run_id]:
            from recparams_server.jobs.training.run import train

            return asyncio.run(train(settings, int(run_id)))
        case ["evaluate", request]:
            from recparams_server.jobs.evaluation import evaluate
            from recparams_server.jobs.requests import EvaluationRequest

            return asyncio.run(evaluate(settings, EvaluationRequest.from_json(request), output))
        case ["tune", request]:
            from recparams_server.jobs.requests import TuningRequest
            from recparams_server.jobs.tuning import tune_log

            return asyncio.run(tune_log(settings, TuningRequest.from_json(request), output))
        case ["diff", request]:
            from recparams_server.jobs.differences import diff_versions
            from recparams_server.jobs.requests import DifferenceRequest

            return asyncio.run(
                diff_versions(settings, DifferenceRequest.from_json(request), output)
            )
        case ["experiment", experiment_id]:
            from recparams_server.jobs.experiment import compare_arms

            return asyncio.run(compare_arms(settings, int(experiment_id), output))
        case ["gain"]:
            from recparams_server.jobs.learning_gain import measure_gain

            return asyncio.run(measure_gain(settings, output))
        case ["export", version]:
            from recparams_server.jobs.tables import export_table

            return asyncio.run(export_table(settings, int(version), sys.stdout))
        case ["import"]:
            from recparams_server.jobs.tables import import_table

            return asyncio.run(import_table(settings, sys.stdin.buffer, sys.stdout))
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
