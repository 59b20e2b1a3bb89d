"""The bar of a long command, in a real terminal."""

import sys

import pytest

# A bar whose amount is unknown until the first report, as all of ours are
UNKNOWN_AMOUNT = """
from vlmedge.runtime.terminal.console import make_progress
with make_progress(of_bytes={of_bytes}) as bar:
    step = bar.add_task("reading", total=None)
    bar.refresh()
    bar.update(step, completed=3, total=12, description="layer 3")
    bar.refresh()
print("done")
"""


@pytest.mark.parametrize(("of_bytes", "amount"), [(False, "3/12"), (True, "3/12 B")])
def test_a_bar_of_an_unknown_amount_is_drawn_and_then_counts(run_in_terminal, of_bytes, amount):
    program = [sys.executable, "-c", UNKNOWN_AMOUNT.format(of_bytes=of_bytes)]
    terminal = run_in_terminal(program=program)
    (first, *_) = [frame for frame in terminal.frames if "reading" in frame]
    assert "━" in first
    assert any("layer 3" in frame and amount in frame for frame in terminal.frames)
    assert terminal.text == "done"
