"""One short module a command: the only place that wires rooms together."""
