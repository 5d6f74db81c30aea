"""Garbage is collected in portions, and what is no longer used is freed in the end."""

import subprocess
import sys

SECONDS = 60.0
START = """
import gc
from recparams_server.garbage import MOST_LEFT, Portions

class Node:
    pass

def made(count):
    return [Node() for _ in range(count)]

in_use = [float(number) for number in range(300_000)]
portions = Portions()
portions.start()
"""
"""In a process of its own, since it changes how all of it collects."""


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", START + program], check=True, timeout=SECONDS)


def test_no_collection_looks_through_much_however_much_there_is() -> None:
    run(
        """
most = 0
def look(phase, info):
    global most
    if phase == "start":
        most = max(most, sum(len(gc.get_objects(age)) for age in range(info["generation"] + 1)))
gc.callbacks.append(look)
kept = [made(100) for _ in range(1000)]
assert gc.get_stats()[2]["collections"] > 10
assert most < 4 * MOST_LEFT, most
"""
    )


def test_cycles_are_freed_before_and_after_they_are_frozen() -> None:
    run(
        """
import weakref
def cycle(size):
    nodes = made(size)
    nodes[0].all = nodes
    return nodes
def collect():
    while gc.get_count()[2] < 2:
        made(2000)
    gc.collect()
young = weakref.ref(cycle(10)[0])
collect()
assert young() is None
nodes = cycle(2 * MOST_LEFT)
frozen = weakref.ref(nodes[0])
gc.collect()
del nodes
gc.collect()
assert frozen() is not None and gc.get_freeze_count() > 2 * MOST_LEFT
kept = [made(100) for _ in range(10000)]
assert frozen() is None and portions.looks > 0
"""
    )
