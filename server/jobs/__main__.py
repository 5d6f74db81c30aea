"""Entry of a job.

train RUN | evaluate JSON | tune JSON | diff JSON | experiment ID | gain | export VERSION | import
"""

import asyncio
import os
import sys

import structlog

from server.jobs.processes import STORE_AWAY, UNUSABLE_MODEL
from server.observability import logs, tracing
from server.settings import Settings
from server.store.errors import STORE_ERRORS
from server.store.model_errors import ModelError

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
            from server.jobs.training.run import train

            return asyncio.run(train(settings, int(run_id)))
        case ["evaluate", request]:
            from server.jobs.evaluation import evaluate
            from server.jobs.requests import EvaluationRequest

            return asyncio.run(evaluate(settings, EvaluationRequest.from_json(request), output))
        case ["tune", request]:
            from server.jobs.requests import TuningRequest
            from server.jobs.tuning import tune_log

            return asyncio.run(tune_log(settings, TuningRequest.from_json(request), output))
        case ["diff", request]:
            from server.jobs.differences import diff_versions
            from server.jobs.requests import DifferenceRequest

            return asyncio.run(
                diff_versions(settings, DifferenceRequest.from_json(request), output)
            )
        case ["experiment", experiment_id]:
            from server.jobs.experiment import compare_arms

            return asyncio.run(compare_arms(settings, int(experiment_id), output))
        case ["gain"]:
            from server.jobs.learning_gain import measure_gain

            return asyncio.run(measure_gain(settings, output))
        case ["export", version]:
            from server.jobs.tables import export_table

            return asyncio.run(export_table(settings, int(version), sys.stdout))
        case ["import"]:
            from server.jobs.tables import import_table

            return asyncio.run(import_table(settings, sys.stdin.buffer, sys.stdout))
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
