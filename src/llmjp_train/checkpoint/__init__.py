"""Checkpoints that do not depend on the layout: fragments under logical names, whole or not at all."""
