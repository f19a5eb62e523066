"""Who begins a prompt: the chat template or the tokenizer.

Some templates write the first token (<s>), others leave it to the tokenizer, LLaVA-1.5's among them. transformers looks
which; vLLM takes every chat's template to write it, so that such a model would be served without the token that it
was trained with. The front says in each request what transformers would have found.
"""

from __future__ import annotations

from typing import Any


def special_tokens(processor: Any, template: str | None = None) -> bool:
    """Return whether the tokenizer has to add its special tokens to what the chat template writes.

    The rule of transformers' `ProcessorMixin.apply_chat_template`.

    Args:
        processor: of the model, or its tokenizer.
        template: chat template in Jinja; None: the model's own.

    Raises:
        ValueError: it has no chat template.
    """
    talk = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    chosen = {} if template is None else {"chat_template": template}
    text = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True, **chosen)
    bos = getattr(processor, "tokenizer", processor).bos_token
    return not (bos and text.startswith(bos))
