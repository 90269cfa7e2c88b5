"""What leaves a run: Hugging Face folders with a parity certificate, text, reports and cards."""
