"""Prometheus metrics, and the route that shows them."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

router = APIRouter(tags=["metrics"])

REQUESTS = Counter("http_requests", "Requests answered.", ["method", "route", "status"])
DURATION = Histogram("http_request_duration_seconds", "Time to answer.", ["method", "route"])
IN_PROGRESS = Gauge("http_requests_in_progress", "Requests being answered.")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics() -> Response:
    """Return all metrics in Prometheus text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
