"""`EnsembleModel`: the base of `AdaFuseLLM` that makes the ensemble from the fields."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, field_validator

from adafuse_core.checks import several
from adafuse_core.config import EnsembleConfig, default_config
from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError
from adafuse_core.member_config import MemberConfig
from adafuse_integrations.common.adapter_model import AdapterModel
from adafuse_integrations.common.options import ensemble_values, fields_from_config, generation_values
from adafuse_integrations.common.selection import checked_ensemble


class EnsembleModel(AdapterModel):
    """An ensemble behind the fields of a LlamaIndex LLM."""

    members: list[Any] | None = Field(default=None, description="The language models of the ensemble.")

    _given: Ensemble | None = PrivateAttr(default=None)  # given to `from_ensemble`
    _built: Ensemble | None = PrivateAttr(default=None)  # built from the fields

    @field_validator("members", mode="before")
    @classmethod
    def _plain_members(cls, members: Any) -> Any:
        return None if members is None else list(map(_plain, several("members", members, "write members=[...]")))

    @classmethod
    def from_ensemble(cls, ensemble: Ensemble, **options: Any) -> Self:
        """Make an LLM that uses an existing ensemble and its loaded models.

        Args:
            ensemble: The ensemble. Its config supplies the members, the strategy and default generation options.
            options: Fields of this class that don't describe the ensemble.

        Raises:
            ConfigError: An option would change the ensemble.
        """
        llm = cls(**fields_from_config(checked_ensemble(ensemble).config, options))
        llm._given = ensemble
        _ = llm.ensemble
        return llm

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble that the fields describe. Its models load at the first use."""
        config = self._config()
        if self._given is not None:
            if dataclasses.replace(self._given.config, generation=config.generation) != config:
                raise ConfigError(
                    "the fields differ from the members or the strategy of the ensemble that this LLM was made from",
                    hint="make an ensemble with these options and call from_ensemble again",
                )
            return self._given
        if self._built is None or self._built.config != config:
            self._built = Ensemble(config)
        return self._built

    def _config(self) -> EnsembleConfig:
        """The fields as a config of the core, checked."""
        members = default_config().members if self.members is None else self.members
        return EnsembleConfig.from_any(
            {**ensemble_values(self), "members": members, "generation": generation_values(self)}
        )

    def _get_ensemble(self) -> Ensemble:
        return self.ensemble

    # Copies and pickles. Copies share the models and callbacks, but not the running calls.

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = self.__copy__()
        copied.members = copy.deepcopy(self.members, memo)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        if self._given is not None:
            self._given.__reduce__()  # raises for ready-made members, which can't be pickled
        return super(EnsembleModel, copy.copy(self)).__getstate__()


def _plain(member: Any) -> str | dict[str, Any]:
    """A member as plain values: its name or path, or the options that were set."""
    if isinstance(member, str | Path):
        return str(member)
    return MemberConfig.from_any(member).own
