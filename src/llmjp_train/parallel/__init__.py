"""The layout: how ranks share a model and a batch, and which part of which tensor a rank owns."""
