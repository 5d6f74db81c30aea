"""A real gRPC server whose behaviour a test chooses."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import recommendation_pb2_grpc, types_pb2

Behaviour = Callable[[Any, Any], Awaitable[Any]]

ANSWER = pb.GetRecommendationParamsResponse(
    params=types_pb2.RecommendationParams(
        min_energy=0.6,
        max_energy=1.0,
        valence=0.8,
        genre_count=3,
        exploration_rate=0.3,
        popularity_min=25,
        popularity_max=75,
    ),
    action=types_pb2.Action(energy=3, diversity=2, novelty=2),
    decision_token=b"token",
    model_version=7,
    policy_arm=pb.POLICY_ARM_RL,
    propensity=0.7,
    source=pb.DECISION_SOURCE_LEARNED,
)


class Service(recommendation_pb2_grpc.RecommendationServiceServicer):
    """Answers every call through `behaviour` and remembers what it was sent."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.behaviour: Behaviour = self.answer

    @staticmethod
    async def answer(request: Any, context: Any) -> Any:
        if isinstance(request, pb.GetRecommendationParamsRequest):
            return ANSWER
        if isinstance(request, pb.BatchGetRecommendationParamsRequest):
            responses = [ANSWER] * len(request.requests)
            return pb.BatchGetRecommendationParamsResponse(responses=responses)
        if isinstance(request, pb.RecordInteractionsRequest):
            return pb.RecordInteractionsResponse(recorded=len(request.interactions))
        return pb.PutPersonalityProfilesResponse(stored=len(request.profiles))

    async def _call(self, request: Any, context: Any) -> Any:
        self.received.append(request)
        return await self.behaviour(request, context)

    GetRecommendationParams = _call
    BatchGetRecommendationParams = _call
    RecordInteractions = _call
    PutPersonalityProfiles = _call


class Running:
    """A service on a port."""

    def __init__(self, service: Service, server: grpc.aio.Server, port: int) -> None:
        self.service, self.server, self.port = service, server, port
        self.address = f"127.0.0.1:{port}"


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    """Starts servers, by default on free ports."""
    servers = []

    async def run(port: int = 0) -> Running:
        service, server = Service(), grpc.aio.server()
        recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(service, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        servers.append(server)
        return Running(service, server, port)

    yield run
    await asyncio.gather(*(server.stop(0) for server in servers))


@pytest.fixture
async def running(start: Callable[..., Awaitable[Running]]) -> Running:
    """One server."""
    return await start()
