"""Systems: named ensembles that answer the same questions. Systems of the same models share them in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adafuse_core.checks import expect, several
from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class System:
    """A named ensemble.

    Args:
        name: Name in tables; unique within an evaluation.
        ensemble: The ensemble.
    """

    name: str
    ensemble: Ensemble

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members that decode."""
        config = self.ensemble.config
        return tuple(member.label for member in config.strategy.select(config.members))

    @property
    def is_single(self) -> bool:
        """Whether one member decodes greedily, without the others."""
        return self.ensemble.config.strategy.name == "single"

    @property
    def load_keys(self) -> frozenset[str]:
        """Keys of the models that decode, the same in all systems that share them."""
        config = self.ensemble.config
        return frozenset(member.load_key for member in config.strategy.select(config.members))


def systems_of(
    ensemble: Ensemble,
    further: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    singles: bool = True,
    name: str = "ensemble",
) -> tuple[System, ...]:
    """The systems of a comparison: each member alone, the ensemble, and further settings of the ensemble.

    Args:
        ensemble: The ensemble. Its models are loaded when the first question is answered.
        further: Options of `Ensemble` by the name of the system, such as `{"bytes": {"scoring": "byte"}}`. They change
            those of `ensemble`.
        singles: Whether each member alone is a system, under the member's name.
        name: Name of the ensemble.

    Raises:
        ConfigError: An option is unknown, or two systems have the same name.
    """
    objects = ensemble.members if ensemble.ready_made else None
    alone = [
        System(name=member, ensemble=Ensemble(ensemble.config.alone(member), members=objects))
        for member in ensemble.names
    ]
    others = [System(name=label, ensemble=_changed(ensemble, **options)) for label, options in (further or {}).items()]
    return checked_systems([*(alone if singles else []), System(name=name, ensemble=ensemble), *others])


def checked_systems(systems: Sequence[System]) -> tuple[System, ...]:
    """Systems with different names.

    Raises:
        ConfigError: There is none, or two have the same name.
    """
    listed = several("systems", systems, "make them with systems_of(ensemble)")
    expect(
        all(isinstance(system, System) for system in listed) and bool(listed),
        "systems",
        systems,
        "at least one `System`",
    )
    names = [system.name for system in listed]
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated:
        raise ConfigError(f"two systems are named {repeated[0]!r}", hint="give each system a name of its own")
    return tuple(listed)


def _changed(ensemble: Ensemble, **options: Any) -> Ensemble:
    """An ensemble with other options. Members that were given as objects are used again."""
    if ensemble.ready_made and "members" not in options:
        options["members"] = ensemble.members
    return Ensemble(ensemble.config, **options)
