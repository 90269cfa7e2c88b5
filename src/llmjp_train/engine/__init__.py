"""The only room that imports DeepSpeed: an optimizer step, log-probabilities, and views of the state."""
