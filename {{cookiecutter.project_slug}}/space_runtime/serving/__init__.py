"""Where requests meet the database: limits, worker pools, transactions."""
