"""The rule of every key of transformers' GenerationConfig."""

from __future__ import annotations

from typing import Any

from .rules import KeyRule, Treatment

SECTION = "generation_config.json"

_HONOURED = {
    "max_length": "the longest prompt and answer together, of requests that name no number",
    "max_new_tokens": "the longest answer of requests that name no number",
    "min_length": "no end token before prompt and answer have so many tokens",
    "min_new_tokens": "no end token before the answer has so many tokens",
    "stop_strings": "an answer ends with the token that completes one, and its text stays",
    "do_sample": "draws tokens instead of taking the likeliest",
    "temperature": "sampling",
    "top_k": "sampling; 50 where a checkpoint that samples names none",
    "top_p": "sampling",
    "min_p": "sampling",
    "top_h": "sampling",
    "typical_p": "sampling",
    "epsilon_cutoff": "sampling",
    "eta_cutoff": "sampling",
    "repetition_penalty": "changes the scores of tokens of prompt and answer",
    "encoder_repetition_penalty": "changes the scores of the prompt's tokens",
    "no_repeat_ngram_size": "forbids sequences of tokens to occur twice",
    "encoder_no_repeat_ngram_size": "forbids sequences of the prompt's tokens in the answer",
    "bad_words_ids": "forbids sequences of tokens",
    "sequence_bias": "changes the scores of the last tokens of sequences",
    "forced_eos_token_id": "the only tokens allowed at the limit of the answer",
    "exponential_decay_length_penalty": "raises the end tokens' scores in long answers",
    "suppress_tokens": "forbids tokens",
    "begin_suppress_tokens": "forbids tokens as the first of an answer",
    "remove_invalid_values": "replaces NaN and infinity in the scores",
    "eos_token_id": "ends answers; read with the token ids of config.json",
    "pad_token_id": "fills up shorter prompts of a batch; read with the token ids of config.json",
}
_BEAMS = "beam search is not supported, only one answer that is written token by token"
_ASSISTED = "assisted generation is not supported"
_HUB_CODE = "transformers runs code from the hub for it, which this runtime doesn't have"
# key -> reason and the values that ask for nothing
_REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "num_beams": (_BEAMS, (1,)),
    "num_return_sequences": ("only one answer to a request is supported", (1,)),
    "constraints": (_HUB_CODE, ()),
    "force_words_ids": (_HUB_CODE, ()),
    "penalty_alpha": (f"contrastive search: {_HUB_CODE}", (0, 0.0)),
    "dola_layers": (f"decoding by contrasting layers: {_HUB_CODE}", ()),
    "guidance_scale": ("guidance needs a second run of the model for every token", (1, 1.0)),
    "watermarking_config": ("watermarks are not supported", ()),
    "max_time": ("answers would depend on the speed of the machine; use max_new_tokens", ()),
    "token_healing": ("it changes the prompt's last tokens, which is not supported", (False,)),
    "use_mtp": ("Qwen2-VL has no weights for multi-token prediction", (False,)),
    "assistant_early_exit": (_ASSISTED, ()),
    "is_assistant": (_ASSISTED, (False,)),
    "speculation_type": (_ASSISTED, ()),
    "cache_implementation": (
        "needed one of transformers' caches that keep keys and values exactly",
        (
            *("dynamic", "paged", "static", "offloaded", "offloaded_static", "hybrid"),
            *("sliding_window", "hybrid_chunked", "offloaded_hybrid", "offloaded_hybrid_chunked"),
        ),
    ),
    "early_stopping": ("needed true, false or 'never', of beam search", (True, False, "never")),
    "compile_config": ("transformers refuses it in a file", ()),
}
_ARGUMENTS = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)
_REFUSED |= {
    name: ("transformers refuses it here: it is an argument of generate()", ())
    for name in _ARGUMENTS
}
_OF_BEAMS = "of beam search alone, which is refused"
_OF_ASSISTANTS = "of assisted generation alone, which a file can't turn on"
_OF_OUTPUT = "what transformers returns beside the tokens"
_OF_SPEED = "how transformers computes, not what"
_NO_EFFECT = {
    "length_penalty": _OF_BEAMS,
    "num_beam_groups": _OF_BEAMS,
    "diversity_penalty": _OF_BEAMS,
    "low_memory": "of contrastive search alone, which is refused",
    "renormalize_logits": "shifts all scores alike, as the last step: no token gets likelier",
    "forced_bos_token_id": "of the second token of a sequence; every prompt is longer",
    "bos_token_id": "no prompt begins with it unless the chat template writes it",
    "decoder_start_token_id": "of models with an encoder for text",
    "prompt_lookup_num_tokens": "guesses tokens from the prompt, which the model then checks",
    "max_matching_ngram_size": _OF_ASSISTANTS,
    "num_assistant_tokens": _OF_ASSISTANTS,
    "num_assistant_tokens_schedule": _OF_ASSISTANTS,
    "assistant_confidence_threshold": _OF_ASSISTANTS,
    "assistant_lookbehind": _OF_ASSISTANTS,
    "target_lookbehind": _OF_ASSISTANTS,
    "assistant_ensemble_weight": _OF_ASSISTANTS,
    "output_attentions": _OF_OUTPUT,
    "output_hidden_states": _OF_OUTPUT,
    "output_scores": _OF_OUTPUT,
    "output_logits": _OF_OUTPUT,
    "return_dict_in_generate": _OF_OUTPUT,
    "use_cache": _OF_SPEED,
    "cache_config": "of quantized caches alone, which are refused",
    "max_cache_len": _OF_SPEED,
    "prefill_chunk_size": _OF_SPEED,
    "disable_compile": _OF_SPEED,
    "continuous_batching_config": _OF_SPEED,
    "transformers_version": "by which version the file was written",
    "_from_model_config": "how the file was made",
    "_commit_hash": "how the file was made",
}


def _make(key: str, treatment: Treatment, reason: str, neutral: tuple[Any, ...] = ()) -> KeyRule:
    return KeyRule(SECTION, key, treatment, reason, neutral)


RULES: tuple[KeyRule, ...] = (
    *(_make(key, "honoured", reason) for key, reason in _HONOURED.items()),
    *(_make(key, "refused", *rest) for key, rest in _REFUSED.items()),
    *(_make(key, "no effect", reason) for key, reason in _NO_EFFECT.items()),
)
