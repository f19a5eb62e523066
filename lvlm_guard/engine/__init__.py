"""The decoding engine: N branches inside one call of the model, so that generate() stays transformers' own.

A guarded model is the same object with one more subclass on top. transformers' `generate()` calls it
once a step with B rows; the engine runs the branches of the method (the picture as it is, the masked
picture, ...), assembles their logits and hands back B rows. Read in this order:

What methods are made of can be imported from here. `knobs` says how their fields are checked.

- `assembly`: the algebra, on tensors alone. The server imports it too.
- `method`: what a method is: its branches, when they matter, how their logits are assembled.
- `call`: what one `generate()` call is about: its questions and image tensors.
- `pictures`: what a guarded processor hands to generate(), and image tensors picture by picture.
- `rows`: N branches as blocks of rows of one forward and one cache (`batched`).
- `steering`: layers read or edited inside a model call; `attention`: their attention.
- `hiding`: a branch that reads the model's own cache without some of the picture.
- `reading`: how the plain model reads rows for another branch, only when it matters: it lags behind, and then catches
  up (`lazy`). `auto` begins so, then stacks.
- `session`: one `generate()` call, step by step.
- `trace`: what the guard did, token by token.
- `guarded`, on `subclass`: the dynamic subclass.
"""

from lvlm_guard.engine.assembly import DEPTH, complement, contrast, cut, divergence, plausible
from lvlm_guard.engine.call import Call, replaced
from lvlm_guard.engine.knobs import check_weight, choice, knob, limited, plausibility, weight
from lvlm_guard.engine.method import (
    Branch,
    Complement,
    Constrained,
    Contrast,
    Method,
    Plausible,
    Single,
    Steering,
    Step,
)
from lvlm_guard.engine.steering import Pass, check_span, edited

__all__ = [
    "DEPTH", "Branch", "Call", "Complement", "Constrained", "Contrast", "Method", "Pass", "Plausible", "Single",
    "Steering", "Step", "check_span", "check_weight", "choice", "complement", "contrast", "cut", "divergence", "edited",
    "knob", "limited", "plausibility", "plausible", "replaced", "weight",
]  # fmt: skip
