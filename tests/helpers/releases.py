"""What tests of releases plant and look for."""

SECRET = "hf_abcdefghijklmnopqrstuvwx"
"""Has the form of a token; a note of the released run holds it."""
