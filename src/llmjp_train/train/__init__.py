"""The training loop and what it is made of: schedule, optimizer groups, stops, hooks."""
