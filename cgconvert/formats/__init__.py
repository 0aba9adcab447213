"""Writers: each makes a plan for one format."""
