"""How requests use the database: limits, worker pools, transactions."""
