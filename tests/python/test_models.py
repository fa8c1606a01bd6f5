"""The pydantic models mirror the Rust domain: both are compared with ``tests/shared/domain.json``."""

import json
from enum import StrEnum
from pathlib import Path

import pytest
from mnemosyne import models
from pydantic import BaseModel, JsonValue, ValidationError

DOMAIN = json.loads((Path(__file__).parents[1] / "shared" / "domain.json").read_text())


@pytest.mark.parametrize("name", sorted(DOMAIN["enums"]))
def test_an_enum_has_the_values_that_rust_has_in_the_same_order(name: str) -> None:
    enum: type[StrEnum] = getattr(models, name)
    assert [str(value) for value in enum] == DOMAIN["enums"][name]


@pytest.mark.parametrize("name", sorted(DOMAIN["models"]))
def test_a_model_has_the_fields_and_defaults_that_rust_has(name: str) -> None:
    model: type[BaseModel] = getattr(models, name)
    written = DOMAIN["models"][name]
    assert set(model.model_fields) == set(written)
    required = {key for key, field in model.model_fields.items() if field.is_required()}
    smallest = {key: value for key, value in written.items() if key in required}
    assert model.model_validate(smallest).model_dump(mode="json") == written


@pytest.mark.parametrize("name", sorted(DOMAIN["accepted"]))
def test_a_model_accepts_in_each_field_the_kinds_of_value_that_rust_accepts(name: str) -> None:
    model: type[BaseModel] = getattr(models, name)

    def accepts(field: str, probe: JsonValue) -> bool:
        try:
            model.model_validate_json(json.dumps({**DOMAIN["models"][name], field: probe}), strict=True)
        except ValidationError:
            return False
        return True

    for field, expected in DOMAIN["accepted"][name].items():
        if field == "any other key":
            assert accepts(field, None) is expected
        else:
            assert [kind for kind, probe in DOMAIN["probes"].items() if accepts(field, probe)] == expected, field


def test_a_misspelt_key_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="sucess"):
        models.WorkResult.model_validate({"success": True, "sucess": 1})


def test_priority_and_attempt_have_bounds() -> None:
    item = {"id": "a", "description": "b", "phase": "complete", "role": "executor"}
    for key, value in [("priority", 11), ("priority", -1), ("attempt", 0), ("timeout_seconds", 0)]:
        with pytest.raises(ValidationError, match=key):
            models.WorkItem.model_validate({**item, key: value})
