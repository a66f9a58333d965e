"""Names the member in errors that are raised while it works."""

from __future__ import annotations

from contextlib import AbstractContextManager

from adafuse_core.errors import AdaFuseError, MemberError
from adafuse_core.members.base import WindowFull


class ErrorContext(AbstractContextManager[None]):
    """Adds the member's name to an `AdaFuseError`; any other error but `WindowFull` becomes a `MemberError`."""

    def __init__(self, member: str, work: str) -> None:
        self._member = member
        self._work = work

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, AdaFuseError):
            error.member = error.member or self._member
        elif isinstance(error, Exception) and not isinstance(error, WindowFull):
            problem = f"failed while {self._work}: {type(error).__name__}: {error}"
            raise MemberError(problem, member=self._member) from error
