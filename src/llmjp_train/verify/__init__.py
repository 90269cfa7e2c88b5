"""Does a layout compute what one process computes? Measured, against bounds that are derived."""
