"""A route that does nothing, inside all that this project puts around a route."""

from src.main import create_app

app = create_app()


@app.get("/trivial")
async def trivial() -> dict[str, str]:
    """Do nothing."""
    return {"status": "alive"}


# first, so that looking for it costs nothing
app.router.routes.insert(0, app.router.routes.pop())
