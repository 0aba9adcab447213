"""A verification as text, JSON, JUnit XML and HTML."""
