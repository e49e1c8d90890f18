"""Makes MLflow's users before its server starts: the administrator, and the one by whom the pods of Ray come.

The chart's init container `users` runs it. They lie in the runs' own database, whose URI is a secret, so the server's
settings of them are written here too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from deploy.errors import ConnectError
from pipeline.errors import ConfigError, PipelineError

_SETTINGS = "[mlflow]\ndefault_permission = EDIT\ngrant_default_workspace_access = true\ndatabase_uri = {uri}\n"
_SECRET = "in the Secret of mlflow.basicAuth.existingSecret"  # noqa: S105  # its name


class User(NamedTuple):
    """A user as the environment gives it."""

    name: str
    password: str
    admin: bool


def make_users(environment: Mapping[str, str]) -> list[str]:
    """Write the server's settings, make both users, and give them these passwords. Returns their names.

    ConfigError for a missing variable or a name or password that MLflow refuses, ConnectError without the database.
    """
    uri = _needed(environment, "MLFLOW_BACKEND_STORE_URI", "Set mlflow.database.existingSecret, with the key uri.")
    users = [_user(environment, "MLFLOW_AUTH_ADMIN", admin=True), _user(environment, "PODS", admin=False)]
    if users[0].name == users[1].name:
        raise ConfigError(
            f"the administrator and the pods' user are both named {users[0].name}", f"Name two, {_SECRET}."
        )
    settings = Path(_needed(environment, "MLFLOW_AUTH_CONFIG_PATH", "Give the path of the file to write."))
    _write(settings, uri)
    _store(uri, users)
    return [user.name for user in users]


def _user(environment: Mapping[str, str], where: str, admin: bool) -> User:
    hint = f"Set both user and password {_SECRET}."
    name, password = (_needed(environment, f"{where}_{part}", hint) for part in ("USERNAME", "PASSWORD"))
    return User(name, password, admin)


def _needed(environment: Mapping[str, str], name: str, hint: str) -> str:
    """The variable's value; ConfigError if it is not set or empty."""
    if not environment.get(name):
        raise ConfigError(f"{name} is not set", hint)
    return environment[name]


def _write(settings: Path, uri: str) -> None:
    text = _SETTINGS.format(uri=uri.replace("%", "%%"))  # MLflow reads it with interpolation
    try:
        settings.touch(mode=0o600)  # the URI has the database's password
        settings.write_text(text)
    except OSError as error:
        raise PipelineError(
            f"{settings} cannot be written ({error.strerror})", "Give MLFLOW_AUTH_CONFIG_PATH in a writable folder."
        ) from error


def _store(uri: str, users: list[User]) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore  # reads the file that was just written
    from sqlalchemy.exc import SQLAlchemyError

    store = SqlAlchemyStore()
    try:
        store.init_db(uri)
        for user in users:
            if store.has_user(user.name):
                store.update_user(user.name, user.password)
            else:
                store.create_user(user.name, user.password, is_admin=user.admin)
    except MlflowException as error:
        raise ConfigError(f"MLflow refuses its users: {error.message}", f"Correct it {_SECRET}.") from error
    except SQLAlchemyError as error:
        raise ConnectError(
            f"MLflow's database does not take its users ({_reason(error)})",
            "Check that it is up, networkPolicy.postgres, and the URI in the Secret of mlflow.database.existingSecret.",
        ) from error


def _reason(error: Exception) -> str:
    """The driver's own words in one line: SQLAlchemy's has the statement, with its values."""
    own = getattr(error, "orig", None) or type(error).__name__
    return " ".join(str(own).split())[:200]
