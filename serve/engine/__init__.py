"""The vLLM plug-in: one request, two readings of its picture, two KV caches.

    arguments   what a request carries to the engine, written by the front alone
    plugin      what vLLM is told: the families that have a twin
    insides     all that is taken from inside vLLM, with its signatures
    families    the twins of vLLM's model classes
    views       the processor: a picture and its second view
    branches    the model: every scheduled token runs twice
    twin        attention layers with a second KV cache
    handover    the second branch's logits, from the model to the processor of logits
    guards      the methods, row by row
    refuse      engines in which a guard would be wrong or silently absent

To vLLM there is one sequence a request, so that scheduling, chunked prefill, prefix caching, preemption,
streaming and cancellation act on both branches at once.
"""
