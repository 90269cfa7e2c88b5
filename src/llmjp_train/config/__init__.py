"""Typed configuration: one dataclass a group, composed by Hydra, checked before anything heavy is imported."""
