"""What the databases remember of rows: where they come from, and what became of them."""
