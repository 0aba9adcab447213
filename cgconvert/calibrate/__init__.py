"""Models fitted to a text: what is asked for, types under a budget, the plan that is computed."""
