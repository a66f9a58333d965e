"""Every example runs on the small models and prints the expected text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adafuse_core import small_models

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments, typed=""):
    """The output of an example."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


CASES = {
    "quickstart.py": ([], "", ["Lima", "Hello", "proposed by"]),
    "langchain_rag.py": ([], "", ["Clara Denholm."]),
    "langchain_agent.py": (
        [],
        "",
        ['get_weather{"city": "Paris"}', 'calculator{"expression": "12 * 7"}', "cloudy in Paris and 12 * 7 is 84."],
    ),
    "langchain_long_chat.py": ([], "", ["The capital of Peru is Lima.", "Hamlet", "[4 messages kept]"]),
    "langchain_production.py": (
        [],
        "",
        ["The capital of Peru is Lima.", "yen", "input_tokens", "'ls_provider': 'adafuse'"],
    ),
    "langchain_structured_output.py": (
        [],
        "",
        ["object: Fact(answer='The capital of Peru is Lima.", "so far: {'answer'"],
    ),
    "llama_index_rag.py": ([], "", ["the Brenner family.", "fish.", "2 kilograms."]),
    "llama_index_agents.py": (
        [],
        "",
        [
            "[calculator {'expression': '12 * 7'} -> 84]\nIt is 16 degrees and cloudy in Paris and 12 * 7 is 84.",
            "The capital of Peru is Lima.",
            "AgentWorkflow\nyou> What time is it in Oslo?\n[get_time {'city': 'Oslo'} -> 14:05]\nIt is 14:05 in Oslo.",
            'Action: get_time\nAction Input: {"city": "Rome"}',
        ],
    ),
    "llama_index_router.py": ([], "", ["engine 0: 17:45.", "engine 1: 17 degrees and cloudy."]),
    "llama_index_vector_index.py": ([], "", ["Clara Denholm.", "lamps.", "fish.", "2 kilograms."]),
    "compare_members.py": ([], "", ["aspen:", "birch:", "together: The capital of Peru is Lima and"]),
    "terminal_chat.py": ([], "Hello!\nThank you\n\n", ["Hello!", "you>"]),
    "hugging_face_models.py": (
        [*(str(small_models.path(name)) for name in small_models.NAMES), "--", "What is the capital of Peru?"],
        "",
        ["Lima"],
    ),
}


SERVERS = {"fastapi_sse.py", "gradio_chat.py", "streamlit_chat.py"}  # tests/integrations/apps runs them


def test_every_example_has_a_case():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*CASES, *SERVERS}


@pytest.mark.parametrize("name", CASES)
def test_example_prints_the_expected_text(name):
    arguments, typed, expected = CASES[name]
    printed = run(name, *arguments, typed=typed)
    for text in expected:
        assert text in printed
