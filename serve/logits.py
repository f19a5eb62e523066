"""All that guards which need no twin take from vLLM: its interface of logits processors, for both model runners.

`SIGNATURES` are the parameters that are passed or taken; a test holds the installed release against them.
"""

from __future__ import annotations

from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1Processor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2Processor

__all__ = ["SIGNATURES", "V1Processor", "V2Processor", "process_dict_updates"]

SIGNATURES = {
    (V1Processor, "__init__"): "vllm_config device is_pin_memory",
    (V1Processor, "update_state"): "batch_update",
    (V1Processor, "apply"): "logits",
    (V1Processor, "is_argmax_invariant"): "",
    (V1Processor, "validate_params"): "sampling_params",
    (V2Processor, "__init__"): "vllm_config req_states",
    (V2Processor, "add_request"): "req_idx sampling_params",
    (V2Processor, "apply"): "logits ctx",
}
"""Class and method, and the parameters that must be there, in this order; others may stand between them."""
