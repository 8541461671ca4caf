"""A job: its name, its payload, and what becomes of both between versions."""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from worker.errors import InvalidPayload
from worker.job import DEFAULT_QUEUE, MAX_PAYLOAD_BYTES, Job


class Pay(Job, name="pay", queue="money", aliases=("charge",)):
    order_id: int
    within: timedelta = timedelta(hours=1)
    name: str = "field names are the job's own"


def test_the_class_keywords_are_the_jobs_name_queue_and_aliases() -> None:
    assert (Pay.job_name, Pay.job_queue, Pay.job_aliases) == ("pay", "money", ("charge",))


def test_the_queue_is_the_default_one_unless_the_job_says_otherwise_and_is_inherited() -> None:
    class Plain(Job, name="plain"):
        pass

    class PayNow(Pay, name="pay-now"):
        pass

    assert (Plain.job_queue, PayNow.job_queue) == (DEFAULT_QUEUE, "money")


def test_a_name_and_its_aliases_are_not_inherited() -> None:
    class Base(Pay):
        pass

    assert (Base.job_name, Base.job_aliases) == ("", ())
    with pytest.raises(ValueError, match="Base has no job name"):
        Base(order_id=1).to_payload()


@pytest.mark.parametrize("name", ["a b", "x" * 201, ".hidden", "naïve", "a\n"])
def test_what_is_no_name_is_refused_where_the_class_is_made(name: str) -> None:
    with pytest.raises(ValueError, match="use at most 200 letters"):
        type("Wrong", (Job,), {}, name=name)
    with pytest.raises(ValueError, match="use at most 200 letters"):
        type("Wrong", (Job,), {}, name="fine", aliases=(name,))


def test_a_job_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Pay(order_id=1).order_id = 2


def test_a_payload_comes_back_as_the_same_job() -> None:
    job = Pay(order_id=1, within=timedelta(days=1))
    assert Pay.from_payload(job.to_payload()) == job


def test_extra_keys_of_a_newer_producer_are_ignored() -> None:
    assert Pay.from_payload(b'{"order_id": 1, "currency": "EUR"}') == Pay(order_id=1)


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"order_id": "hunter2"}', b'{"within": "hunter2"}', b"\xff"])
def test_what_doesnt_fit_is_told_by_field_and_never_by_value(payload: bytes) -> None:
    with pytest.raises(InvalidPayload, match="The payload does not fit pay") as refusal:
        Pay.from_payload(payload)
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__cause__ is refusal.value.__context__ is None


def test_payloads_over_1_mib_are_refused_at_enqueue() -> None:
    with pytest.raises(ValueError, match="Store the data elsewhere and send its key"):
        Pay(order_id=1, name="x" * MAX_PAYLOAD_BYTES).to_payload()
