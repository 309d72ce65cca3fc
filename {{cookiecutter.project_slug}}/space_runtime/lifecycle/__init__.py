"""Which database serves, and what the health report says about it."""
