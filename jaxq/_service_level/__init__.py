"""Service levels: limits and penalties on what a plan holds, and what a policy keeps of them."""
