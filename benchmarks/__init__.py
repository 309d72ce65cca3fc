"""What this template costs, measured beside others in the same run."""
