"""What becomes of model versions: served to whom, waiting, refused, replaced."""

from typing import Any

from recparams.v1 import models_pb2 as pb
from recparams_rl.arms import PREVIOUS, RL, Activation

_OF_OUTCOMES = {
    "waiting": pb.MODEL_STATE_WAITING,
    "superseded": pb.MODEL_STATE_SUPERSEDED,
    "refused": pb.MODEL_STATE_REFUSED,
}


def set_state(message: pb.Model, current: Activation, past: Any) -> None:
    """Sets state and share of a version.

    Args:
        message: the version.
        current: what is served.
        past: the version's entry of `model_rows.pasts`.
    """
    served = {
        name: arm.share for name, arm in current.arms().items() if arm.version == message.version
    }
    message.served_percent = 100.0 * sum(served.values())
    if RL in served:
        rolling = current.is_ramp
        message.state = pb.MODEL_STATE_ROLLING_OUT if rolling else pb.MODEL_STATE_SERVING
    elif PREVIOUS in served:
        message.state = pb.MODEL_STATE_PREVIOUS
    elif message.HasField("halted_at"):
        message.state = pb.MODEL_STATE_TAKEN_BACK
    elif past["was_served"]:
        message.state = pb.MODEL_STATE_REPLACED
    else:
        message.state = _OF_OUTCOMES.get(past["outcome"], pb.MODEL_STATE_STORED)
