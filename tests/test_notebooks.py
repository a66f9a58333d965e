"""Every tutorial notebook runs on the small models, prints the expected text, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "examples/notebooks"

EXPECTED = {
    "ensemble_and_trace": ["The capital of Peru is Lima and", "aspen: ", "birch: ", "proposed by", "chosen:", "rounds"],
    "langchain_rag": ["Clara Denholm", "64 metres", "17:45", "Fact(answer='The capital of Peru is Lima."],
    "your_own_questions": ["ensemble", "paper", "best member:", "True"],
}


def printed(cells):
    """Everything that the cells of a notebook have printed and returned."""
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output["text"] if "text" in output else output["data"]["text/plain"] for output in outputs)


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What each notebook prints. One kernel runs all of them, to import torch once, and forgets all names between."""
    folder = tmp_path_factory.mktemp("notebooks")
    books = {name: read(name).cells for name in EXPECTED}
    parted = [[*cells, nbformat.v4.new_code_cell("%reset -f")] for cells in books.values()]
    together = nbformat.v4.new_notebook(cells=[cell for cells in parted for cell in cells])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("IPYTHONDIR", str(folder))
        nbclient.NotebookClient(together, timeout=300, startup_timeout=300).execute(cwd=str(folder))
    return {name: printed(cells) for name, cells in books.items()}


def test_every_notebook_has_a_case():
    assert {path.stem for path in NOTEBOOKS.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook_is_stored_without_outputs(name):
    for cell in read(name).cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook_runs_and_prints_the_expected_text(name, outputs):
    for expected in EXPECTED[name]:
        assert expected in outputs[name]
