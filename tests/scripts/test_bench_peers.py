"""What a comparison with other runtimes prints: figures with their spread."""

from bench_peers import Contender, make_ratios, print_tables
from peers.figures import Figures

CONTENDERS = [
    Contender("vlmedge int4", 4, lambda task: Figures()),
    Contender("llama.cpp Q4_0", 4, lambda task: Figures()),
    Contender("OpenVINO int4", 4, None),
]


def run(vision_s, prefill=None):
    return Figures(vision_s=vision_s, prefill_tokens_per_s=prefill)


def test_ratios_have_an_interval_and_say_where_they_show_no_difference(capsys):
    results = {
        "vlmedge int4": [run(2.0, 5.0), run(2.2, 9.0), run(2.1, 6.0)],
        "llama.cpp Q4_0": [run(1.0, 6.0), run(1.1, 6.0), run(1.0, 7.0)],
    }
    ratios = make_ratios(CONTENDERS, results)
    assert [(row["ours"], row["theirs"]) for row in ratios] == [("vlmedge int4", "llama.cpp Q4_0")]
    slower, same = ratios[0]["vision_s"], ratios[0]["prefill_tokens_per_s"]
    assert 1 < slower["low"] < slower["ratio"] < slower["high"]
    assert same["low"] < 1 < same["high"]
    print_tables(CONTENDERS, results, ratios)
    out = capsys.readouterr().out
    assert out.count("no difference") == 1
    assert "| 2.10 [2.00 - 2.20] |" in out
    assert "| OpenVINO int4 | not installed |" in out


def test_one_round_has_no_interval(capsys):
    results = {"vlmedge int4": [run(2.0)], "llama.cpp Q4_0": [run(1.0)]}
    ratios = make_ratios(CONTENDERS, results)
    assert ratios[0]["vision_s"] == {"ratio": 2.0}
    assert ratios[0]["prefill_tokens_per_s"] is None
    print_tables(CONTENDERS, results, ratios)
    assert "2.00 (one round)" in capsys.readouterr().out
