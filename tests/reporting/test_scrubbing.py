"""Nothing that a job carries leaves for Sentry, whichever way it takes."""

import re
from dataclasses import replace

import pytest
import sentry_sdk
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from tests.reporting.conftest import StartReporting
from tests.reporting.envelopes import SentryServer
from tests.reporting.subjects import PAY, attempt, raised
from worker.outcome import Dead
from worker.reporting.observer import Observer
from worker.reporting.scrubbing import without_addresses, without_literals

SECRET = "swordfish"
ADDRESS = "ann.o'neill+shop@mail.example.org"
PAYLOAD = f'{{"email":"{ADDRESS}","card":"{SECRET}"}}'.encode()


def fail_with_everything() -> None:
    """What a handler may do that would give its data away."""
    card, email = SECRET, ADDRESS
    sentry_sdk.set_user({"email": email})
    sentry_sdk.set_context("order", {"card": card})
    sentry_sdk.get_isolation_scope().set_extra("card", card)
    sentry_sdk.set_tag("buyer", email)
    sentry_sdk.add_breadcrumb(message=f"charging {card} of {email}")
    sentry_sdk.capture_message(f"charging {card} of {email}")
    sentry_sdk.capture_event({"logentry": {"message": "charging %s", "params": [card]}})
    with sentry_sdk.start_span(op="http.client", name=f"GET /users/{email}") as span:
        span.set_data("url", f"https://crm.example.org/?q={email}")
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(text(f"select '{card}', :email /* {card} */"), {"email": email})
    engine.dispose()
    cause = raised(KeyError(f"{card} of {email}"))
    cause.add_note(card)
    refused = OperationalError(f"select '{card}'", {"email": email}, cause)
    raise ExceptionGroup(card, [ValueError(card), refused]) from cause


def die(observers: Observer) -> None:
    with observers.observe(replace(PAY, payload=PAYLOAD)) as observation:
        observation.begun(1)
        try:
            fail_with_everything()
        except ExceptionGroup as error:
            observation.ended(Dead(f"ExceptionGroup: {SECRET}"), error)
    observers.fault("relay", raised(ValueError(f"{SECRET} of {ADDRESS}")))


def test_no_payload_no_error_s_text_and_no_address_leaves(start: StartReporting, sentry: SentryServer) -> None:
    die(start())
    assert len(sentry.events()) == 4, "the handler's own two messages, the dead job, the fault"
    [transaction] = sentry.transactions()
    assert [span["op"] for span in transaction["spans"]] == ["http.client", "db"]
    assert SECRET not in sentry.everything()
    assert "o'neill" not in sentry.everything()
    assert "mail.example.org" not in sentry.everything()


def test_a_hidden_text_says_where_it_can_be_read(start: StartReporting, sentry: SentryServer) -> None:
    attempt(start(), Dead("ValueError: no"), raised(ValueError("no")))
    [event] = sentry.events()
    assert event["exception"]["values"][0]["value"] == f"[hidden: see worker show {PAY.job_id}]"


def test_a_query_s_span_keeps_its_shape(start: StartReporting, sentry: SentryServer) -> None:
    die(start())
    [transaction] = sentry.transactions()
    assert transaction["spans"][1]["description"] == "select '…', ? '…'"


def test_payloads_texts_and_variables_leave_where_they_are_asked_for(
    start: StartReporting, sentry: SentryServer
) -> None:
    die(start(sentry_send_payloads=True))
    dead = next(event for event in sentry.events() if event["tags"].get("outcome") == "dead")
    assert dead["contexts"]["job"] == {"payload": PAYLOAD.decode()}
    assert not dead.get("breadcrumbs", {}).get("values")
    assert any(SECRET in error["value"] for error in dead["exception"]["values"])
    assert any(
        "card" in frame.get("vars", {})
        for error in dead["exception"]["values"]
        for frame in error.get("stacktrace", {}).get("frames", [])
    )


@pytest.mark.parametrize(
    ("query", "clean"),
    [
        ("select t1.c2 from t1 where email = $1 limit 10", "select t1.c2 from t1 where email = $1 limit '…'"),
        ("where phone = 4915112345 and share=.5 or x=1e-7", "where phone = '…' and share='…' or x='…'"),
        ("select 'it''s', 'b' from t", "select '…', '…' from t"),
        (r"select E'it\'s me', 'b\', x", "select '…', '…', x"),
        ("select $$a'b$$, $tag$c$$d$tag$, $1", "select '…', '…', $1"),
        ("select 1 -- ann's\nfrom t /* 'x */ where a = $2", "select '…' '…'\nfrom t '…' where a = $2"),
        ("""select "it's" from t where a = 'x'""", """select "it's" from t where a = '…'"""),
        ("select 'cut of", "select '…'"),
        ("select $$cut of", "select '…'"),
    ],
)
def test_a_query_loses_its_literals_and_comments(query: str, clean: str) -> None:
    assert without_literals(query) == clean


@given(st.text(alphabet="'$-/*\\eE\" ab\n"), st.text(alphabet="'$-/*\\eE\" ab\n"))
def test_no_literal_survives_whatever_stands_around_it(before: str, literal: str) -> None:
    quoted = "'" + (literal + SECRET).replace("'", "''") + "'"
    clean = without_literals(f"select '{before.replace(chr(39), chr(39) * 2)}', {quoted} from t")
    assert clean == "select '…', '…' from t"


def test_an_address_is_found_wherever_it_stands() -> None:
    value = {"a": [f"to <{ADDRESS}>, bcc:bob@x.de;", 5, None, "no@where", "50 @ 3.20"]}
    assert without_addresses(value) == {"a": ["to <[e-mail]>, bcc:[e-mail];", 5, None, "no@where", "50 @ 3.20"]}


@given(st.emails())
def test_every_address_is_found(address: str) -> None:
    assert not re.search(r"@", without_addresses(f"to {address} now"))
