"""Jobs in processes of their own, one for each core."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import click

from benchmarks.measure import blas_on_one_thread

FIRST_SEED = 100
"""Seeds from here on are for benchmarks alone, not for developing."""

Jobs = dict[tuple[str, str], Callable[[], Any]]
"""Calls by the part they belong to and what tells them apart there."""


def run_jobs(name: str, jobs: Jobs) -> tuple[dict[tuple[str, str], Any], dict[str, float]]:
    """Returns the result of each job, and the seconds of each part, on a process for each core.

    Tells stderr of each job done, under a name.
    """
    done: dict[tuple[str, str], Any] = {}
    seconds: dict[str, float] = {}
    cores = len(os.sched_getaffinity(0))
    with blas_on_one_thread(), ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        waiting = {pool.submit(_timed, job): key for key, job in jobs.items()}
        try:
            for future in as_completed(waiting):
                part, which = key = waiting[future]
                done[key], spent = future.result()
                seconds[part] = seconds.get(part, 0.0) + spent
                of_all = f"{len(done)} of {len(jobs)}"
                click.echo(f"{name}: {part}, {which}: {spent:.0f} s ({of_all})", err=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done, seconds


def _timed(job: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return job(), time.monotonic() - began
