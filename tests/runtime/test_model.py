"""How a model behaves towards its callers; what it computes is compared in test_model_parity.py."""

import dataclasses
import gc
import threading

import numpy as np
import pytest

from vlmedge.runtime import ContextLengthError, GenerationOptions, ImageError, Model, PromptError

PICTURE = np.random.default_rng(0).integers(0, 256, (84, 112, 3), np.uint8)
MESSAGES = [{"role": "user", "content": "What is the total?"}]
OPTIONS = GenerationOptions(max_new_tokens=24, ignore_eos=True)
SAMPLED = dataclasses.replace(OPTIONS, temperature=5.0, seed=11)


def test_an_answer_says_what_it_is_about(model):
    answer = model.answer("What is this?", [PICTURE], videos=[[PICTURE] * 3], options=OPTIONS)
    assert answer.num_image_tokens == 12 + 2 * 12
    assert answer.num_prompt_tokens > answer.num_image_tokens
    assert len(answer.token_ids) == 24
    assert answer.finish_reason == "length"
    assert answer.notices == ()
    times = dataclasses.asdict(answer.timings)
    assert all(value >= 0 for value in times.values())
    assert times["decode_tokens_per_s"] == pytest.approx(23 / times["decode_s"])


def test_pieces_of_a_stream_add_up_to_the_answer(model):
    stream = model.stream(MESSAGES, SAMPLED)
    assert stream.answer is None
    pieces = list(stream)
    assert len(pieces) > 1
    assert all(pieces)
    assert "".join(pieces) == stream.answer.text
    chat = model.chat(MESSAGES, SAMPLED)
    assert (chat.text, chat.token_ids) == (stream.answer.text, stream.answer.token_ids)
    assert list(stream) == []


def test_a_seed_repeats_an_answer_and_another_changes_it(model):
    other = dataclasses.replace(SAMPLED, seed=12)
    first, again, changed = (model.chat(MESSAGES, o) for o in (SAMPLED, SAMPLED, other))
    assert first.token_ids == again.token_ids != changed.token_ids


def test_an_end_token_ends_the_answer_and_is_not_text(model):
    sampled = dataclasses.replace(SAMPLED, max_new_tokens=1000, ignore_eos=False)
    answer = model.chat(MESSAGES, sampled)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] in model.manifest.tokens.eos
    assert not set(answer.token_ids[:-1]) & set(model.manifest.tokens.eos)
    assert "<|im_end|>" not in answer.text


def test_a_stop_string_ends_the_answer_before_it(model):
    whole = model.chat(MESSAGES, SAMPLED).text
    stop = whole[5:8]
    options = dataclasses.replace(SAMPLED, stop=stop)
    stream = model.stream(MESSAGES, options)
    assert "".join(stream) == whole[: whole.index(stop)] == stream.answer.text
    assert stream.answer.finish_reason == "stop"
    assert len(stream.answer.token_ids) < 24


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_loaded(tiny):
    with Model.load(tiny.bundle) as fresh:
        limit = fresh.manifest.decoder.max_position_embeddings
        with pytest.raises(ContextLengthError, match=str(limit)):
            fresh.chat(MESSAGES, GenerationOptions(max_new_tokens=limit))
        with pytest.raises(ContextLengthError, match="prompt has"):
            fresh.chat([{"role": "user", "content": "0" * limit}])
        with pytest.raises(ContextLengthError):
            fresh.chat_batch([MESSAGES, [{"role": "user", "content": "0" * limit}]])
        assert fresh._engine._backend.load_s == 0


def test_cancelling_ends_an_answer_with_what_there_is(model):
    event = threading.Event()
    stream = model.stream(MESSAGES, SAMPLED, cancel=event)
    pieces = [next(stream)]
    event.set()
    pieces += list(stream)
    assert stream.answer.finish_reason == "cancelled"
    assert 0 < len(stream.answer.token_ids) < 24
    assert "".join(pieces) == stream.answer.text
    whole = model.chat(MESSAGES, SAMPLED)
    assert whole.token_ids[: len(stream.answer.token_ids)] == stream.answer.token_ids


@pytest.mark.parametrize("num_checks", range(6))
def test_cancelling_at_any_check_leaves_the_model_usable(model, num_checks):
    checks = iter([False] * num_checks)
    content = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "?"}]
    messages = [{"role": "user", "content": content}]
    answer = model.chat(messages, OPTIONS, cancel=lambda: next(checks, True))
    # One check before the ViT, one before the prefill, one before each further token.
    assert len(answer.token_ids) == max(0, num_checks - 1)
    assert answer.finish_reason == "cancelled"
    assert model.chat(messages, OPTIONS).finish_reason == "length"


def test_cancelling_a_batch_ends_all_of_it(model):
    checks = iter([False] * 4)
    options = [dataclasses.replace(OPTIONS, max_new_tokens=n) for n in (1, 24)]
    answers = model.chat_batch([MESSAGES] * 2, options, cancel=lambda: next(checks, True))
    assert [answer.finish_reason for answer in answers] == ["length", "cancelled"]


