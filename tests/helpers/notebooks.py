"""What the tests of the notebooks in docs/ ask of a notebook."""

from __future__ import annotations

from typing import Any


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells: list[Any]) -> str:
    return "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")


def require_whole_run(notebook: Any, figures: int) -> None:
    """Each cell was run once, in order, without an error or a warning, and as many figures were drawn."""
    cells = code_cells(notebook)
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for output in outputs} == {"stream", "display_data"}  # so no "error"
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}  # and no warnings
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures
