"""From a plan to files: streamed, journaled, hashed, committed."""
