"""Every kind of call of the client, on whatever grpcio and protobuf this Python finds.

`python every_call.py` prints their versions at the end.
"""

import asyncio
import os
import sys

import google.protobuf
import grpc

from recparams_client import (
    DecisionRequest,
    Interaction,
    InteractionReporter,
    PersonalityProfile,
    RecParamsClient,
    RecParamsError,
)
from recparams_client.testing import FakeServer
from recparams_client.testing.reach import Reachable

PROFILE = PersonalityProfile(75, 60, 40, 80, 30)
ADA = DecisionRequest("ada", "music", "calm", "evening", personality=PROFILE)
HIGH = ("high", "focused", "familiar")


def serve() -> int:
    """Returns the port of a server in a process of its own, which ends with this one."""
    there, here = os.pipe()
    back, up = os.pipe()
    if os.fork():
        os.close(there), os.close(up)
        return int(os.read(back, 10))
    os.close(here), os.close(back)
    with FakeServer() as server:
        server.serve({("music", "calm", "evening"): HIGH})
        os.write(up, server.address.rpartition(":")[2].encode())
        os.read(there, 1)
    os._exit(0)


def check(decision: object) -> None:
    """Raises AssertionError unless the server's table decided."""
    assert tuple(getattr(decision, one) for one in ("energy", "diversity", "novelty")) == HIGH


async def ask(server: Reachable) -> None:
    """Makes calls of the asyncio client."""
    async with server.async_client() as client:
        await client.wait_for_ready()
        check(await client.get_recommendation_params(ADA))


def main() -> None:
    """Makes all calls."""
    server = Reachable(f"127.0.0.1:{serve()}")
    with server.client() as client:
        client.wait_for_ready()
        client.put_personality_profiles({"ada": PROFILE})
        decision, _ = client.batch_get_recommendation_params([ADA, ADA])
        check(decision)
        reaction = Interaction("ada", decision.decision_token, ("like",), completion_rate=1.0)
        assert client.record_interactions([reaction]).recorded == 1
        try:
            client.record_interactions([Interaction("ada", b"made up", ("like",))])
        except RecParamsError as refused:
            assert refused.violations[0].field == "interactions[0].decision_token"
        with (
            server.local_policy() as policy,
            InteractionReporter(client, interval=0.01) as reporter,
        ):
            local = policy.get_recommendation_params(ADA)
            check(local)
            reporter.report(Interaction("ada", local.decision_token, ("share",)))
            assert reporter.flush(10) and reporter.delivered == 1
            child = os.fork()
            if not child:
                check(client.get_recommendation_params(ADA))
                check(policy.get_recommendation_params(ADA))
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            check(client.get_recommendation_params(ADA))
    asyncio.run(ask(server))
    with RecParamsClient("127.0.0.1:1", decision_timeout=1) as nobody:
        assert "refused" in nobody.get_recommendation_params(ADA).fallback_detail
    print(grpc.__version__, google.protobuf.__version__)


if __name__ == "__main__":
    sys.exit(main())
