"""What the twin takes from inside vLLM: all of it; nothing else of `serve/engine` names vLLM.

`SIGNATURES` are the parameters that it passes, and those of what it overrides, as in `serve.logits`; a test holds the
installed vLLM against them in seconds, so that an upgrade begins with what has moved. Beside these it relies on

    `projection_dim` of a text configuration, by which runners size their embedding buffer
    `compilation_config.static_forward_context`, one object an engine, that holds every layer with a cache
    `_processor_factory` of a model class: its processor, what it knows of the model, and its dummy inputs
"""

from __future__ import annotations

from vllm import ModelRegistry as ModelRegistry
from vllm.model_executor.layers.attention import Attention as Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase as AttentionLayerBase
from vllm.model_executor.models.config import MODELS_CONFIG_MAP as MODELS_CONFIG_MAP
from vllm.model_executor.models.config import VerifyAndUpdateConfig as VerifyAndUpdateConfig
from vllm.multimodal import MULTIMODAL_REGISTRY as MULTIMODAL_REGISTRY
from vllm.multimodal.processing import BaseMultiModalProcessor as BaseMultiModalProcessor
from vllm.v1.attention.backend import AttentionType as AttentionType

SIGNATURES = {
    (Attention, "__init__"): "num_heads head_size scale prefix attn_type kv_sharing_target_layer_name",
    (Attention, "forward"): "query key value",
    (BaseMultiModalProcessor, "get_dummy_inputs"): "seq_len mm_counts mm_options",
    (BaseMultiModalProcessor, "_apply_hf_processor_main"): "mm_items hf_kwargs",
    (BaseMultiModalProcessor, "_get_mm_fields_config"): "hf_inputs hf_processor_mm_kwargs",
    (BaseMultiModalProcessor, "_get_prompt_updates"): "mm_items hf_processor_mm_kwargs out_mm_kwargs",
    (BaseMultiModalProcessor, "_get_mm_hashes"): "inputs",
    (BaseMultiModalProcessor, "_get_cache_missing_processor_kwargs"): "inputs mm_is_cached",
    (type(MULTIMODAL_REGISTRY), "register_processor"): "processor info dummy_inputs",
    (type(ModelRegistry), "register_model"): "model_arch model_cls",
    (VerifyAndUpdateConfig, "verify_and_update_config"): "vllm_config",
}
"""As in `serve.logits`."""

MODEL = {
    "embed_multimodal": "kwargs",
    "embed_input_ids": "input_ids multimodal_embeddings is_multimodal",
    "forward": "input_ids positions intermediate_tensors inputs_embeds",
    "compute_logits": "hidden_states",
}
"""The same for every model class that has a twin."""
