"""The same route with nothing around it: no request id, no headers, no metrics, no log."""

from trivial import app

app.user_middleware.clear()
