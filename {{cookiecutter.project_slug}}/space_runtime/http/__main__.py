"""Print every route and who may call it: `python -m space_runtime.http src.main:app`."""

import importlib
import sys

from space_runtime.http.routes import TOKEN, routes_of


def main(application: str) -> None:
    """Print the table, and what its words mean."""
    sys.path.insert(0, "")
    module, _, name = application.partition(":")
    app = getattr(importlib.import_module(module), name)
    for line in routes_of(app):
        print(line)
    limit = app.state.runtime.settings.public_limit
    print(
        f"\n{TOKEN}: with API_TOKEN's value, in the header X-API-Token. While API_TOKEN is not set,"
        " everybody on your machine and nobody on a Space."
        "\nits own check: that of the route alone decides, about right and wrong credentials."
        f"\nlimited: {limit} for each client (PUBLIC_LIMIT)."
    )


if __name__ == "__main__":
    main(sys.argv[1])
