"""What a request's path and route are called, wherever the application is served."""

from starlette.routing import Mount
from starlette.types import Scope


def path_of(scope: Scope) -> str:
    """Return the path as routes know it, whether or not a proxy removes what it puts before it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def name_of_route(scope: Scope) -> str:
    """Return the template of the path that was routed, such as `/items/{item_id}`, or "none".

    It is for the access log and for metrics, so it never holds a value. That of a mounted
    application begins with the path of its mount.
    """
    route = scope.get("route")
    # A route knows nothing of the prefix that include_router() was given.
    context = scope.get("fastapi", {}).get("effective_route_context")
    if route is not None and getattr(context, "original_route", None) is route:
        route = context
    path = "" if isinstance(route, Mount) else getattr(route, "path", "")
    return f"{_mount(scope)}{path}" or "none"


def _mount(scope: Scope) -> str:
    # A mount adds its path to root_path, and keeps what that was before as app_root_path.
    if "app_root_path" not in scope:
        return ""
    mount: str = scope["root_path"].removeprefix(scope["app_root_path"])
    if not scope.get("path_params"):
        return mount
    names = {str(value): "{" + name + "}" for name, value in scope["path_params"].items()}
    return "/".join(names.get(part, part) for part in mount.split("/"))
