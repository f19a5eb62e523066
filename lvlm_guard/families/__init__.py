"""Model families: what is particular to one is asked of its own processor, chat template and generate().

Read `family.py` first: one class for them all. `processor.py` makes inputs that know their pictures, `question.py`
finds what they ask. `lvlm_guard.proving` tries a model before it is guarded, so that a family is proven or refused.
"""

from lvlm_guard.registry import Registry

_BLIP = "lvlm_guard.families.blip:decoding_class"
REGISTRY = Registry("family", "lvlm_guard.families", {"instructblip": _BLIP, "blip-2": _BLIP})
"""By model type, what makes of a model's class the one that it decodes by while it is guarded.

A type needs one where its generate() does not call the model itself at every step, since the branches run inside that
call. The subclass's generate() must give the tokens that the model's own gives; `unguard` and `guard=False` go back to
the model's own class.
"""
