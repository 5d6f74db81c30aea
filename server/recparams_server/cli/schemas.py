"""JSON Schemas (draft 2020-12) of what commands print with --json.

`python -m recparams_server.cli.schemas` writes them into docs/cli.schema.json.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from recparams.v1 import models_pb2 as models
from recparams.v1 import recommendation_pb2 as recommendation
from recparams.v1 import rollout_pb2 as rollout
from recparams.v1 import system_pb2 as system
from recparams.v1 import training_pb2 as training
from recparams.v1 import tuning_pb2 as tuning
from recparams_server.diagnosis.findings import Finding

FILE = Path(__file__).resolve().parents[3] / "docs" / "cli.schema.json"
DEFINITIONS = "$defs"
ANSWERS: dict[str, type[Message]] = {
    "train": training.TrainingRun,
    "runs list": training.ListTrainingRunsResponse,
    "runs show": training.TrainingRun,
    "runs watch": training.TrainingRun,
    "runs cancel": training.CancelTrainingRunResponse,
    "evaluate": training.EvaluateResponse,
    "models list": models.ListModelsResponse,
    "models show": models.Model,
    "models activate": models.ActivateModelResponse,
    "models rollback": models.RollbackModelResponse,
    "models import": models.Model,
    "models diff": models.DiffModelsResponse,
    "models delete": models.DeleteModelsResponse,
    "models prune": models.DeleteModelsResponse,
    "rollout show": rollout.GetRolloutResponse,
    "rollout set": rollout.SetRolloutResponse,
    "rollout next": rollout.SetRolloutResponse,
    "rollout experiment": rollout.GetExperimentResponse,
    "shadow start": rollout.SetShadowResponse,
    "shadow stop": rollout.SetShadowResponse,
    "shadow show": rollout.GetShadowResponse,
    "recommend": recommendation.GetRecommendationParamsResponse,
    "tune": tuning.Tuning,
    "status": system.GetSystemHealthResponse,
    "forget": system.DeleteUserDataResponse,
}
"""The message that each command prints, which docs/api.md explains."""

_TEXT, _WHOLE, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}


def _object(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


_FINDING = _object(
    {one.name: _TEXT for one in fields(Finding)} | {"level": {"enum": ["ok", "warning", "problem"]}}
)
_STEP = _object({"run_id": _WHOLE, "stage": _TEXT, "progress": _NUMBER})
_OWN: dict[str, dict[str, Any]] = {
    "health": _object({"status": {"enum": ["SERVING", "NOT_SERVING", "UNKNOWN"]}}),
    "doctor": _object(
        {"healthy": {"type": "boolean"}, "findings": {"type": "array", "items": _FINDING}}
    ),
    "new-key": _object({"key": _TEXT, "hash": _TEXT}),
    "simulate": _object(
        {
            "people": _WHOLE,
            "user_ids": _TEXT,
            "interactions": _WHOLE,
            "average_reward": _NUMBER,
            "like_rate": _NUMBER,
            "seconds": _NUMBER,
            "decisions_per_second": _WHOLE,
        }
    ),
}
_FOLLOWED = ("train", "runs watch")
"""Commands that print a line for each step of a run, and last the run."""
_KINDS = {
    FieldDescriptor.CPPTYPE_INT32: _WHOLE,
    FieldDescriptor.CPPTYPE_INT64: _WHOLE,
    FieldDescriptor.CPPTYPE_UINT32: _WHOLE,
    FieldDescriptor.CPPTYPE_UINT64: _WHOLE,
    FieldDescriptor.CPPTYPE_DOUBLE: _NUMBER,
    FieldDescriptor.CPPTYPE_FLOAT: _NUMBER,
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_STRING: _TEXT,
}


def schemas() -> dict[str, Any]:
    """Returns one document: the schema of each line of output by command, and their messages."""
    definitions: dict[str, Any] = {}
    commands = dict(_OWN)
    for command, answer in ANSWERS.items():
        found = _reference(answer.DESCRIPTOR, definitions)
        commands[command] = {"anyOf": [_STEP, found]} if command in _FOLLOWED else found
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What each command of recparams prints with --json",
        "type": "object",
        "properties": dict(sorted(commands.items())),
        DEFINITIONS: dict(sorted(definitions.items())),
    }


def _reference(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns a reference to the schema of a message, which it adds to the definitions."""
    if kind.name not in definitions:
        definitions[kind.name] = {}
        optional = tuple(one.name for one in kind.fields if one.has_presence)
        properties = {one.name: _field(one, definitions) for one in kind.fields}
        definitions[kind.name] = _object(properties, optional)
    return {"$ref": f"#/{DEFINITIONS}/{kind.name}"}


def _field(field: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        value = _value(kind.fields_by_name["value"], definitions)
        return {"type": "object", "additionalProperties": value}
    one = _value(field, definitions)
    return {"type": "array", "items": one} if field.is_repeated else one


def _value(field: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if field.enum_type is not None:
        return {"enum": [value.name for value in field.enum_type.values]}
    if field.message_type is None:
        return _KINDS[field.cpp_type]
    if field.message_type.full_name == "google.protobuf.Timestamp":
        return {"type": "string", "format": "date-time"}
    return _reference(field.message_type, definitions)


def text() -> str:
    """Returns the document as it is written down."""
    return json.dumps(schemas(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
