"""Config files: round trips, secrets are left out, and the documented file lists every option."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml

from adafuse_core import ConfigError, Ensemble, EnsembleConfig, GenerationParams, MemberConfig, ScriptedMember
from adafuse_core.checks import field_names
from adafuse_core.config import default_config
from adafuse_core.strategies import STRATEGIES, AdaFuse
from tests.test_config import CONFIGS

SAMPLE = Path(__file__).parent.parent / "docs/ensemble.yaml"
SHARED = EnsembleConfig(
    members=["org/one", {"model": "org/two", "dtype": "auto", "weight": 2}, "other/one"],
    member_defaults={"dtype": "bfloat16", "end_tokens": ["###"], "model_kwargs": {"cache_dir": "/m"}},
    strategy=AdaFuse(tau=0.25),
)


@pytest.mark.parametrize("config", [*CONFIGS, SHARED, default_config()])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_saved_config_is_read_back_equal(config, kind, tmp_path):
    path = kind(tmp_path / "ensemble.yaml")
    config.save(path)
    read = EnsembleConfig.from_any(path)
    assert read == config
    assert Ensemble.from_config(path).config == config
    assert read.updated({"dtype": "float16"}) == config.updated({"dtype": "float16"})
    Ensemble(config).save(path)
    assert EnsembleConfig.from_any(path) == config


def test_a_saved_file_contains_only_fields_that_were_set(tmp_path):
    Ensemble(members=["org/one", {"model": "org/two", "weight": 2}], dtype="bfloat16").save(tmp_path / "e.yaml")
    saved = yaml.safe_load((tmp_path / "e.yaml").read_text(encoding="utf-8"))
    assert saved["members"] == [{"model": "org/one", "name": "one"}, {"model": "org/two", "name": "two", "weight": 2}]
    assert saved["member_defaults"] == {"dtype": "bfloat16"}


def test_arguments_override_a_file(tmp_path):
    SHARED.save(tmp_path / "e.yaml")
    ensemble = Ensemble.from_config(tmp_path / "e.yaml", tau=0.5, dtype="float32", generation={"stop": "x"})
    assert ensemble.config.strategy.tau == 0.5
    assert [member.dtype for member in ensemble.config.members] == ["float32", "auto", "float32"]
    assert ensemble.config.generation.stop == ("x",)
    with pytest.raises(ConfigError, match="tua"):
        Ensemble.from_config(tmp_path / "e.yaml", tua=0.5)


def test_secrets_are_left_out_and_named(tmp_path, caplog):
    config = EnsembleConfig(
        members=["org/open", {"model": "org/gated", "model_kwargs": {"token": "hf_own", "cache_dir": "/m"}}],
        member_defaults={"model_kwargs": {"token": "hf_all", "proxies": [{"password": "pw", "host": "h"}]}},
    )
    config.save(tmp_path / "e.yaml")
    text = (tmp_path / "e.yaml").read_text(encoding="utf-8")
    for secret in ("hf_own", "hf_all", "pw"):
        assert secret not in text.replace("password", "")
    for place in (
        "members[1].model_kwargs.token",
        "member_defaults.model_kwargs.token",
        "member_defaults.model_kwargs.proxies[0].password",
    ):
        assert place in text
        assert place in caplog.text
    read = EnsembleConfig.from_any(tmp_path / "e.yaml")
    assert read.members[1].model_kwargs == {"cache_dir": "/m"}
    assert read.members[0].model_kwargs == {"proxies": [{"host": "h"}]}


def test_values_that_are_not_text_are_not_secret(tmp_path):
    config = EnsembleConfig(members=[{"model": "a", "model_kwargs": {"token": True}}])
    config.save(tmp_path / "e.yaml")
    assert EnsembleConfig.from_any(tmp_path / "e.yaml") == config


def test_unsaveable_configs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="can't write"):
        SHARED.save(tmp_path)
    with pytest.raises(ConfigError, match="can't save"):
        EnsembleConfig(members=[{"model": "a", "model_kwargs": {"config": object()}}]).save(tmp_path / "e.yaml")
    assert not (tmp_path / "e.yaml").exists()
    with pytest.raises(ConfigError, match="ready-made"):
        Ensemble(members=[ScriptedMember("m", "hi")]).save(tmp_path / "e.yaml")


def test_paths_and_torchs_types_are_saved_by_name(tmp_path):
    given = {"cache_dir": Path("/models"), "torch_dtype": torch.float32, "max_memory": {0: "9GiB"}, "sizes": (1, 2)}
    EnsembleConfig(members=[{"model": "a", "model_kwargs": given}]).save(tmp_path / "e.yaml")
    read = EnsembleConfig.from_any(tmp_path / "e.yaml").members[0].model_kwargs
    assert read == {"cache_dir": "/models", "torch_dtype": "float32", "max_memory": {0: "9GiB"}, "sizes": [1, 2]}


class TestSample:
    TEXT = SAMPLE.read_text(encoding="utf-8")

    def test_it_is_the_default_ensemble(self):
        config = EnsembleConfig.from_any(SAMPLE)
        assert config.member_defaults == {"dtype": "auto"}
        assert dataclasses.replace(config, member_defaults={}) == default_config()

    @pytest.mark.parametrize("kind", [EnsembleConfig, GenerationParams, MemberConfig, *STRATEGIES.values()])
    def test_every_option_stands_in_it(self, kind):
        for name in field_names(kind):
            assert re.search(rf"(?m)^[ #-]*{name}:|`{name}`", self.TEXT), name

    def test_it_is_valid_with_all_options_uncommented(self):
        """Commented-out options are valid, too."""
        lines = [re.sub(r"^( *)# (?=[a-z_]+: )", r"\1", line) for line in self.TEXT.splitlines()]
        open_lines = [line for line in lines if not re.match(r" *(device_map|backend_options|pool_exponent):", line)]
        config = EnsembleConfig.from_any(yaml.safe_load("\n".join(open_lines)))
        assert config.members[0].device == "cuda:0"
        assert config.members[1].max_kv_tokens == 65536
        assert config.generation.seed == 1
