"""The core's options as pydantic fields, which the model classes for LangChain and LlamaIndex inherit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, create_model, model_validator

from adafuse_integrations.common.options import ENSEMBLE, GENERATION, Option, read_constructor_options


def _field(option: Option) -> tuple[Any, Any]:
    return option.type, Field(default=option.default, description=option.description)


if TYPE_CHECKING:

    class _Derived(BaseModel):
        """For type checkers: the fields that the adapters' own code reads. At run time there are more."""

        max_new_tokens: int | None = None
        logprobs: bool = False

else:
    _Derived = create_model(
        "_Derived",
        __module__=__name__,
        **{
            name: _field(option)
            for name, option in {**ENSEMBLE, **GENERATION}.items()
            if option.default is not dataclasses.MISSING
        },
    )


class OptionFields(_Derived):
    """Every option of the core that has a default. Adapters add `members` and their own fields."""

    @model_validator(mode="before")
    @classmethod
    def _read_arguments(cls, values: Any) -> Any:
        return read_arguments(cls, values)


def read_arguments(model: type[BaseModel], values: Any) -> Any:
    """Convert constructor arguments to values of the model's fields; see `read_constructor_options`."""
    names = [*model.model_fields, *(field.alias for field in model.model_fields.values() if field.alias)]
    return read_constructor_options(values, names, model.__name__) if isinstance(values, Mapping) else values
