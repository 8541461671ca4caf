"""How a command ends that failed: with which exit code, and which sentence."""

from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, RedisError
from sqlalchemy.exc import DBAPIError

from worker.broker import is_untrusted
from worker.database import DatabaseAway
from worker.faults import is_lost_connection, sqlstate
from worker.operations import UnknownIdError, WrongStatusError
from worker.settings import SettingsError

FAILED = 1
WRONG = 2
AWAY = 3

UNDEFINED_TABLE = "42P01"
UNDEFINED_SCHEMA = "3F000"
NO_PRIVILEGE = "42501"


class Refusal(Exception):
    """A command can't do what it was asked; the text is one sentence that says what to do."""

    def __init__(self, sentence: str, code: int = FAILED) -> None:
        super().__init__(sentence)
        self.code = code


def ending(error: Exception) -> tuple[int, str]:
    """Exit code and sentence for what a command raised. No sentence holds a URL or a payload."""
    match error:
        case Refusal():
            code, sentence = error.code, str(error)
        case SettingsError():
            code, sentence = WRONG, str(error)
        case UnknownIdError() | WrongStatusError():
            code, sentence = FAILED, str(error)
        case DatabaseAway():
            code, sentence = AWAY, str(error)
        case RedisError():
            code, sentence = AWAY, _of_redis(error)
        case DBAPIError():
            code, sentence = _of_database(error)
        case _:
            code, sentence = FAILED, _unexpected(error)
    return code, sentence


def _of_redis(error: RedisError) -> str:
    match error:
        case NoPermissionError():
            return "Redis refuses us (no permission); allow the user in REDIS_URL what it needs."
        case AuthenticationError():
            return "Redis refuses us; check user and password in REDIS_URL."
        case OutOfMemoryError():
            return "Redis is full; give it more maxmemory, or wait until workers have caught up."
        case _ if is_untrusted(error):
            return "Redis shows a certificate that isn't trusted; check ssl_ca_certs in REDIS_URL."
        case _:
            return f"Redis can't be used ({type(error).__name__}); check REDIS_URL and the server."


def _of_database(error: DBAPIError) -> tuple[int, str]:
    state = sqlstate(error)
    if state in {UNDEFINED_TABLE, UNDEFINED_SCHEMA}:
        return WRONG, "The database isn't up to date; run worker migrate."
    if state == NO_PRIVILEGE:
        return AWAY, "PostgreSQL refuses us (insufficient privilege); grant the role in DATABASE_URL what it needs."
    if is_lost_connection(error):
        return AWAY, "The connection to PostgreSQL was lost; try again."
    return FAILED, _unexpected(error)


def _unexpected(error: Exception) -> str:
    # Its text isn't shown: it may quote data.
    return f"The command failed ({type(error).__name__}); run it again with --debug to see where."
