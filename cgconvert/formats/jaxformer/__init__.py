"""Training checkpoints of salesforce/jaxformer, which are only read."""
