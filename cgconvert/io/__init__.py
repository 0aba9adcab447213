"""Files and processes: bounded readers, atomic writes, worker pools, signals, progress."""
