"""Writes local-policy.json: what a client that decides by itself has to get right.

`python tests/local_policy_vectors.py [FILE]` computes decisions with the server's own code and
seals tokens by the book, apart from the client's code: the Python client is tested against it, and
clients in other languages can be.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from recparams.v1 import recommendation_pb2 as pb  # noqa: E402
from recparams_rl.action import N_ACTIONS  # noqa: E402
from recparams_rl.arms import (  # noqa: E402
    HOLDBACK_SALT,
    PREVIOUS,
    RL,
    RULE_BASED,
    Activation,
    Split,
    position_of,
)
from recparams_rl.exploration import POSTERIOR  # noqa: E402
from recparams_rl.policy import GreedyTable, rule_based_policy  # noqa: E402
from recparams_rl.state import TRAITS, StateSpace, serving_space  # noqa: E402
from recparams_server.contract.vocabulary import action_index, context_table  # noqa: E402
from recparams_server.serving import decider as deciding  # noqa: E402
from recparams_server.serving import prepared_arm  # noqa: E402
from recparams_server.serving.decider import Decider  # noqa: E402
from recparams_server.serving.policies import Arm, PolicyHolder, Serving  # noqa: E402
from recparams_server.serving.snapshots import encode  # noqa: E402
from recparams_server.serving.tokens import RECORD, TokenCodec  # noqa: E402
from tests.drawing import with_draws  # noqa: E402

FILE = ROOT / "clients/vectors/local-policy.json"
SPACE = serving_space(StateSpace(moods=("neutral", "happy", "calm")), 4)
USERS = ("ada", "bob", "zoë", "x" * 128, "日本", "user:1", "0", "carol", "dave", "erin")


def table(rng: np.random.Generator, epsilon: float) -> GreedyTable:
    """Any action, by any source, in every state."""
    actions, sources = (rng.integers(top, size=SPACE.n_states) for top in (N_ACTIONS, 3))
    columns = actions.astype(np.uint8).tobytes(), sources.astype(np.uint8).tobytes()
    return with_draws(GreedyTable(SPACE, *columns, epsilon), int(rng.integers(100)), bins=3)


class Chances:
    """Stands in for the module random: gives the numbers that a decision is to be made with."""

    def __init__(self, *numbers: float) -> None:
        self._numbers = list(numbers)

    def random(self) -> float:
        return self._numbers.pop(0)

    def getrandbits(self, k: int) -> int:
        return 1


def serving(rng: np.random.Generator) -> Serving:
    """Three arms of a rollout, two of which have draws, and people who are held back."""
    split = Split(30, 20, "sugar", 25)
    shares = split.shares()
    arms = (
        Arm(RL, 8, table(rng, 0.0), shares[RL]),
        Arm(PREVIOUS, 7, table(rng, 0.0), shares[PREVIOUS]),
        Arm(RULE_BASED, 0, rule_based_policy(SPACE, 0.0), shares[RULE_BASED]),
    )
    return Serving(arms, Activation(5, 8, None, split, 7, 5), 5)


def decisions(rng: np.random.Generator, served: Serving) -> list[dict[str, Any]]:
    """Answers of the server, scores on the edges of bins among them."""
    holder = PolicyHolder(SPACE, 0.0)
    holder.serve(served)
    decider = Decider(holder, TokenCodec(b"vectors"), POSTERIOR)
    contexts = list(context_table(SPACE))
    edges = [0.0, 100.0, 40.0, 39.999998, 50.0, 49.999996, 60.0, 59.999996, 59.99999999]
    found = []
    for number in range(200):
        user, context = USERS[number % len(USERS)], contexts[int(rng.integers(len(contexts)))]
        any_scores = [round(score, 6) for score in rng.uniform(0, 100, 5).tolist()]
        on_edge = rng.random(5) < 0.4
        scores = [
            edges[int(rng.integers(len(edges)))] if edge else score
            for edge, score in zip(on_edge, any_scores, strict=True)
        ]
        as_sent = [float(score) for score in np.float32(scores)]
        chances = [round(chance, 6) for chance in rng.random(2).tolist()]
        if number % 10 == 0:
            chances[0] *= POSTERIOR.epsilon or 0.0
        prepared_arm.random = deciding.random = Chances(*chances)  # type: ignore[attr-defined]
        answer = pb.GetRecommendationParamsResponse.FromString(
            decider.decide(user.encode(), tuple(as_sent), context)
        )
        found.append(
            {
                "user_id": user,
                "scores": scores,
                "content_type": context[0],
                "mood": context[1],
                "time_of_day": context[2],
                "chances": chances,
                "action": action_index(answer.action),
                "source": answer.source,
                "policy_arm": answer.policy_arm,
                "model_version": answer.model_version,
                "propensity": answer.propensity,
            }
        )
    return found


def tokens(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Sealed records, key and all."""
    found = []
    for user in USERS:
        id_, key = rng.bytes(16), rng.bytes(32)
        record = np.zeros(1, dtype=RECORD)
        record["decision_id"] = rng.integers(1 << 63)
        record["decided_at"] = 1_790_000_000_000 + int(rng.integers(1 << 32))
        record["model_version"], record["propensity"] = rng.integers(1 << 32), rng.random()
        for name, top in (("content_type", 3), ("mood", 8), ("time_of_day", 4), ("arm", 3)):
            record[name] = 1 + rng.integers(top)
        record["action"], record["source"] = rng.integers(N_ACTIONS), 1 + rng.integers(4)
        for name, score in zip(TRAITS, rng.uniform(0, 100, 5), strict=True):
            record[name] = score
        record["activation"] = rng.integers(1 << 32)
        data = record.tobytes()
        tag = hashlib.blake2b(id_ + data + user.encode(), key=key[:16], digest_size=16).digest()
        stream = hashlib.blake2b(tag, key=key[16:]).digest()
        sealed = bytes(a ^ b for a, b in zip(data, stream, strict=False))
        fields: dict[str, Any] = {}
        for name, value in zip(RECORD.names or (), record[0].item(), strict=True):
            if name in TRAITS:
                fields.setdefault("traits", []).append(value)
            else:
                fields[name] = value
        found.append(
            {
                "user_id": user,
                "key_id": id_.hex(),
                "key": key.hex(),
                "fields": fields,
                "record": data.hex(),
                "token": (b"\x05" + id_ + tag + sealed).hex(),
            }
        )
    return found


def vectors() -> dict[str, Any]:
    """All of them."""
    rng = np.random.default_rng(1)
    served = serving(rng)
    snapshot = encode(SPACE, served, POSTERIOR)
    salts = ("sugar", HOLDBACK_SALT, "", "salt of a rollout")
    return {
        "about": "docs/local-decisions.md says what these are; numbers of enums are the contract's",
        "positions": [
            {"salt": salt, "user_id": user, "position": position_of(salt, user)}
            for salt in salts
            for user in USERS
        ],
        "snapshot": base64.b64encode(snapshot.compressed).decode(),
        "checksum": snapshot.checksum.hex(),
        "decisions": decisions(rng, served),
        "tokens": tokens(rng),
    }


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    target.write_text(json.dumps(vectors(), ensure_ascii=False, indent=1) + "\n")
