"""Options of the Ray backend are checked without Ray, and its absence is explained."""

from __future__ import annotations

import sys

import pytest

from adafuse_core import EnsembleConfig
from adafuse_core.backends import RUN_OPTIONS, opener
from adafuse_core.backends.remote.ray import Ray
from adafuse_core.errors import ConfigError, ModelLoadError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.loader import load_member


def config(**options):
    return MemberConfig(model="small:birch", backend="ray", backend_options=options, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ressources": {"b": 1}}, "did you mean 'resources'"),
        ({"num_gpus": -1}, "got num_gpus=-1, expected a number of at least 0"),
        ({"num_cpus": "2"}, "got num_cpus='2'"),
        ({"resources": ["b"]}, "got resources=.*expected a mapping"),
        ({"resources": {"b": 0}}, r"got resources\['b'\]=0, expected a number above 0"),
        ({"timeout": 0}, "got timeout=0, expected a number above 0"),
        ({"load_timeout": None}, "got load_timeout=None"),
        ({"max_restarts": -2}, "got max_restarts=-2, expected an integer of at least -1"),
        ({"max_concurrency": 0}, "got max_concurrency=0"),
        ({"address": ""}, "got address=''"),
        ({"actor_name": ""}, "got actor_name=''"),
        ({"actor_name": "a", "actor_namespace": None}, "got actor_namespace=None, expected a text"),
        ({"actor_namespace": "b"}, "got actor_namespace='b' without actor_name"),
        ({"address": "ray://10.0.0.1:10001"}, "Ray Client server.*\n.*ray job submit"),
    ],
)
def test_a_wrong_option_is_refused_with_the_member(options, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        EnsembleConfig(members=(config(**options),))
    assert caught.value.member == "birch"


def test_every_field_of_a_local_member_is_honoured():
    assert Ray.honours == {*RUN_OPTIONS}
    options = {"num_gpus": 0.5, "resources": {"big": 1}, "max_restarts": 0, "timeout": 5, "address": "10.0.0.1:6379"}
    assert opener(config(**options)) == Ray(**options)
    assert EnsembleConfig(members=(config(**options),)).members[0].backend_options == options


def test_a_missing_package_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModelLoadError, match="the package ray is missing") as caught:
        load_member(config())
    assert caught.value.member == "birch"
    assert caught.value.hint == 'pip install "adafuse[ray]"'
