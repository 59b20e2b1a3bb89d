"""Against transformers' StopStringCriteria."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmedge.runtime.decode.stopping import StopTokens

VOCAB_SIZE = 320
STOPS = ["29", "2", "total", "</s>", "\n\n", "<|im_end|>", "é", ". ", "<|", "assistant\n2", "aa"]


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), stops=st.lists(st.sampled_from(STOPS), min_size=1, max_size=3, unique=True))
def test_an_answer_ends_at_the_token_where_that_of_transformers_does(
    tokenizer, reference_tokenizer, data, stops
):
    import torch
    from transformers import StopStringCriteria

    criteria = StopStringCriteria(reference_tokenizer, stops)
    useful = tokenizer.encode_text("".join(stops)) + tokenizer.encode_text("a 2.9\n")
    # Ids that pad the vocabulary stand for no text; transformers' criterion never ends at one
    known = [i for i in range(VOCAB_SIZE) if tokenizer.read_token_bytes(i, keep_special=True)]
    tokens = st.sampled_from(useful) | st.sampled_from(known)
    prompt = data.draw(st.lists(tokens, min_size=1, max_size=12))
    answer = data.draw(st.lists(tokens, min_size=1, max_size=12))
    tail = prompt[len(prompt) - min(len(prompt), StopTokens.count_tail(stops)) :]
    mine = StopTokens(stops, [tokenizer.read_token_bytes(t, keep_special=True) for t in tail])
    for end in range(1, len(answer) + 1):
        needed = criteria(torch.tensor([prompt + answer[:end]]), None)[0].item()
        got = mine.push(tokenizer.read_token_bytes(answer[end - 1], keep_special=True))
        assert got == needed, (prompt, answer[:end], stops)
