"""This project, and a route for which the database has to count."""

from sqlalchemy import text
from sqlalchemy.orm import Session
from src.database.session import DatabaseDep
from src.main import create_app

COUNT = text(
    "WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 500000) SELECT max(n) FROM up"
)
app = create_app()


def count(session: Session) -> int:
    """Take the database's processor for some tenths of a second."""
    return session.execute(COUNT).scalar_one()


@app.get("/slow")
async def slow(database: DatabaseDep) -> int:
    """Count."""
    return await database.read(count)
