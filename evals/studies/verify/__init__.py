"""How well verifiers tell objects that are in a picture from hallucinated ones, on the plain model's own descriptions.

- `mentions`: what the model says, and which objects it names.
- `judges`: matchers, and published detectors on an untuned CLIP, asked about each mention.
- `asking`, `run`: all of it on the spine of all runs, one folder a verifier; `rows`: how well each does.
- `report`: the figures in words and drawings.
"""
