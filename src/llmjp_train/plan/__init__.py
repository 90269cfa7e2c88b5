"""Memory, time and cost of a layout before anyone pays for it. Loads no torch."""
