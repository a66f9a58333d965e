"""Installed packages, compared with the version ranges in the metadata of adafuse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain

from adafuse_core.backends.quantization import PACKAGES

ADAFUSE = "adafuse"
OK, MISSING, OUTSIDE = "ok", "missing", "outside"
FOR_QUANTIZED = "quantized models"

_NOT_SHOWN = ("dev", "docs", "small-models")  # extras for developers, and one whose models a clone has already


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that adafuse uses.

    Args:
        name: Its name.
        version: The installed version; None if it is missing.
        wanted: Range of versions that adafuse supports; empty for any.
        purpose: What needs the package; empty if everything does.
        state: `OK`, `MISSING` or `OUTSIDE` of the supported range.
        install: Command that installs a supported version.
    """

    name: str
    version: str | None
    wanted: str
    purpose: str
    state: str
    install: str

    @property
    def required(self) -> bool:
        """Whether nothing works without it."""
        return not self.purpose


def packages() -> tuple[Package, ...]:
    """adafuse itself, the packages that it requires, those of its extras, and those for quantized checkpoints."""
    own = _package(ADAFUSE, "", "", f"pip install {ADAFUSE}")
    if own.version is None:
        return (own,)  # a source tree: there is no metadata to compare with
    found = {package.name: package for package in (own, *_declared(metadata.requires(ADAFUSE) or (), _extras()))}
    for name in chain.from_iterable(PACKAGES.values()):
        found.setdefault(name, _package(name, "", FOR_QUANTIZED, f"pip install {name}"))
    return tuple(found.values())


def is_installed(name: str) -> bool:
    """Whether a package is installed, in any version."""
    return _version(name) is not None


def _extras() -> Sequence[str]:
    declared = metadata.metadata(ADAFUSE).get_all("Provides-Extra") or ()
    return [extra for extra in declared if extra not in _NOT_SHOWN]


def _declared(requirements: Sequence[str], extras: Sequence[str]) -> Iterator[Package]:
    """The packages of some requirements. One that several extras need is listed for the smallest of them."""
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in requirements]

    def of(extra: str) -> list[Requirement]:
        return [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": extra})]

    for each in of(""):
        yield _package(each.name, str(each.specifier), "", f'pip install "{each.name}{each.specifier}"')
    seen = {each.name for each in of("")}
    for extra in sorted(extras, key=lambda extra: len(of(extra))):
        for each in of(extra):
            if each.name not in seen:
                seen.add(each.name)
                yield _package(each.name, str(each.specifier), f"extra {extra}", f'pip install "{ADAFUSE}[{extra}]"')


def _package(name: str, wanted: str, purpose: str, install: str) -> Package:
    version = _version(name)
    state = MISSING if version is None else OK if _is_inside(version, wanted) else OUTSIDE
    return Package(name=name, version=version, wanted=wanted, purpose=purpose, state=state, install=install)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_inside(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)
