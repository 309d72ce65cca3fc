"""The resolver's small steps, one file each, in the order in which the resolver takes them."""
