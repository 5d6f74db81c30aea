"""A backend that asks recparams which music suits a person now, and says how it went.

`python examples/backend.py [HOST:PORT]`, next to a server such as that of `make serve`. It needs
recparams-client alone.
"""

import sys
from dataclasses import dataclass

from recparams_client import (
    DecisionRequest,
    Interaction,
    PersonalityProfile,
    Recommendation,
    RecommendationParams,
    RecParamsClient,
)


@dataclass(frozen=True)
class Track:
    """One item of the catalogue: energy and valence 0 to 1, popularity 0 to 100."""

    title: str
    genre: str
    energy: float
    valence: float
    popularity: int


CATALOGUE = (
    Track("Harbour at Six", "ambient", 0.1, 0.3, 12),
    Track("Paper Lanterns", "folk", 0.2, 0.4, 35),
    Track("Slow Tram", "jazz", 0.3, 0.5, 48),
    Track("Two Rooms", "classical", 0.2, 0.2, 25),
    Track("Low Sun", "soul", 0.4, 0.6, 64),
    Track("Window Seat", "indie", 0.5, 0.5, 55),
    Track("Every Other Street", "pop", 0.6, 0.7, 88),
    Track("Copper Wire", "electronic", 0.7, 0.6, 42),
    Track("Long Weekend", "pop", 0.8, 0.9, 93),
    Track("Night Bus Drums", "techno", 0.9, 0.5, 30),
    Track("Run the Stairs", "rock", 0.9, 0.8, 76),
)


@dataclass(frozen=True)
class Listener:
    """A person: what the backend knows of them, and what they like, which it does not."""

    user_id: str
    personality: PersonalityProfile
    mood: str
    known: frozenset[str]
    likes_energy: float


LISTENERS = (
    Listener("ada", PersonalityProfile(75, 60, 40, 80, 30), "calm", frozenset({"Low Sun"}), 0.2),
    Listener("ben", PersonalityProfile(40, 55, 85, 60, 35), "energetic", frozenset(), 0.9),
    Listener("cleo", PersonalityProfile(60, 80, 30, 70, 75), "stressed", frozenset(), 0.4),
)


def search(params: RecommendationParams, known: frozenset[str], limit: int = 3) -> list[Track]:
    """What a catalogue's API would answer: tracks within the ranges, best fit first.

    At most `genre_count` genres, and `exploration_rate` of the tracks not known to the person.
    """
    found = [
        track
        for track in CATALOGUE
        if params.min_energy <= track.energy <= params.max_energy
        and params.popularity_min <= track.popularity <= params.popularity_max
    ]
    found.sort(key=lambda track: abs(track.valence - params.valence))
    genres = list(dict.fromkeys(track.genre for track in found))[: params.genre_count]
    found = [track for track in found if track.genre in genres]
    new = round(limit * params.exploration_rate)
    unknown = [track for track in found if track.title not in known]
    familiar = [track for track in found if track.title in known]
    return (unknown[:new] + familiar + unknown[new:])[:limit]


def react(listener: Listener, decision: Recommendation, track: Track) -> Interaction:
    """What the person did with a track; a player would know."""
    liked = abs(track.energy - listener.likes_energy) < 0.25
    return Interaction(
        listener.user_id,
        decision.decision_token,
        ("like", "complete") if liked else ("skip",),
        completion_rate=1.0 if liked else 0.1,
    )


def main(address: str) -> None:
    """Serves every listener once."""
    # The first call also has to connect, so it gets more than the usual 50 ms.
    with RecParamsClient(address, decision_timeout=1.0) as recparams:
        for listener in LISTENERS:
            decision = recparams.get_recommendation_params(
                DecisionRequest(
                    listener.user_id,
                    content_type="music",
                    mood=listener.mood,
                    time_of_day="evening",
                    personality=listener.personality,
                )
            )
            tracks = search(decision.params, listener.known)
            titles = ", ".join(track.title for track in tracks) or "nothing that fits"
            action = f"{decision.energy}, {decision.diversity}, {decision.novelty}"
            print(f"{listener.user_id}: {action} ({decision.source}): {titles}")
            # A fallback of the library is no decision of the server's: nothing to report.
            if tracks and not decision.is_fallback:
                result = recparams.record_interactions(
                    react(listener, decision, track) for track in tracks
                )
                print(f"  {result.recorded} reactions recorded")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
