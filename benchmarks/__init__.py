"""Side by side with peers, one command each: `python -m benchmarks [NAME]`. Figures are ratios within one run."""
