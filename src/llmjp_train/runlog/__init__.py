"""The run record: a run directory in documented, versioned schemas, with one writer at a time."""
