"""A model is closed while streams are open: in the same thread, in others, and from within."""

import gc
import logging
import threading

import pytest

from vlmedge.runtime import GenerationOptions, Model

MESSAGES = [{"role": "user", "content": "What is the total?"}]
OPTIONS = GenerationOptions(max_new_tokens=24, ignore_eos=True)


@pytest.fixture
def own(tiny):
    """A model to close."""
    model = Model.load(tiny.bundle, num_threads=1)
    yield model
    model.close()


def run_in_thread(function):
    """Start a thread; the returned list holds its result or its error once it has ended."""
    outcome = []

    def call():
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread, outcome


def test_leaving_the_block_closes_a_stream_that_is_open(tiny):
    with Model.load(tiny.bundle, num_threads=1) as model:
        stream = model.stream(MESSAGES, OPTIONS)
        next(stream)
    for read in (lambda: next(stream), stream.read):
        with pytest.raises(ValueError, match="model was closed"):
            read()
    assert stream.answer is None
    stream.close()


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt(), BrokenPipeError()])
def test_the_callers_own_error_leaves_the_block(tiny, error):
    model = Model.load(tiny.bundle, num_threads=1)
    stream = model.stream(MESSAGES, OPTIONS)
    next(stream)
    with pytest.raises(type(error)) as caught, model:
        raise error
    assert caught.value is error
    with pytest.raises(ValueError, match="model was closed"):
        next(stream)


def test_the_callers_error_is_not_replaced_by_one_of_closing(own, monkeypatch, caplog):
    def fail():
        raise OSError("the device is lost")

    monkeypatch.setattr(own._engine._backend, "close", fail)
    with caplog.at_level(logging.ERROR), pytest.raises(KeyError, match="mine"), own:
        raise KeyError("mine")
    assert "the device is lost" in caplog.text
    with pytest.raises(OSError, match="lost"), own:
        pass
    monkeypatch.undo()


def test_an_answer_that_is_complete_stays_after_closing(own):
    stream = own.stream(MESSAGES, OPTIONS)
    text = "".join(stream)
    own.close()
    assert stream.read().text == text
    assert list(stream) == []


def test_a_stream_that_was_closed_ends_in_silence_whatever_happens_to_the_model(own):
    stream = own.stream(MESSAGES, OPTIONS)
    next(stream)
    stream.close()
    own.close()
    assert list(stream) == []
    with pytest.raises(ValueError, match="closed before its end"):
        stream.read()


def test_a_stream_that_another_thread_left_open_is_cut_off(own):
    thread, outcome = run_in_thread(lambda: (stream := own.stream(MESSAGES, OPTIONS), next(stream)))
    thread.join(60)
    ((stream, _),) = outcome
    closing, closed = run_in_thread(own.close)
    closing.join(60)
    assert closed == [None]  # and it does not wait for ever
    with pytest.raises(ValueError, match="model was closed"):
        next(stream)


def test_a_thread_that_iterates_gets_an_error_after_its_step(own):
    in_step, go_on = threading.Event(), threading.Event()
    calls = []

    def hold():
        calls.append(None)
        if len(calls) == 3:  # within the step of the second token
            in_step.set()
            assert go_on.wait(60)
        return False

    stream = own.stream(MESSAGES, OPTIONS, cancel=hold)
    thread, outcome = run_in_thread(lambda: list(stream))
    assert in_step.wait(60)
    closing, closed = run_in_thread(own.close)
    while stream._steps._ending is None:
        pass
    assert closed == []  # waits for the step
    go_on.set()
    thread.join(60)
    closing.join(60)
    assert closed == [None]
    assert "model was closed" in str(outcome[0])
    assert len(calls) == 3  # nothing was decoded after it


@pytest.mark.parametrize("kind", ["chat", "read", "batch"])
def test_closing_waits_for_an_answer_of_another_thread(own, kind):
    in_step, go_on = threading.Event(), threading.Event()

    def hold():
        in_step.set()
        assert go_on.wait(60)
        return False

    ask = {
        "chat": lambda: own.chat(MESSAGES, OPTIONS, cancel=hold),
        "read": lambda: own.stream(MESSAGES, OPTIONS, cancel=hold).read(),
        "batch": lambda: own.chat_batch([MESSAGES], OPTIONS, cancel=hold)[0],
    }[kind]
    thread, outcome = run_in_thread(ask)
    assert in_step.wait(60)
    queued, refused = run_in_thread(lambda: own.chat(MESSAGES, OPTIONS))
    closing, closed = run_in_thread(own.close)
    while not own._engine._is_closed:
        pass
    go_on.set()
    for one in (thread, queued, closing):
        one.join(60)
    assert outcome[0].finish_reason == "length"
    assert "the model is closed" in str(refused[0])
    assert closed == [None]


def test_reading_that_was_interrupted_gives_the_model_back(own):
    calls = []

    def interrupt():
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        own.chat(MESSAGES, OPTIONS, cancel=interrupt)
    assert own.chat(MESSAGES, OPTIONS).finish_reason == "length"


def test_an_interrupt_between_two_steps_gives_the_model_back(own, monkeypatch):
    stream = own.stream(MESSAGES, OPTIONS)
    next(stream)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(stream._steps), "__next__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream.read()
    monkeypatch.undo()
    assert own.chat(MESSAGES, OPTIONS).finish_reason == "length"


def test_closing_from_the_cancel_function_is_refused_and_harms_nothing(own):
    said = []

    def close():
        for what in (own.close, lambda: stream.close(), lambda: next(stream)):
            with pytest.raises(RuntimeError, match="cancel function"):
                what()
            said.append(what)
        return False

    stream = own.stream(MESSAGES, OPTIONS, cancel=close)
    assert len(stream.read().token_ids) == 24
    assert said
    assert own.chat(MESSAGES, OPTIONS).finish_reason == "length"


def test_another_thread_can_close_a_stream_that_is_read(own):
    in_step, go_on = threading.Event(), threading.Event()

    def hold():
        in_step.set()
        assert go_on.wait(60)
        return False

    stream = own.stream(MESSAGES, OPTIONS, cancel=hold)
    thread, outcome = run_in_thread(stream.read)
    assert in_step.wait(60)
    closing, closed = run_in_thread(stream.close)
    while stream._steps._ending is None:
        pass
    go_on.set()
    thread.join(60)
    closing.join(60)
    assert closed == [None]
    assert "closed before its end" in str(outcome[0])
    assert own.chat(MESSAGES, OPTIONS).finish_reason == "length"


def test_a_dropped_stream_is_no_obstacle_to_closing(own):
    stream = own.stream(MESSAGES, OPTIONS)
    next(stream)
    del stream
    gc.collect()
    own.close()
    own.close()
    with pytest.raises(ValueError, match="closed"):
        own.stream(MESSAGES, OPTIONS)


def test_a_model_whose_stream_is_dropped_with_it_is_freed(tiny):
    """The engine holds the stream weakly: no cycle that only the collector could end."""
    model = Model.load(tiny.bundle, num_threads=1)
    stream = model.stream(MESSAGES, OPTIONS)
    next(stream)
    turnstile = model._engine._turnstile
    gc.disable()
    try:
        del stream
        assert not turnstile._lock.locked()
    finally:
        gc.enable()
