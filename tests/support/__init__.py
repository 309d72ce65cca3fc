"""What the tests are built on: baking projects, booting them, a PostgreSQL to break, what a machine has."""
