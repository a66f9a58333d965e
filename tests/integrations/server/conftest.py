"""A server on the two small models, for all tests of a module."""

from __future__ import annotations

import pytest

from adafuse_core import Ensemble
from tests.integrations.server.running import serving


@pytest.fixture(scope="module")
def small():
    """A server on the two small models, and on one of them under another name."""
    ensembles = {"adafuse": Ensemble().load(), "solo": Ensemble(members=["small:birch"], branches=1).load()}
    with serving(ensembles=ensembles) as server:
        server.answering.models.load()
        yield server
