"""genai_config.json, by which onnxruntime-genai runs the folder.

Keys: docs of onnxruntime-genai, "Configuration reference" (src/config.h).
"""

from __future__ import annotations

from typing import Any

from cgconvert.model.decoder import Geometry

__all__ = ["genai_config"]


def genai_config(
    geometry: Geometry, end_of_text: int, graph: str, target: str = "cpu"
) -> dict[str, Any]:
    """Create the configuration for the graph at `graph`, a path relative to the folder.

    `end_of_text` is the id of that token. Past and present keys and values share one buffer of
    `context_length` positions, so that a step copies nothing.
    """
    g = geometry
    providers: list[dict[str, Any]] = [{"cuda": {}}] if target == "cuda" else []
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": providers},
        "filename": graph,
        "head_size": g.head_dim,
        "hidden_size": g.n_embd,
        "num_attention_heads": g.n_head,
        "num_hidden_layers": g.n_layer,
        "num_key_value_heads": g.n_head,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
            "pad_token_id": end_of_text,
            "context_length": g.n_positions,
            "vocab_size": g.vocab_size,
            "decoder": decoder,
        },
        "search": {
            "do_sample": False,
            "max_length": g.n_positions,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
