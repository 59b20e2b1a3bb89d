"""A board's free memory: the documents' numbers, said aloud, and the caller's own where given."""

import re
from pathlib import Path

import pytest

from vlmedge.export.planning.devices import DEVICES, GIB
from vlmedge.export.planning.free_memory import choose_free
from vlmedge.runtime.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
NANO = DEVICES["orin-nano-8gb"]


def test_a_nano_with_its_desktop_has_what_the_jetson_page_says():
    page = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    said = re.search(r"about (\d) to (\d) GiB\s+are\s+free with the desktop running", page)
    assert said is not None
    least, most = int(said[1]), int(said[2])
    free = choose_free(NANO, desktop=True, free_gib=None).free_bytes / GIB
    assert least <= free <= most


def test_the_table_of_boards_in_the_planning_page_has_both_amounts():
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \|[^|]*\| ([\d.]+); ([\d.]+), ([\d.]+) GiB \|", page, re.M)
    assert {row[0] for row in rows} == set(DEVICES)
    for name, seen, with_desktop, without in rows:
        device = DEVICES[name]
        bare = choose_free(device, desktop=False, free_gib=None).free_bytes
        full = choose_free(device, desktop=None, free_gib=None).free_bytes
        amounts = (device.memory_bytes, full, bare)
        assert [f"{amount / GIB:.1f}" for amount in amounts] == [seen, with_desktop, without], name


@pytest.mark.parametrize("name", DEVICES)
def test_a_desktop_takes_memory_of_every_board_and_is_the_default(name):
    device = DEVICES[name]
    by_default = choose_free(device, desktop=None, free_gib=None)
    assert by_default == choose_free(device, desktop=True, free_gib=None)
    bare = choose_free(device, desktop=False, free_gib=None)
    assert 0 < by_default.free_bytes < bare.free_bytes == device.free_bytes
    assert "--headless" in by_default.free_is
    assert by_default.desktop_bytes == bare.free_bytes - by_default.free_bytes
    assert bare.desktop_bytes == 0


def test_an_amount_of_ones_own_is_taken_as_it_is():
    given = choose_free(NANO, desktop=None, free_gib=5.5)
    assert given.free_bytes == int(5.5 * GIB)
    assert "--free-memory" in given.free_is


@pytest.fixture
def plan(config_folder, capsys):
    def run(*options):
        code = main(["plan", str(config_folder("2b")), *options])
        return code, *capsys.readouterr()

    return run


def test_the_plan_says_which_assumption_it_took(plan):
    nano = ("--device", "orin-nano-8gb", "--recipe", "orin")
    _, out, _ = plan(*nano)
    assert "assumed with its desktop running; --headless: 6.6 GiB" in out
    _, out, _ = plan(*nano, "--headless")
    assert "assumed without a desktop" in out
    _, out, _ = plan(*nano, "--free-memory", "5")
    assert "5,120.0" in out
    assert "as given by --free-memory" in out
    _, out, _ = plan()
    assert "as the kernel says now" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--headless",), "--headless is for a board by name"),
        (("--desktop",), "--desktop is for a board by name"),
        (("--device", "thor", "--headless", "--free-memory", "9"), "give one of them"),
        (("--device", "orin-nano-8gb", "--free-memory", "8"), "needed 0.0625 to 7.3"),
        (("--device", "orin-nano-8gb", "--free-memory", "4096"), "needed 0.0625 to 7.3"),
        (("--device", "orin-nano-8gb", "--free-memory", "0"), "needed 0.0625 to 7.3"),
        (("--device", "orin-nano-8gb", "--free-memory", "nan"), "needed 0.0625 to 7.3"),
    ],
)
def test_an_amount_that_cannot_be_is_refused(plan, options, said):
    code, out, err = plan(*options)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
