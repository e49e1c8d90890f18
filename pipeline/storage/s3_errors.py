"""What S3 may refuse, as one line with its hint, and which of it passes by itself. Only words; `s3.py` acts on them."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.errors import StorageError

# Codes of errors that pass, beside those that their HTTP status tells.
_PASSING = {
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "IncompleteBody",
    "OperationAborted",
    "ConditionalRequestConflict",  # somebody else wrote at the same time: asked again, the condition decides
    "NoSuchUpload",  # its completion was asked for twice, as the first answer was lost: the upload begins again
}
_PASSING_STATUS = {429, 500, 502, 503, 504}

# code -> (what is wrong, what to do about it)
_LOGIN = "Log in again (`aws sso login`), or renew AWS_SESSION_TOKEN."
_PERMIT = (
    "Give them s3:ListBucket on the bucket {bucket}, and s3:GetObject, s3:PutObject and s3:DeleteObject on what is "
    "below the prefix."
)
_WORDS = {
    "NoSuchBucket": ("NoSuchBucket, {endpoint} has no bucket '{bucket}'", "Create the bucket, or correct the URI."),
    "AccessDenied": ("the credentials may not do this", _PERMIT),
    "InvalidAccessKeyId": (
        "{endpoint} does not know this access key",
        "Check AWS_ACCESS_KEY_ID or AWS_PROFILE, and that AWS_ENDPOINT_URL is the server they belong to.",
    ),
    "SignatureDoesNotMatch": (
        "the secret key is not that of the access key",
        "Check AWS_SECRET_ACCESS_KEY; where it is right, a proxy on the way alters the requests.",
    ),
    "ExpiredToken": ("the credentials have expired", _LOGIN),
    "ExpiredTokenException": ("the credentials have expired", _LOGIN),
    "TokenRefreshRequired": ("the credentials have expired", _LOGIN),
    "InvalidToken": (
        "the session token is not that of the access key",
        "Unset AWS_SESSION_TOKEN, or set all three of one login.",
    ),
    "RequestTimeTooSkewed": ("this machine's clock {skew}", "Set the clock (NTP), then run again."),
    "RequestExpired": ("this machine's clock {skew}", "Set the clock (NTP), then run again."),
    "PermanentRedirect": ("the bucket is in another region{region}", "Set AWS_REGION to the bucket's."),
    "AuthorizationHeaderMalformed": ("the bucket is in another region{region}", "Set AWS_REGION to the bucket's."),
    "IllegalLocationConstraintException": (
        "the bucket is in another region{region}",
        "Set AWS_REGION to the bucket's.",
    ),
    "QuotaExceeded": ("the quota is used up", "Free some space (see `python -m pipeline artifact gc`), or raise it."),
    "PreconditionFailed": ("it changed while it was read", "Run again."),
}
_NOT_S3 = (
    "what answers at {endpoint} is no S3 server ({detail})",
    "Check AWS_ENDPOINT_URL: the address, the port, and http or https.",
)


def code_of(error: BaseException) -> str:
    """The server's word for it: S3's code, or the bare HTTP status where the answer had no words; else ""."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return ""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
    return str(error.response.get("Error", {}).get("Code") or status)


def is_s3_error(error: BaseException) -> bool:
    """Does it come from the S3 client, or from what it stands on?"""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    kinds = (ClientError, BotoCoreError, Boto3Error, ResponseParserError, HTTPError)
    return isinstance(error, kinds) or _is_invalid_endpoint(error)


def _is_invalid_endpoint(error: BaseException) -> bool:
    return isinstance(error, ValueError) and str(error).startswith("Invalid endpoint")


