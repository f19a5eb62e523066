"""Matchers that stand on a CLIP: `clip` as it is, `dual-prompt` tuned for retrieval, `ranker` tuned to order and count.

Each is one file and a subclass of `lvlm_guard.matching.Matcher`, so that AGLA cuts its view by it, `vote` asks it, and
`lvlm_guard.verify` judges by it. A name alone stands for the adapter that a model's config names, and for the embedded
model for the adapters of this package; else a folder is given: `methods.AGLA(matcher="my-adapter")`.

- `held`: where the adapter of a name lies, what a question claims, one caller at a time.
- `clip`, `ranker`: the matchers.
"""
