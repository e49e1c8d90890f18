"""The way to a dashboard: its address, and the proxy and certificates that the environment gives for it.

Two clients go there, `requests` and, for the log, `websocket`. Both take `requests`' reading of HTTP_PROXY,
HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE, so that where one of them gets through, the other does.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import requests

from pipeline.errors import ConfigError

BUNDLE = "REQUESTS_CA_BUNDLE"


def dashboard_address(text: str) -> str:
    """The address without a slash at its end. ConfigError if it is none, with the one that was meant if that is plain.

    A path is kept: a proxy may serve the dashboard below one.
    """
    parts = _split(text)
    if parts is not None and (parts.username or parts.password):
        raise ConfigError("--address contains a user or password", "Remove it; put the token into RAY_AUTH_TOKEN.")
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{text} is not a dashboard address", f"Give --address {_meant(text, parts)}.")
    path, api, _ = f"{parts.path}/".partition("/api/")
    path = path.rstrip("/")
    if parts.query or parts.fragment or api:
        raise ConfigError(
            f"{text} is not a dashboard's address but that of a page in it",
            f"Give --address {parts.scheme}://{parts.netloc}{path}.",
        )
    return f"{parts.scheme}://{parts.netloc}{path}"


def _split(text: str) -> SplitResult | None:
    """The address's parts; None if no address can be read so."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    return None if re.search(r"\s", text) else parts


def _meant(text: str, parts: SplitResult | None) -> str:
    if parts is not None and parts.scheme == "ray" and parts.hostname:  # the port of Ray's client, mostly 10001
        return f"http://{parts.hostname}:8265"
    if re.fullmatch(r"[A-Za-z0-9.-]+:\d{1,5}", text):
        return f"http://{text}"
    return "http://HOST:8265, or https://HOST"


def websocket_options(url: str) -> dict[str, Any]:
    """The options of `websocket.create_connection` for the way that `requests` would take to this http(s) address."""
    way = requests.Session().merge_environment_settings(url, {}, None, None, None)
    bundle = str(way["verify"]) if isinstance(way["verify"], str) else requests.utils.DEFAULT_CA_BUNDLE_PATH
    options: dict[str, Any] = {"sslopt": {"ca_cert_path" if Path(bundle).is_dir() else "ca_certs": bundle}}
    proxy = requests.utils.select_proxy(url, way["proxies"])
    if not proxy:  # unless a proxy is named, if only to avoid it, the client reads the environment in its own way
        return {**options, "http_proxy_host": "none", "http_proxy_port": 1, "http_no_proxy": ["*"]}
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    options |= {"http_proxy_host": parts.hostname, "http_proxy_port": parts.port or 80, "proxy_type": parts.scheme}
    options["http_no_proxy"] = [""]  # an empty list would be filled from the environment
    if parts.username:
        options["http_proxy_auth"] = (unquote(parts.username), unquote(parts.password or ""))
    return options
