"""What people see on a terminal."""

from __future__ import annotations

import io

from rich.table import Table

from optllm_router import _display


def test_a_table_is_printed_whole_on_a_narrow_terminal(monkeypatch):
    shown = io.StringIO()

    def narrow(*, stderr: bool = False):
        return _display._Console(file=shown, force_terminal=True, width=40, color_system=None)

    monkeypatch.setattr(_display, "console", narrow)
    table = Table()
    cells = [f"{number:.9f}" for number in range(8)]
    for heading in cells:
        table.add_column(heading, no_wrap=True)
    table.add_row(*cells)
    _display.print_whole(table)
    assert all(shown.getvalue().count(cell) == 2 for cell in cells)
