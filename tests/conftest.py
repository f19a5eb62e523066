"""Tests run offline, on one thread, and leave no random state behind."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here may wait for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
