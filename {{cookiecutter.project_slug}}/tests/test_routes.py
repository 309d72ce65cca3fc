"""Who may write without the API token: a new line here should be noticed by whoever reviews it."""

from space_runtime.http.routes import routes_of
from src.main import create_app

OPEN: dict[str, str] = {
    # as `make routes` prints them, for example "POST /predict": "anybody, limited",
}


def test_only_these_routes_can_be_written_to_without_the_api_token() -> None:
    routes = routes_of(create_app())
    is_open = {f"{route.methods} {route.path}": route.who for route in routes if route.is_open}
    assert is_open == OPEN, "\n".join(["all routes:", *map(str, routes)])
