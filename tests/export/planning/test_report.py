"""What a plan prints, and that its JSON holds the same."""

import dataclasses
import json

import pytest

from vlmedge.export.planning.devices import DEVICES
from vlmedge.export.planning.fit import Alternative
from vlmedge.export.planning.placement import make_setup
from vlmedge.export.planning.plan import Request
from vlmedge.export.planning.planner import make_plan
from vlmedge.export.planning.report import make_json, print_plan, print_verdict

NANO = DEVICES["orin-nano-8gb"]


@pytest.fixture(scope="module")
def plan(model):
    """The 2B by orin on a Nano, three pictures and a clip."""
    return make_plan(make_setup(model(), NANO, "orin"), Request(num_images=3, video_s=4))


def test_equal_pictures_are_one_row_and_every_part_is_there(plan, capsys):
    print_plan(plan, [], explain=False)
    out = capsys.readouterr().out
    assert "3 x 1196" in out
    assert "clip, 4 pairs of frames" in out
    for part in (*plan.run.parts, *plan.build.parts):
        assert part.name in out
        assert f"{part.nbytes / 2**20:,.1f}" in out
    assert f"{plan.run.nbytes / 2**20:,.1f}" in out
    more = (plan.run_with_scores - plan.run.nbytes) / 2**20
    assert f"{more:,.1f}" in out


def test_sources_are_printed_only_when_asked_for(plan, capsys):
    print_plan(plan, [], explain=False)
    assert "where numbers are from" not in capsys.readouterr().out
    print_plan(plan, [], explain=True)
    out = capsys.readouterr().out
    assert "where numbers are from" in out
    assert "fp8 " not in out.partition("assumptions")[2]  # an Orin has none to print


def test_the_verdict_names_problems_and_what_fits(plan, capsys):
    bad = dataclasses.replace(plan, problems=("running takes 9 MiB",))
    print_verdict(bad, [Alternative("--context 64", "the cache holds 64 tokens")])
    assert capsys.readouterr().out == (
        "does not fit: running takes 9 MiB\n  fits: the cache holds 64 tokens (--context 64)\n"
    )
    print_verdict(bad, [])
    assert "nothing that was tried fits" in capsys.readouterr().out
    print_verdict(plan, [])
    assert capsys.readouterr().out == "fits\n"


def test_json_holds_what_was_computed(plan):
    report = json.loads(json.dumps(make_json(plan, []), allow_nan=False))
    assert report["run_bytes_with_scores"] == plan.run_with_scores
    assert report["run_bytes_one_graph"] == plan.run_one_graph
    assert report["tokens"]["prompt"] == plan.prompt.num_prompt_tokens
    assert report["tokens"]["next_position"] < report["tokens"]["prompt"]
    assert len(report["tokens"]["visuals"]) == 4
    assert [cost["phase"] for cost in report["costs"]] == ["ViT", "prefill", "decode"]
    assert report["build"]["fits"] is True
    assert {part["kind"] for part in report["run"]["parts"]} == {"exact", "bound", "assumed"}
