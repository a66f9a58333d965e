"""The local backend keeps the contract of backends."""

from __future__ import annotations

import pytest

from adafuse_core.member_config import MemberConfig
from tests.backends.contract import BackendContract


class TestLocal(BackendContract):
    @pytest.fixture(scope="class")
    @classmethod
    def config(cls):
        return MemberConfig(model="small:birch", dtype="float64", device="cpu")
