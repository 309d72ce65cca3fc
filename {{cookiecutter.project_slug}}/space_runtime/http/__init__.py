"""What every request meets, and the routes that are not the owner's."""
