"""Models with scripted members, and with random weights, for which no guarantee depends on training."""

from __future__ import annotations

import shutil

import pytest
import torch
from langchain_core.tools import tool
from transformers import AutoConfig, AutoModelForCausalLM

from adafuse_core import Ensemble, small_models
from tests.integrations.stepped import Stepped

TEXT = "one two. Observation: three\n\n\tfour  five\nsix </s> seven"
STOPPED = "one "
QUESTION = "What is the capital of France?"

_OF_MEMBERS = ("delay", "fail_after", "context_window", "ends_answer", "steps")


@pytest.fixture(scope="session")
def random_members(tmp_path_factory):
    """Folders of the small models with random weights and the original tokenizers and templates."""
    folders = []
    for seed, name in enumerate(small_models.NAMES):
        folder = tmp_path_factory.mktemp("random") / name
        shutil.copytree(small_models.path(name), folder)
        config = AutoConfig.from_pretrained(folder)
        config.initializer_range = 0.3  # wide, so that greedy text varies
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        folders.append(str(folder))
    return folders


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return "12 degrees and rainy"


@tool
def calculator(expression: str) -> str:
    """Work out an arithmetic expression."""
    return {"12 * 7": "84"}[expression]


def scripted(kind, reply=TEXT, *, members=2, margin=0.0, **options):
    """A model whose members write the same text, one word per round, and its first member."""
    given = {name: options.pop(name) for name in _OF_MEMBERS if name in options}
    crew = [Stepped(name, reply, margin=margin, **given) for name in ("left", "right", "third")[:members]]
    return kind.from_ensemble(Ensemble(members=crew), **options), crew[0]


def endless(kind, *, steps, **options):
    """A model that writes a word for each step that it may make, and waits then; and its first member."""
    return scripted(kind, "word ", ends_answer=False, steps=steps, max_tokens=None, **options)


def crew(llm):
    """All members of a model."""
    return llm._get_ensemble().members


def held(llm):
    """Number of tokens in the KV caches of a model's members."""
    return sum(member.backend.tokens_held() for member in crew(llm))


def text_of(answer):
    return answer if isinstance(answer, str) else answer.text


async def collected(stream):
    return [piece async for piece in stream]
