"""Looking inside a trained adapter: which expert is chosen when, and how much of that its input explains."""
