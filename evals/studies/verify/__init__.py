"""How well verifiers tell the objects that a model names rightly from those it invents: `lvlm-guard eval verify`.

The plain model describes pictures, each object that it names is true or hallucinated by the ground truth, and every
verifier is asked about the same mentions in the same run (adapters.md 4.3 and 4.6).

- `describing`: the descriptions, with the probability of each token.
- `mentions`: the objects that a description names, and which of them are there.
- `judges`: matchers as verifiers, and the published detectors that stand on an untuned CLIP.
- `kept`: what was said and judged, on disk as it comes.
- `figures`: AUROC, calibration and marks over drawn pictures and trainings; `rows`: of all verifiers.
- `told`, `page`: the report in words and as a page.
- `run`: all of it, resumable.
"""
