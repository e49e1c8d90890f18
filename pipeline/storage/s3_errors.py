"""One-line messages with hints for S3 errors, and which errors are transient. `s3.py` does the retries."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from pipeline.errors import StorageError

# Codes of transient errors, in addition to the HTTP statuses below.
_TRANSIENT = {
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "IncompleteBody",
    "OperationAborted",
    "ConditionalRequestConflict",  # a concurrent write: the retry evaluates the condition again
    "NoSuchUpload",  # completion was repeated after a lost answer: restart the upload
}
_TRANSIENT_STATUS = {429, 500, 502, 503, 504}

# code -> (problem, hint)
_LOGIN = "Log in again (`aws sso login`), or renew AWS_SESSION_TOKEN."
_PERMIT = (
    "Grant s3:ListBucket on the bucket {bucket}, and s3:GetObject, s3:PutObject and s3:DeleteObject below the prefix."
)
_MESSAGES = {
    "NoSuchBucket": ("NoSuchBucket, {endpoint} has no bucket '{bucket}'", "Create the bucket, or correct the URI."),
    "AccessDenied": ("permission denied for these credentials", _PERMIT),
    "InvalidAccessKeyId": (
        "{endpoint} does not know this access key",
        "Check AWS_ACCESS_KEY_ID or AWS_PROFILE, and that AWS_ENDPOINT_URL is the server they belong to.",
    ),
    "SignatureDoesNotMatch": (
        "the secret key does not match the access key",
        "Check AWS_SECRET_ACCESS_KEY; if it is right, a proxy alters the requests.",
    ),
    "ExpiredToken": ("the credentials have expired", _LOGIN),
    "ExpiredTokenException": ("the credentials have expired", _LOGIN),
    "TokenRefreshRequired": ("the credentials have expired", _LOGIN),
    "InvalidToken": (
        "the session token does not match the access key",
        "Unset AWS_SESSION_TOKEN, or set all three variables from the same login.",
    ),
    "RequestTimeTooSkewed": ("this machine's clock {skew}", "Set the clock (NTP), then run again."),
    "RequestExpired": ("this machine's clock {skew}", "Set the clock (NTP), then run again."),
    "PermanentRedirect": ("the bucket is in another region{region}", "Set AWS_REGION to that region."),
    "AuthorizationHeaderMalformed": (
        "the bucket is in another region{region}",
        "Set AWS_REGION to that region.",
    ),
    "IllegalLocationConstraintException": (
        "the bucket is in another region{region}",
        "Set AWS_REGION to that region.",
    ),
    "QuotaExceeded": (
        "the quota is exceeded",
        "Free some space (see `python -m pipeline artifact gc`), or raise it.",
    ),
    "XAmzContentSHA256Mismatch": (
        "the server does not know the checksums that S3's clients send since 2025",
        "Set AWS_REQUEST_CHECKSUM_CALCULATION=when_required (in the chart: s3.env).",
    ),
    "PreconditionFailed": ("the object changed while it was read", "Run again."),
}
_NOT_S3 = (
    "the server at {endpoint} is not an S3 server ({detail})",
    "Check AWS_ENDPOINT_URL: the address, the port, and http or https.",
)


def error_code(error: BaseException) -> str:
    """S3's error code, or the HTTP status if the answer has none; "" for errors that are not from the server."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return ""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return str(error.response.get("Error", {}).get("Code") or status)


