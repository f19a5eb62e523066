"""What the tiny random models of `any_families.py` are made of: their tokenizer, chat templates, and small settings."""

from __future__ import annotations

from typing import Any

import tiny
import transformers as T

BASE = ["<unk>", "<s>", "</s>", "<pad>"]
EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = EYES | {"image_size": 32, "patch_size": 8}
SIDES = {"height": 32, "width": 32}
GRID = [[32, 64], [64, 32], [64, 64]]
AREA = {"shortest_edge": 16 * 16 * 4, "longest_edge": 16 * 16 * 16}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
HALF_MROPE = {"rope_type": "default", "mrope_section": [1, 2, 1], "rope_theta": 1e4, "partial_rotary_factor": 0.5}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
LINEAR = {
    "num_hidden_layers": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "rope_parameters": HALF_MROPE,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
}  # fmt: skip
SLIDING = {
    "num_hidden_layers": 4, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "v_head_dim": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
          "num_key_value_heads": 4}  # fmt: skip
"""Multi-head latent attention."""
ROUTED = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
INDEXED = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 2}
CHATML = ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n")
HEADERS = (
    "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n",
)  # fmt: skip
COHERE = (
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
)  # fmt: skip
VICUNA = ("USER: ", " ", "ASSISTANT: ")
QWEN3 = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
         "num_position_embeddings": 64}  # fmt: skip
QWEN2 = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
         "window_size": 28, "fullatt_block_indexes": [1]}  # fmt: skip


def chat(user: str, end: str, assistant: str, picture: str, start: str = "") -> str:
    """A chat template whose every turn is `user` or `assistant`, its content, `end`."""
    return (
        f"{{{{ {start!r} }}}}{{% for m in messages %}}{{{{ {user!r} if m['role'] == 'user' else {assistant!r} }}}}"
        f"{{% for c in m['content'] %}}{{{{ {picture!r} if c['type'] == 'image' else c['text'] }}}}{{% endfor %}}"
        f"{{{{ {end!r} }}}}{{% endfor %}}{{{{ {assistant!r} if add_generation_prompt else '' }}}}"
    )


def words(*specials: str, **named: str) -> Any:
    """A byte-level tokenizer whose first special token has the id 4; `named` are its attributes."""
    marks = [mark for turn in (CHATML, HEADERS, COHERE) for mark in _marks("".join(turn))]
    found = tiny.tokenizer([*BASE, *dict.fromkeys([*specials, *named.values(), *marks])], **named)
    found.eos_token = "</s>"
    return found


def _marks(text: str) -> list[str]:
    return [part + ">" for part in text.replace("\n", "").split(">") if "<" in part]


def text(vocab: Any, **more: Any) -> dict[str, Any]:
    """The settings of a small language model."""
    return {
        "vocab_size": len(vocab), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2,
    } | more  # fmt: skip


def siglip(**more: Any) -> Any:
    """The settings of a small SigLIP."""
    return T.SiglipVisionConfig(**SQUARE | more, vision_use_head=False)
