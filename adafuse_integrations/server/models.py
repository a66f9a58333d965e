"""The models that clients can name: every ensemble, and every member of it alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from adafuse_core.checks import field_names, without_secrets
from adafuse_core.ensemble import Ensemble
from adafuse_integrations.server.config import MEMBER_SEPARATOR
from adafuse_integrations.server.errors import ApiError


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What answers a request.

    Args:
        name: The name by which clients choose it.
        ensemble: The ensemble, or one of its members alone.
    """

    name: str
    ensemble: Ensemble


class Models:
    """The models by name: `ENSEMBLE`, and `ENSEMBLE:MEMBER` for one member alone, which shares the loaded model.

    Args:
        ensembles: The ensembles by name.
    """

    def __init__(self, ensembles: Mapping[str, Ensemble]) -> None:
        self.ensembles = dict(ensembles)
        self.created = int(time.time())
        self._served: dict[str, ServedModel] = {}
        for name, ensemble in self.ensembles.items():
            self._served[name] = ServedModel(name=name, ensemble=ensemble)
            for member in ensemble.names:
                alone = name + MEMBER_SEPARATOR + member
                self._served[alone] = ServedModel(name=alone, ensemble=_alone(ensemble, member))

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._served.values())

    def find(self, name: str) -> ServedModel:
        """The model of a name; raises `ApiError` if there is none."""
        if name not in self._served:
            known = ", ".join(map(repr, self._served))
            raise ApiError(404, f"got model={name!r}, expected one of {known}", code="model_not_found", param="model")
        return self._served[name]

    @property
    def are_loaded(self) -> bool:
        """Whether all models are in memory."""
        return all(ensemble.is_loaded for ensemble in self.ensembles.values())

    def load(self, load: Callable[[Ensemble], Ensemble] = Ensemble.load) -> None:
        """Load all models.

        Args:
            load: Loads an ensemble.
        """
        for ensemble in self.ensembles.values():
            load(ensemble)
        for served in self._served.values():
            served.ensemble.load()  # its models are in memory already

    def close(self) -> None:
        """Release all models."""
        for served in self._served.values():
            served.ensemble.close()


def _alone(ensemble: Ensemble, member: str) -> Ensemble:
    """One member of an ensemble, on the same models. Its greedy decoding does not sample."""
    return Ensemble(ensemble.config.alone(member), members=ensemble.members if ensemble.ready_made else None)


def router(models: Models) -> APIRouter:
    """The routes that describe the models."""
    routes = APIRouter()

    @routes.get("/v1/models")
    def list_models() -> dict[str, Any]:
        """The models that requests can name."""
        return {"object": "list", "data": [_model(served, models.created) for served in models]}

    @routes.get("/v1/models/{name:path}")
    def get_model(name: str) -> dict[str, Any]:
        """One model."""
        return _model(models.find(name), models.created)

    @routes.get("/v1/adafuse/ensembles")
    def list_ensembles() -> dict[str, Any]:
        """The ensembles with their members, strategies and options."""
        return {"object": "list", "data": [describe(name, each) for name, each in models.ensembles.items()]}

    return routes


def describe(name: str, ensemble: Ensemble) -> dict[str, Any]:
    """Members, strategy and options of an ensemble as plain JSON values, without secrets."""
    config = ensemble.config
    generation = {option: getattr(config.generation, option) for option in field_names(config.generation)}
    described = {
        "name": name,
        "members": [
            {
                "name": member.label,
                "model": str(member.model),
                "weight": member.weight,
                "alone": name + MEMBER_SEPARATOR + member.label,
            }
            for member in config.members
        ],
        "strategy": config.strategy.name,
        "options": {option: getattr(config.strategy, option) for option in field_names(config.strategy)},
        "generation": generation,
    }
    plain: dict[str, Any] = without_secrets(described, [])
    return plain


def _model(served: ServedModel, created: int) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": created, "owned_by": "adafuse"}
