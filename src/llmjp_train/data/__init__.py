"""Catalogue, text to token files, token files to a mixture, a mixture to batches."""
