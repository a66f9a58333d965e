"""The chat page at `/`, one static file without outside assets."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, PlainTextResponse, Response

PAGE = Path(__file__).parent / "static" / "index.html"

# Whatever a model writes, the page loads nothing from elsewhere, and no other page frames it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' data:; frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_WITHOUT_PAGE = "AdaFuse serves OpenAI's interface at /v1.\n"


def router() -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    def page() -> Response:
        """The page, if this installation has one."""
        if not PAGE.is_file():
            return PlainTextResponse(_WITHOUT_PAGE)
        return FileResponse(PAGE, media_type="text/html", headers=_HEADERS)

    return routes