def test_threads_get_the_answers_they_would_get_alone(model):
    options = [dataclasses.replace(SAMPLED, seed=seed) for seed in range(6)]
    needed = [model.chat(MESSAGES, o).token_ids for o in options]
    got: dict[int, tuple[int, ...]] = {}

    def ask(index):
        stream = model.stream(MESSAGES, options[index])
        for _ in stream:
            pass
        got[index] = stream.answer.token_ids

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(options))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [got[i] for i in range(len(options))] == needed


def test_a_thread_that_would_wait_for_its_own_stream_is_told_so(model):
    stream = model.stream(MESSAGES, OPTIONS)
    next(stream)
    with pytest.raises(RuntimeError, match="stream"):
        model.chat(MESSAGES, OPTIONS)
    stream.close()
    assert stream.answer is None
    with pytest.raises(ValueError, match="closed"):
        stream.read()
    assert model.chat(MESSAGES, OPTIONS).finish_reason == "length"


def test_a_stream_that_is_dropped_gives_the_model_back(model):
    stream = model.stream(MESSAGES, OPTIONS)
    next(stream)
    del stream
    gc.collect()
    assert model.chat(MESSAGES, OPTIONS).finish_reason == "length"


def test_a_request_that_fails_gives_the_model_back(model, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(model._engine._backend, "make_cache", fail)
    with pytest.raises(MemoryError):
        model.chat(MESSAGES, OPTIONS)
    monkeypatch.undo()
    assert model.chat(MESSAGES, OPTIONS).finish_reason == "length"


def test_a_closed_model_says_so(tiny):
    model = Model.load(tiny.bundle)
    stream = model.stream(MESSAGES, OPTIONS)
    model.close()
    model.close()
    for ask in (lambda: model.chat(MESSAGES), lambda: next(stream)):
        with pytest.raises(ValueError, match="closed"):
            ask()


def test_with_residency_one_a_single_graph_is_in_memory(tiny, model):
    with Model.load(tiny.bundle, residency="one", num_threads=1) as lean:
        assert lean._engine._backend._sessions == {}
        answer = lean.answer("?", [PICTURE], videos=[[PICTURE]], options=OPTIONS)
        assert list(lean._engine._backend._sessions) == ["decoder"]
        needed = model.answer("?", [PICTURE], videos=[[PICTURE]], options=OPTIONS)
        assert answer.token_ids == needed.token_ids
        assert answer.timings.load_s > 0
        assert lean.answer("?", [PICTURE], videos=[[PICTURE]], options=OPTIONS).text == needed.text


def test_graphs_are_loaded_when_they_are_needed_and_once(tiny):
    with Model.load(tiny.bundle) as fresh:
        sessions = fresh._engine._backend._sessions
        fresh.chat(MESSAGES, OPTIONS)
        assert list(sessions) == ["decoder"]
        assert fresh.answer("?", [PICTURE], options=OPTIONS).timings.load_s > 0
        assert sorted(sessions) == ["decoder", "vision"]
        assert fresh.answer("?", [PICTURE], options=OPTIONS).timings.load_s == 0


def test_pixel_limits_of_a_picture_go_before_those_of_the_request(model):
    def count(request_limit, own_limit):
        part = {"type": "image", "image": PICTURE, "max_pixels": own_limit}
        messages = [{"role": "user", "content": [part]}]
        options = dataclasses.replace(OPTIONS, max_new_tokens=1)
        return model.chat(messages, options, max_pixels=request_limit).num_image_tokens

    assert count(None, None) == 12
    assert count(56 * 56, None) < 12
    assert count(56 * 56, 112 * 84) == 12


def test_a_picture_over_the_budget_is_shrunk_and_the_answer_says_so(tiny):
    with Model.load(tiny.bundle) as small:
        pixels = dataclasses.replace(small.manifest.pixels, max_pixels=84 * 84)
        small._maker._manifest = dataclasses.replace(small.manifest, pixels=pixels)
        answer = small.answer("?", [np.zeros((140, 140, 3), np.uint8)], options=OPTIONS)
    assert answer.num_image_tokens == 9
    (notice,) = answer.notices
    assert "140x140" in notice
    assert "84x84" in notice


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], PromptError),
        ("hello", PromptError),
        ([{"role": "user", "content": [{"type": "image", "image": b"no picture"}]}], ImageError),
        ([{"role": "user", "content": [{"type": "image", "image": "none.png"}]}], ImageError),
    ],
)
def test_bad_requests_fail_at_the_call_and_not_in_the_stream(model, messages, error):
    with pytest.raises(error):
        model.stream(messages)


def test_bad_arguments_are_named(tiny, model):
    with pytest.raises(ValueError, match="residency"):
        Model.load(tiny.bundle, residency="two")
    with pytest.raises(ValueError, match="mrope_rule"):
        Model.load(tiny.bundle, mrope_rule="mine")
    with pytest.raises(ValueError, match="num_threads"):
        Model.load(tiny.bundle, num_threads=0)
    with pytest.raises(ValueError, match="images"):
        model.answer("?", "cat.png")
    with pytest.raises(ValueError, match="options for 3"):
        model.chat_batch([MESSAGES], [OPTIONS] * 3)
    with pytest.raises(ValueError, match="cancel"):
        model.chat(MESSAGES, cancel=3)


def test_an_empty_batch_is_empty(model):
    assert model.chat_batch([]) == []
