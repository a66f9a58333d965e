"""The core's options as fields of a pydantic model: what the models of LangChain and LlamaIndex inherit."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, create_model

from adafuse_integrations.common.options import ENSEMBLE, GENERATION, Option

if TYPE_CHECKING:

    class OptionFields(BaseModel):
        """Type checkers see the fields that the adapters' own code reads; the others are just as real."""

        max_new_tokens: int | None = None
        logprobs: bool = False


def _field(option: Option) -> tuple[Any, Any]:
    return option.type, Field(default=option.default, description=option.description)


if not TYPE_CHECKING:
    OptionFields = create_model(
        "OptionFields",
        __doc__="Every option of the core that has a default. Adapters add `members`, and what is theirs alone.",
        __module__=__name__,
        **{
            name: _field(option)
            for name, option in {**ENSEMBLE, **GENERATION}.items()
            if option.default is not dataclasses.MISSING
        },
    )
