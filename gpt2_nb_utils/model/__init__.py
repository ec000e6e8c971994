"""The network of notebook 02: GPT-2, its initialisation, its KV cache and sampling from it."""
