"""What is written down: recipe, spec, manifest, stage record, thresholds, the table of GPUs."""
