"""Any model comes through an outage: random tables and operations, and what PostgreSQL must hold in the end.

schemas.py   what tables there are, and how they are written for SQLAlchemy
kinds.py     the types of their columns, with values that are easily spoilt
stories.py   what happens to them: operations before, during and after outages
meaning.py   what PostgreSQL must hold then, in plain Python, without a look at how rows are moved
world.py     runs a story through the application and says where the two differ
"""
