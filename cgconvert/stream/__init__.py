"""Plan, execute, commit: how anything gets written."""
