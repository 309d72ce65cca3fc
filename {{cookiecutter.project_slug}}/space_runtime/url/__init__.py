"""The steps that turn DATABASE_URL, as people paste it, into a Resolution."""
