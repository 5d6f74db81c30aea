"""A FastAPI backend that asks recparams which music suits a person now, and reports how it went.

    uvicorn --factory examples.web:make_app

next to a server such as that of `make serve`; RECPARAMS_ADDRESS says where it is. It needs
recparams-client and fastapi. `examples/test_web.py` is how such a backend is tested.
"""

import asyncio
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request, status
from pydantic import BaseModel, Field

from examples.backend import search
from recparams_client import (
    AsyncRecParamsClient,
    DecisionRequest,
    Interaction,
    InteractionReporter,
    Mood,
    PersonalityProfile,
    Reaction,
    RecParamsClient,
    TimeOfDay,
)

UserId = Annotated[str, Field(min_length=1, max_length=128)]
Score = Annotated[float, Field(ge=0, le=100)]


class Profile(BaseModel):
    """Big Five scores."""

    openness: Score
    conscientiousness: Score
    extraversion: Score
    agreeableness: Score
    neuroticism: Score


class Listening(BaseModel):
    """A person who wants music. Names that recparams does not know are refused by their type."""

    user_id: UserId
    time_of_day: TimeOfDay
    mood: Mood = "neutral"
    personality: Profile | None = None


class Playlist(BaseModel):
    """Titles, and the decision behind them, which comes back with the reaction."""

    titles: list[str]
    decision: str


class Reacting(BaseModel):
    """What a person did with a title."""

    user_id: UserId
    decision: str
    reactions: list[Reaction]
    completion_rate: Annotated[float, Field(ge=0, le=1)] | None = None


def make_app(address: str | None = None) -> FastAPI:
    """Returns the backend, for the recparams at an address; None is that of the environment."""
    where = address or os.environ.get("RECPARAMS_ADDRESS", "127.0.0.1:50051")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Connects once for all requests, and sends what is left at the end."""
        async with AsyncRecParamsClient(where) as recparams:
            with RecParamsClient(where) as recorder:
                app.state.recparams = recparams
                app.state.reporter = InteractionReporter(recorder)
                yield
                # It waits for the database, which no event loop should.
                await asyncio.to_thread(app.state.reporter.close)

    app = FastAPI(lifespan=lifespan)

    @app.post("/playlists")
    async def playlist(listening: Listening, request: Request) -> Playlist:
        """Answers within 50 ms for recparams, by the hand-written rules where it takes longer."""
        given = listening.personality
        decision = await request.app.state.recparams.get_recommendation_params(
            DecisionRequest(
                listening.user_id,
                "music",
                listening.mood,
                listening.time_of_day,
                personality=PersonalityProfile(**given.model_dump()) if given else None,
            )
        )
        tracks = search(decision.params, known=frozenset())
        token = urlsafe_b64encode(decision.decision_token).decode()
        return Playlist(titles=[track.title for track in tracks], decision=token)

    @app.post("/reactions", status_code=status.HTTP_202_ACCEPTED)
    async def react(reacting: Reacting, request: Request) -> None:
        """Queues a reaction; that of a fallback has nothing to be learned from."""
        if not reacting.decision:
            return
        reaction = Interaction(
            reacting.user_id,
            urlsafe_b64decode(reacting.decision),
            tuple(reacting.reactions),
            reacting.completion_rate,
        )
        if not request.app.state.reporter.report(reaction):
            raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, "too many reactions wait")

    return app
