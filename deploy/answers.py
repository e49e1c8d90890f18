"""What an answer means that a dashboard has not given, or not given with what was asked for: the error for it.

Between a client and a head there may be a proxy, an ingress, a login page or another service, each with answers of its
own. Ray's own refusals are plain text.
"""

import html
import re
from urllib.parse import urljoin, urlsplit

import requests

from deploy.errors import ConnectError, DeniedError, ProtocolError, StrangerError
from pipeline.errors import PipelineError

NOT_RAY = "Check that this is the dashboard of Ray 2.55 or newer."
_AROUND = "Use an address that leads to the dashboard itself, such as that of a port-forward."
_WAIT = "Wait, or check the head's pod."


def is_missing(answer: requests.Response) -> bool:
    """Whether a dashboard says that it does not know the job. A 404 of a proxy says nothing about jobs."""
    return answer.status_code == 404 and "does not exist" in answer.text and not _is_page(answer)


def refusal(answer: requests.Response, address: str, path: str, with_token: bool) -> PipelineError | None:
    """The error for an answer; None for one that may be a dashboard's."""
    status = answer.status_code
    if 300 <= status < 400:
        return _redirect(answer, address, path)
    if status in (401, 403, 407):
        return _denied(answer, address, with_token)
    if status in (429, 502, 503, 504) or (status == 500 and answer.request.method == "GET"):
        return ConnectError(f"{address} answers {status}{_told(answer)}: the head is unavailable", _WAIT)
    if status == 500:
        return _not_started(answer, address)
    if status == 404:
        return _nothing_there(answer, address, path)
    return _other(answer, address, path) if status != 200 else _no_json(answer, address)


def _redirect(answer: requests.Response, address: str, path: str) -> PipelineError:
    location = urlsplit(urljoin(address + path, answer.headers.get("Location", "")))
    netloc = location.netloc.rpartition("@")[2]
    where = f"{location.scheme}://{netloc}{location.path}"  # what follows may hold a secret
    what = f"{address} redirects to {where} ({answer.status_code})"
    if where.endswith(path) and where != address + path:
        return StrangerError(what, f"Give --address {where.removesuffix(path)}, if you trust that host.")
    return StrangerError(what, f"If that is a login: no job can be submitted through one. {_AROUND}")


def _denied(answer: requests.Response, address: str, with_token: bool) -> PipelineError:
    status = answer.status_code
    if status == 407:
        return DeniedError(
            f"the proxy on the way to {address} asks for a login (407{_told(answer)})",
            "Write HTTP_PROXY or HTTPS_PROXY as http://USER:PASSWORD@HOST:PORT, or go around it with NO_PROXY.",
        )
    if "authentication token" not in answer.text:
        return DeniedError(
            f"{address} answers {status}{_told(answer)}, which a dashboard would say otherwise: it is a proxy or an "
            "ingress before it that refuses",
            f"Go around it (HTTP_PROXY, HTTPS_PROXY, NO_PROXY). {_AROUND}",
        )
    if not with_token:
        return DeniedError(
            f"{address} requires a token, and none was found",
            "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it.",
        )
    return DeniedError(
        f"{address} refused the token ({status})", "Set RAY_AUTH_TOKEN to this cluster's token: was it rotated?"
    )


def _not_started(answer: requests.Response, address: str) -> PipelineError:
    # The agent that starts jobs is unavailable: the head is starting or shutting down.
    if re.search(r"No available agent|aiohttp\.client_exceptions", answer.text):
        return ConnectError(f"{address} does not accept jobs now", "Wait, then retry.")
    return ProtocolError(f"{address} answers 500{_told(answer)}", NOT_RAY)


def _nothing_there(answer: requests.Response, address: str, path: str) -> PipelineError:
    parts = urlsplit(address)
    base = f"{parts.scheme}://{parts.netloc}"
    hint = f"Give --address {base}, if no proxy serves the dashboard below {parts.path}." if parts.path else NOT_RAY
    return StrangerError(f"the server at {address} is not a Ray dashboard: it has no {path} (404{_told(answer)})", hint)


def _other(answer: requests.Response, address: str, path: str) -> PipelineError:
    status = answer.status_code
    if status == 413:
        return ProtocolError(
            f"{address} does not take requests of {len(answer.request.body or b''):,} bytes (413{_told(answer)})",
            "Raise the limit of the proxy or ingress before the dashboard (nginx: proxy-body-size), or shorten the "
            "config.",
        )
    if status == 400 and re.search(r"HTTPS (port|server)", answer.text):
        return ProtocolError(f"{address} speaks https", f"Give --address {address.replace('http:', 'https:', 1)}.")
    return ProtocolError(f"{answer.request.method} {address}{path} answered {status}{_told(answer)}", NOT_RAY)


def _no_json(answer: requests.Response, address: str) -> PipelineError | None:
    if "json" in answer.headers.get("Content-Type", ""):
        return None
    if _is_page(answer):
        return StrangerError(f"{address} answers with a web page{_told(answer)}, as a login does", _AROUND)
    return StrangerError(f"the server at {address} is not a Ray dashboard", NOT_RAY)


def _is_page(answer: requests.Response) -> bool:
    return "html" in answer.headers.get("Content-Type", "") or answer.text.lstrip()[:1] == "<"


def _told(answer: requests.Response) -> str:
    """What an answer says: a page's title, or the end of a text, where a traceback has its error."""
    title = re.search(r"<title[^>]*>(.*?)</title>", answer.text, re.DOTALL | re.IGNORECASE)
    text = html.unescape(title[1]) if title else "" if _is_page(answer) else answer.text
    words = " ".join(text.split())[-200:]
    return f": '{words}'" if words else ""