def is_passing(error: BaseException) -> bool:
    """May the same request do well a little later?"""
    import botocore.exceptions as core
    from boto3.exceptions import RetriesExceededError
    from urllib3.exceptions import HTTPError

    if isinstance(error, core.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status in _PASSING_STATUS or code_of(error) in _PASSING
    cut = (core.HTTPClientError, core.ConnectionError, core.IncompleteReadError, core.FlexibleChecksumError, HTTPError)
    if "Invalid header value" in str(error):  # before anything was sent
        return False
    # The last: a body has broken off again and again.
    return isinstance(error, (*cut, RetriesExceededError)) and not isinstance(error, core.SSLError)


def is_wordless(error: BaseException) -> bool:
    """Is it a bare HTTP status, without S3's own words, and none that a server in trouble gives?"""
    return code_of(error).isdigit() and not is_passing(error)


def no_s3(what: str) -> Exception:
    """The error for an answer that no S3 server gives."""
    from botocore.parsers import ResponseParserError

    error: Exception = ResponseParserError(what)
    return error


def s3_refusal(error: BaseException, where: str, bucket: str, endpoint: str) -> StorageError | FileNotFoundError:
    """The error for the user. FileNotFoundError for an object that is not there."""
    code = code_of(error)
    if code == "NoSuchKey":
        return FileNotFoundError(where)
    what, hint = _words_of_server(error, code) if code else _words_of_client(error)
    facts = {"bucket": bucket, "endpoint": endpoint or "S3", "detail": _detail(error), **_facts(error)}
    return StorageError(f"{where}: {what.format(**facts)}", hint.format(**facts))


def _words_of_server(error: Any, code: str) -> tuple[str, str]:
    if is_passing(error):
        return "S3 is busy or in trouble ({detail})", "Run again when it is well; the same command goes on."
    if code in _WORDS:
        return _WORDS[code]
    if is_wordless(error):
        return _NOT_S3
    return "S3 refuses ({detail})", "See what your S3 server's documentation says of that."


def _words_of_client(error: BaseException) -> tuple[str, str]:
    if _is_invalid_endpoint(error):
        return "AWS_ENDPOINT_URL is no URL ({detail})", "Write http://HOST:PORT or https://HOST."
    for kinds, said, what, hint in _client_words():
        if isinstance(error, kinds) and said in _detail(error):
            return what, hint
    return "S3 cannot be used ({detail})", "Check AWS_ENDPOINT_URL, AWS_REGION and AWS_PROFILE."


def _client_words() -> list[tuple[tuple[type[BaseException], ...], str, str, str]]:
    """The client's own errors: their kinds, a part of their text, what is wrong, what to do. The first counts."""
    import botocore.exceptions as core
    from boto3.exceptions import RetriesExceededError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    profile = (core.ProfileNotFound, core.ConfigParseError, core.ConfigNotFound, core.InvalidConfigError)
    login = (core.TokenRetrievalError, core.SSOError, core.LoginError)
    keys = (core.NoCredentialsError, core.PartialCredentialsError, core.CredentialRetrievalError)
    plain = "{endpoint} does not speak TLS", "Write http:// in AWS_ENDPOINT_URL, or correct the port."
    cut = (core.HTTPClientError, core.ConnectionError, core.IncompleteReadError, RetriesExceededError, HTTPError)
    return [
        ((ResponseParserError,), "", *_NOT_S3),
        ((core.SSLError,), "WRONG_VERSION_NUMBER", *plain),
        ((core.SSLError,), "record layer failure", *plain),
        (
            (core.SSLError,),
            "",
            "TLS fails at {endpoint} ({detail})",
            "Name the file of the server's CA in AWS_CA_BUNDLE.",
        ),
        (
            (core.ProxyConnectionError,),
            "",
            "the proxy on the way to S3 does not answer ({detail})",
            "Check HTTPS_PROXY and HTTP_PROXY, or name S3's host in NO_PROXY.",
        ),
        (
            (core.EndpointConnectionError,),
            "resolve",
            "the host of {endpoint} is not known ({detail})",
            "Check AWS_ENDPOINT_URL and AWS_REGION.",
        ),
        (
            (core.EndpointConnectionError,),
            "refused",
            "nothing listens at {endpoint}",
            "Check AWS_ENDPOINT_URL; is the server up?",
        ),
        (
            cut,
            "Invalid header value",
            "the credentials hold a line end or the like, which no request can carry",
            "Write AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN without it (`printf %s`, no `echo`).",
        ),
        (profile, "", "{detail}", "Check AWS_PROFILE and ~/.aws/config."),
        (login, "", "{detail}", _LOGIN),
        (
            keys,
            "",
            "there are no credentials for S3 ({detail})",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this pod or machine a role.",
        ),
        ((core.ParamValidationError, core.InvalidRegionError), "", "{detail}", "Correct the URI, or AWS_REGION."),
        (
            cut,
            "",
            "{endpoint} does not answer, or breaks off ({detail})",
            "Is it up and in reach? Then run again.",
        ),
    ]


def _detail(error: Any) -> str:
    """What was said, short: the server's code and words, or the innermost cause."""
    code = code_of(error)
    if code:
        said = error.response["Error"].get("Message") or ""
        return " ".join(f"{error.operation_name}: {code} {said}".split())[:200]
    cause = getattr(error, "kwargs", {}).get("error") or error
    while cause.args and isinstance(cause.args[-1], Exception):
        cause = cause.args[-1]
    return " ".join(str(cause).split())[:200]


def _facts(error: Any) -> dict[str, str]:
    """The clock's error and the bucket's region, where the answer tells them."""
    answer = getattr(error, "response", None) or {}
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = answer.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
    skew = "is not the server's"
    if "date" in headers:
        seconds = (datetime.now(UTC) - parsedate_to_datetime(headers["date"])).total_seconds()
        skew = f"is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the server's"
    return {"region": f", {region}" if region else "", "skew": skew}


def arrow_refusal(error: BaseException, where: str) -> StorageError:
    """The same of Arrow's S3 client, which says less."""
    said = " ".join(str(error).partition("AWS Error ")[2].split())
    if said.startswith("ACCESS_DENIED"):
        return StorageError(f"{where}: the credentials may not read this ({said})", "Give them s3:GetObject on it.")
    return StorageError(f"{where}: S3 refuses, or is away ({said})", "Run again when it is well.")
