"""Progress bars of transformers and of the hub are hidden during loads, and the user's settings stay."""

from __future__ import annotations

import os
import shutil
import threading

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from adafuse_core import Ensemble, small_models
from adafuse_core.members import progress_bars


def bars():
    return logging.is_progress_bar_enabled(), not are_progress_bars_disabled()


@pytest.fixture(autouse=True)
def _restored():
    logging.enable_progress_bar()
    yield
    logging.enable_progress_bar()


def test_bars_are_hidden_during_a_load_and_back_afterwards():
    with progress_bars.hidden():
        assert bars() == (False, False)
    assert bars() == (True, True)


@pytest.mark.parametrize("asked", [True, False])
def test_bars_of_a_model_are_shown_on_request(asked, capfd, tmp_path):
    folder = shutil.copytree(small_models.path("aspen"), tmp_path / "own")  # no other test has loaded it
    with Ensemble.from_config({"members": [str(folder)], "strategy": "single"}) as ensemble:
        ensemble.load(progress=asked)
        assert ensemble.is_loaded
    assert ("Loading weights" in capfd.readouterr().err) is asked


def test_settings_of_the_user_stay():
    logging.disable_progress_bar()
    enable_progress_bars()
    with progress_bars.hidden():
        assert bars() == (False, False)
    assert bars() == (False, True)
    logging.enable_progress_bar()
    disable_progress_bars()
    with progress_bars.hidden():
        assert bars() == (False, False)
    assert bars() == (True, False)


def test_the_last_of_several_loads_turns_the_bars_on_again():
    inside, leave = threading.Event(), threading.Event()

    def load():
        with progress_bars.hidden():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=load)
    with progress_bars.hidden():
        thread.start()
        inside.wait()
    assert bars() == (False, False)
    leave.set()
    thread.join()
    assert bars() == (True, True)


def test_a_child_that_was_forked_during_a_load_shows_bars():
    with progress_bars.hidden():
        if (child := os.fork()) == 0:
            os._exit(0 if bars() == (True, True) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert bars() == (False, False)