def is_s3_error(error: BaseException) -> bool:
    """Whether the error comes from boto3, botocore or urllib3."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    kinds = (ClientError, BotoCoreError, Boto3Error, ResponseParserError, HTTPError)
    return isinstance(error, kinds) or _is_invalid_endpoint(error)


def _is_invalid_endpoint(error: BaseException) -> bool:
    return isinstance(error, ValueError) and str(error).startswith("Invalid endpoint")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    import botocore.exceptions as core
    from boto3.exceptions import RetriesExceededError
    from urllib3.exceptions import HTTPError

    if isinstance(error, core.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status in _TRANSIENT_STATUS or error_code(error) in _TRANSIENT
    http = (
        core.HTTPClientError,
        core.ConnectionError,
        core.IncompleteReadError,
        core.FlexibleChecksumError,
        HTTPError,
    )
    if "Invalid header value" in str(error):  # raised before anything is sent
        return False
    # RetriesExceededError: a download has broken off repeatedly.
    return isinstance(error, (*http, RetriesExceededError)) and not isinstance(error, core.SSLError)


def is_bare_status(error: BaseException) -> bool:
    """Whether the answer is an HTTP status without an S3 error code, and not a transient one."""
    return error_code(error).isdigit() and not is_transient(error)


def not_s3_error(what: str) -> Exception:
    """The error for an answer that an S3 server would not give."""
    from botocore.parsers import ResponseParserError

    error: Exception = ResponseParserError(what)
    return error


def s3_error(error: BaseException, where: str, bucket: str, endpoint: str) -> StorageError | FileNotFoundError:
    """The error for the user. FileNotFoundError for an object that does not exist."""
    code = error_code(error)
    if code == "NoSuchKey":
        return FileNotFoundError(where)
    what, hint = _server_message(error, code) if code else _client_message(error)
    facts = {"bucket": bucket, "endpoint": endpoint or "S3", "detail": _detail(error), **_facts(error)}
    return StorageError(f"{where}: {what.format(**facts)}", hint.format(**facts))


def _server_message(error: Any, code: str) -> tuple[str, str]:
    if is_transient(error):
        return "S3 is overloaded or unavailable ({detail})", "Run the same command again later to resume."
    if code in _MESSAGES:
        return _MESSAGES[code]
    if is_bare_status(error):
        return _NOT_S3
    return "S3 rejected the request ({detail})", "See your S3 server's documentation for this error."


class _Message(NamedTuple):
    """What an error of the client means. `kinds` are names of classes, so that the client is not imported for them."""

    kinds: tuple[str, ...]
    what: str
    hint: str
    text: str = ""  # a part of the error's detail; empty: any


_HTTP = ("HTTPClientError", "ConnectionError", "IncompleteReadError", "RetriesExceededError", "HTTPError")
_PLAIN = "{endpoint} does not speak TLS", "Write http:// in AWS_ENDPOINT_URL, or correct the port."
_CLIENT_MESSAGES = (  # the first match counts
    _Message(("ResponseParserError",), *_NOT_S3),
    _Message(("SSLError",), *_PLAIN, text="WRONG_VERSION_NUMBER"),
    _Message(("SSLError",), *_PLAIN, text="record layer failure"),
    _Message(
        ("SSLError",),
        "TLS fails at {endpoint} ({detail})",
        "Set AWS_CA_BUNDLE to the certificate of the server's authority.",
    ),
    _Message(
        ("ProxyConnectionError",),
        "the proxy for S3 does not answer ({detail})",
        "Check HTTPS_PROXY and HTTP_PROXY, or add S3's host to NO_PROXY.",
    ),
    _Message(
        ("EndpointConnectionError",),
        "the host of {endpoint} cannot be resolved ({detail})",
        "Check AWS_ENDPOINT_URL and AWS_REGION.",
        text="resolve",
    ),
    _Message(
        ("EndpointConnectionError",),
        "nothing listens at {endpoint}",
        "Check AWS_ENDPOINT_URL, and that the server is running.",
        text="refused",
    ),
    _Message(
        _HTTP,
        "the credentials contain a line break or another invalid character",
        "Remove it from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_SESSION_TOKEN (`printf %s`, not `echo`).",
        text="Invalid header value",
    ),
    _Message(
        ("ProfileNotFound", "ConfigParseError", "ConfigNotFound", "InvalidConfigError"),
        "{detail}",
        "Check AWS_PROFILE and ~/.aws/config.",
    ),
    _Message(("TokenRetrievalError", "SSOError", "LoginError"), "{detail}", _LOGIN),
    _Message(
        ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"),
        "no credentials for S3 were found ({detail})",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this pod or machine a role.",
    ),
    _Message(("ParamValidationError", "InvalidRegionError"), "{detail}", "Correct the URI, or AWS_REGION."),
    _Message(
        _HTTP,
        "{endpoint} does not answer, or breaks the connection ({detail})",
        "Check that the server is running and reachable, then run again.",
    ),
)


def _client_message(error: BaseException) -> tuple[str, str]:
    if _is_invalid_endpoint(error):
        return "AWS_ENDPOINT_URL is not a URL ({detail})", "Write http://HOST:PORT or https://HOST."
    names, detail = {kind.__name__ for kind in type(error).__mro__}, _detail(error)
    for message in _CLIENT_MESSAGES:
        if names & set(message.kinds) and message.text in detail:
            return message.what, message.hint
    return "S3 cannot be used ({detail})", "Check AWS_ENDPOINT_URL, AWS_REGION and AWS_PROFILE."


def _detail(error: Any) -> str:
    """The server's code and message, or the innermost cause; at most 200 characters."""
    code = error_code(error)
    if code:
        message = error.response["Error"].get("Message") or ""
        return " ".join(f"{error.operation_name}: {code} {message}".split())[:200]
    cause = getattr(error, "kwargs", {}).get("error") or error
    while cause.args and isinstance(cause.args[-1], Exception):
        cause = cause.args[-1]
    return " ".join(str(cause).split())[:200]


def _facts(error: Any) -> dict[str, str]:
    """The clock skew and the bucket's region, if the answer contains them."""
    answer = getattr(error, "response", None) or {}
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = answer.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
    skew = "differs from the server's"
    if "date" in headers:
        seconds = (datetime.now(UTC) - parsedate_to_datetime(headers["date"])).total_seconds()
        skew = f"is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the server's"
    return {"region": f", {region}" if region else "", "skew": skew}
