"""The witness: a second reading of the source, by transformers, to compare artefacts with."""
