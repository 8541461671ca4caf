"""Settings of any text."""

import os
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.oracles import check_sentence
from worker.database import create_engine
from worker.settings import Settings, SettingsError, load_settings

SECRET = "hunter2hunter2"
NAMES = [str(field.validation_alias or f"WORKER_{name.upper()}") for name, field in Settings.model_fields.items()]
# An environment holds no NUL. Half a surrogate pair stands for a byte that is no UTF-8.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("\udc80\udcff"))
PLAIN = TEXT.filter(lambda text: SECRET not in text)  # hypothesis tries the constants of a file, too
NUMBER = st.integers(-(10**30), 10**30).map(str) | st.floats().map(str) | st.just("9" * 5_000)
URL = st.builds(
    "{}://{}:{}@{}{}".format,
    st.sampled_from(["postgres", "postgresql+asyncpg", "redis", "rediss", "unix", "redis+sentinel", "http"]),
    st.text("ué%@", max_size=3),
    st.just(SECRET),
    st.sampled_from(["", "h", "h:1", "h:port", "[::1]", "[", "h,i:2", "h:99999", ":-1", "%zz"]),
    st.sampled_from(["", "/", "/d", "/0/x", "?", "/d?host=a,b&port=1,2,3", "/d?sslmode=maybe", "/1?db=x", "?\udc80=1"]),
)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(NAMES), PLAIN | NUMBER | URL, max_size=4))
def test_settings_are_taken_or_refused_in_a_sentence(given_settings: dict[str, str]) -> None:
    with patch.dict(os.environ, {"DATABASE_URL": "postgresql://u@h/d", **given_settings}):
        told = tried()
    elsewhere = [text for name, text in given_settings.items() if not name.endswith("_URL")]
    assert SECRET not in told or SECRET in "".join(elsewhere)  # a password belongs into a URL


def tried() -> str:
    """The settings as they are shown, or why they are refused."""
    try:
        chosen = load_settings()
        create_engine(chosen.database_url.get_secret_value(), pool_size=1)
    except SettingsError as error:
        check_sentence(str(error))
        return str(error)
    return repr(chosen)
