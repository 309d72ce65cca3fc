"""The middleware, the error handlers and the runtime's own routes."""
