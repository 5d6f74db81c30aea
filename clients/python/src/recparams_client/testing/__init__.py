"""Servers for the tests of a backend: one that decides what a test says, and a real one.

`FakeServer` needs this package alone. `recparams_client.testing.fixtures` has both as fixtures of
pytest.
"""

from recparams_client.testing.decisions import recommendation
from recparams_client.testing.fake import FakeServer
from recparams_client.testing.reach import Reachable, RunningServer

__all__ = ["FakeServer", "Reachable", "RunningServer", "recommendation"]
