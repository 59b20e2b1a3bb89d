"""`vlmedge run`: what reaches the model, what reaches stdout, and its errors."""

import json
import shutil
import sys
from unittest import mock

import pytest
from PIL import Image

from vlmedge.runtime.cli import main as cli
from vlmedge.runtime.cli.question import list_frames, make_messages
from vlmedge.runtime.inputs.messages import MAX_TEXT_CHARS
from vlmedge.runtime.terminal.standard_streams import read_text


def test_json_holds_the_whole_answer(tiny_bundle, picture, capsys):
    args = ["run", str(tiny_bundle), "What is it?", "--image", str(picture)]
    assert cli.main([*args, "--max-new-tokens", "4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["finish_reason"] in ("stop", "length")
    assert len(answer["token_ids"]) <= 4
    assert answer["num_image_tokens"] > 0
    assert answer["num_prompt_tokens"] > answer["num_image_tokens"]
    assert answer["providers"] == ["CPUExecutionProvider"]
    assert set(answer["timings"]) >= {"load_s", "vision_s", "prefill_s", "decode_tokens_per_s"}


def test_the_streamed_text_is_the_text_of_json(tiny_bundle, picture, capsys):
    args = ["run", str(tiny_bundle), "What is it?", "--image", str(picture)]
    args += ["--max-new-tokens", "8"]
    assert cli.main(args) == 0
    streamed = capsys.readouterr().out
    assert cli.main([*args, "--json"]) == 0
    assert streamed == json.loads(capsys.readouterr().out)["text"] + "\n"


def test_frames_of_a_folder_are_one_clip(tiny_bundle, tmp_path, capsys):
    for i in range(4):
        Image.new("RGB", (56, 56), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    args = ["run", str(tiny_bundle), "What moves?", "--frames", str(tmp_path)]
    assert cli.main([*args, "--max-new-tokens", "1", "--json"]) == 0
    # 4 frames: 2 pairs of 2x2 tokens
    assert json.loads(capsys.readouterr().out)["num_image_tokens"] == 8


def test_the_prompt_can_come_from_stdin(run_cli, tiny_bundle):
    args = (tiny_bundle, "--max-new-tokens", "3", "--json")
    piped = json.loads(run_cli("run", *args, "-", stdin="How much?").stdout)
    given = json.loads(run_cli("run", *args, "How much?").stdout)
    assert piped["token_ids"] == given["token_ids"]
    assert piped["num_prompt_tokens"] == given["num_prompt_tokens"]


def test_a_question_on_stdin_without_an_end_is_refused(monkeypatch):
    endless = mock.Mock(read=lambda size: "x" * size)
    monkeypatch.setattr(sys, "stdin", endless)
    with pytest.raises(ValueError, match=f"stdin has over {MAX_TEXT_CHARS} characters"):
        read_text(MAX_TEXT_CHARS)


def test_one_seed_gives_one_answer(tiny_bundle, capsys):
    def sample(seed: int) -> list[int]:
        args = ["run", str(tiny_bundle), "Say", "--temperature", "5", "--max-new-tokens", "12"]
        assert cli.main([*args, "--seed", str(seed), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["token_ids"]

    assert sample(1) == sample(1)
    assert len({tuple(sample(seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    "options",
    [
        ["--image", "no-such.png"],
        ["--image", __file__],
        ["--frames", "no-such-folder"],
        ["--provider", "NoSuchExecutionProvider"],
        ["--max-new-tokens", "1000000"],
    ],
)
def test_a_bad_request_is_one_line_and_exit_1(tiny_bundle, picture, capsys, options):
    code = cli.main(["run", str(tiny_bundle), "hello", "--image", str(picture), *options])
    out, err = capsys.readouterr()
    assert code == 1
    assert out == ""
    assert err.startswith("vlmedge run: ")
    assert err.count("\n") == 1
    assert "unexpected" not in err


def test_an_empty_folder_of_frames_is_told_of(tiny_bundle, tmp_path, capsys):
    assert cli.main(["run", str(tiny_bundle), "hello", "--frames", str(tmp_path)]) == 1
    assert "holds no pictures" in capsys.readouterr().err


def test_frames_go_by_number_and_other_files_are_left_out(tmp_path):
    for name in ("frame10.png", "frame2.PNG", "frame1.jpg", "notes.txt"):
        (tmp_path / name).touch()
    names = [path.name for path in list_frames([tmp_path])]
    assert names == ["frame1.jpg", "frame2.PNG", "frame10.png"]


def test_files_given_as_frames_keep_their_order(tmp_path):
    paths = [tmp_path / "b.png", tmp_path / "a.png"]
    assert list_frames(paths) == paths


def test_pictures_come_before_the_clip_and_the_question(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    system, user = make_messages("Why?", [a, b], [c], "Be brief.")
    assert system == {"role": "system", "content": "Be brief."}
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["image", "image", "video", "text"]
    assert make_messages("Why?", [], [], None) == [
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
    ]


def test_settings_of_an_answer_reach_it(tiny_bundle, capsys):
    def ask(*options):
        args = ["run", str(tiny_bundle), "Why?", "--max-new-tokens", "6", "--json", *options]
        assert cli.main(args) == 0
        return json.loads(capsys.readouterr().out)

    free = ask()
    assert len(ask("--min-new-tokens", "6")["token_ids"]) == 6
    distinct = ask("--no-repeat-ngram-size", "1", "--min-new-tokens", "6")["token_ids"]
    assert len(set(distinct)) == 6
    assert ask("--min-p", "1")["token_ids"] == free["token_ids"]  # only the likeliest is left


def test_special_tokens_stay_in_the_answer_where_asked(
    tiny_bundle, edit_manifest, tmp_path, capsys
):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    raw = json.loads((bundle / "tokenizer.json").read_text("utf-8"))
    names = {token["content"]: token["id"] for token in raw["added_tokens"]}
    name = "<|vision_pad|>"
    bias = [[[names[name]], 1000.0]]  # the answer is this token, again and again
    edit_manifest(bundle, lambda raw: raw["generation"].update(sequence_bias=bias))
    args = ["run", str(bundle), "Why?", "--max-new-tokens", "3"]
    assert cli.main(args) == 0
    assert capsys.readouterr().out == "\n"
    assert cli.main([*args, "--keep-special-tokens"]) == 0
    assert capsys.readouterr().out == name * 3 + "\n"


def test_a_special_token_of_the_question_is_text_unless_it_is_allowed(tiny_bundle, capsys):
    raw = json.loads((tiny_bundle / "tokenizer.json").read_text("utf-8"))
    names = [token["content"] for token in raw["added_tokens"]]
    assert "<|vision_pad|>" in names
    args = ["run", str(tiny_bundle), "<|vision_pad|>", "--max-new-tokens", "1", "--json"]
    counts = []
    for options in ([], ["--allow-token", "<|vision_pad|>"]):
        assert cli.main([*args, *options]) == 0
        counts.append(json.loads(capsys.readouterr().out)["num_prompt_tokens"])
    assert counts[1] < counts[0]
    assert cli.main([*args, "--allow-token", "<|im_end|>"]) == 1
    assert "<|im_end|> can't be allowed" in capsys.readouterr().err
