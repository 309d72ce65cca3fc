"""A page and routes that ask who is signed in, each in its own way."""

from fastapi import APIRouter, Request, WebSocket
from fastapi.responses import HTMLResponse
from space_runtime.http.access import public
from space_runtime.http.sign_in import CurrentUser, SpaceOwner, User, service_of

router = APIRouter()


@router.get("/board", response_class=HTMLResponse)
async def board(request: Request) -> str:
    """Greet everybody."""
    user = service_of(request).user_of(request)
    if user is None:
        return 'Hello stranger. <a href="/oauth/huggingface/login?next=/board">Sign in</a>'
    return f"""Hello {user.username}.
        <form method="post" action="/notes"><button>Add a note</button></form>
        <form method="post" action="/oauth/huggingface/logout?next=/board"><button>Sign out</button></form>"""


@router.get("/favicon.ico", status_code=204)
async def icon() -> None:
    """Have none."""


@router.get("/me")
async def me(user: CurrentUser) -> User:
    """Say who asks."""
    return user


@router.post("/notes")
async def add_note(user: CurrentUser) -> str:
    """Stand for a write of one's own."""
    return user.id


@router.post("/settings")
async def change_settings(owner: SpaceOwner) -> str:
    """Stand for what only the owner may do."""
    return owner.username


@router.websocket("/talk")
async def talk(websocket: WebSocket, user: CurrentUser) -> None:
    """Greet, and hang up."""
    await websocket.accept()
    await websocket.send_text(user.username)
    await websocket.close()


@router.post("/unmarked")
async def unmarked() -> str:
    """Say nothing of who may call it."""
    return "written"


@router.post("/public", **public)
async def open_to_all() -> str:
    """Let anybody write."""
    return "written"
