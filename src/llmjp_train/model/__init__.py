"""The network in plain torch, its initial values and its Hugging Face mapping; knows nothing of ranks."""
