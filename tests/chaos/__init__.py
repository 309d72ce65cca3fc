"""The fault matrix: every fault at every moment, with a real server under real requests."""
