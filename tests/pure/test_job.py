"""A job: its name, its payload, and what becomes of both between versions."""

import math
from datetime import timedelta
from typing import Annotated, Any, Generic, TypeVar

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    create_model,
    field_validator,
)

from worker.errors import InvalidPayload
from worker.job import DEFAULT_QUEUE, MAX_PAYLOAD_BYTES, Job, unread_keys

T = TypeVar("T")


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


def test_what_is_no_queue_is_refused_where_the_class_is_made() -> None:
    with pytest.raises(ValueError, match="Wrong has the queue 'a b'; use at most 200 letters"):
        type("Wrong", (Job,), {}, name="fine", queue="a b")


def test_an_alias_that_lacks_its_comma_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Wrong has aliases='charge'; give a tuple, as in \('charge',\)"):
        type("Wrong", (Job,), {}, name="pay", aliases="charge")


def test_a_generic_job_is_told_how_it_gets_its_name() -> None:
    class Import(Job, Generic[T]):
        items: list[T]

    class Ints(Import[int], name="import.ints"): ...

    assert Ints(items=[1]).to_payload() == b'{"items":[1]}'
    with pytest.raises(ValueError, match=r"Import\[int\] has no job name; write a class of its own"):
        Import[int](items=[1]).to_payload()


def test_bytes_that_are_no_text_are_refused_with_a_way_out() -> None:
    class Cover(Job, name="cover"):
        image: bytes

    class Coded(Cover, name="coded"):
        model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    with pytest.raises(ValueError, match=r"The payload of cover can't be written as JSON .*ser_json_bytes='base64'"):
        Cover(image=b"\x89PNG").to_payload()
    coded = Coded(image=b"\x89PNG")
    assert Coded.from_payload(coded.to_payload()) == coded


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


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_carry_is_refused_rather_than_sent_as_null(number: float) -> None:
    class Price(Job, name="price"):
        limit: float | None

    with pytest.raises(ValueError, match="The payload of price has NaN or infinity"):
        Price(limit=number).to_payload()


def test_a_text_may_speak_of_infinity() -> None:
    job = Pay(order_id=1, name="NaN to Infinity")
    assert Pay.from_payload(job.to_payload()) == job


def test_a_secret_is_refused_rather_than_sent_as_asterisks() -> None:
    class Login(Job, name="login"):
        user: str
        password: SecretStr

    with pytest.raises(ValueError, match="The payload of login has a secret, which pydantic writes as") as refusal:
        Login(user="ann", password=SecretStr("hunter2")).to_payload()
    assert "hunter2" not in str(refusal.value)


def test_a_text_of_asterisks_and_a_secret_that_writes_itself_may_be_sent() -> None:
    class Mask(Job, name="mask"):
        shown: str
        token: Annotated[SecretStr, PlainSerializer(SecretStr.get_secret_value)] = SecretStr("")

    job = Mask(shown="*" * 10, token=SecretStr("x" * 3))
    assert Mask.from_payload(job.to_payload()) == job


def test_a_text_of_asterisks_is_no_secret_though_a_list_comes_back_for_a_tuple() -> None:
    class Stars(Job, name="stars"):
        shown: str
        more: Any

    assert b"[1,2]" in Stars(shown="*" * 10, more=(1, 2)).to_payload()


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (Field(0, exclude=True), "excludes its field n, which no worker would get"),
        (Field(0, exclude_if=bool), "excludes its field n, which no worker would get"),
        (Field(0, serialization_alias="m"), "writes its field n as 'm' and doesn't read that"),
        (Field(0, validation_alias="m"), "writes its field n as 'n' and doesn't read that"),
        (Field(0, validation_alias=AliasChoices("k", "m"), serialization_alias="n"), "writes its field n as 'n'"),
    ],
)
def test_a_field_that_no_worker_would_get_is_refused(field: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^Lossy {sentence}"):
        create_model("Lossy", __base__=Job, n=(int, field))


class Paid(Job):
    """Its fields' types stand below it, so what is annotated beside the first isn't known yet."""

    card: "Annotated[Card | None, Field(exclude=True)]" = None


class Card(BaseModel):
    number: str


def test_so_is_one_whose_type_stands_below_its_job() -> None:
    with pytest.raises(ValueError, match=r"^Paid excludes its field card, which no worker would get"):
        Paid(card=Card(number="4"))


@pytest.mark.parametrize(
    "field",
    [
        Field(0, alias="m"),
        Field(0, validation_alias=AliasChoices("n", AliasPath("m", 0))),
        Field(0, validation_alias=AliasPath("n")),
    ],
)
def test_a_field_may_have_an_alias_that_is_read_again(field: Any) -> None:
    job = create_model("Aliased", __base__=Job, __cls_kwargs__={"name": "aliased"}, n=(int, field))
    sent = job(**{field.alias or "n": 7})
    assert job.from_payload(sent.to_payload()) == sent


def test_a_validator_that_fails_is_told_without_what_it_says() -> None:
    class Renew(Job, name="renew"):
        until: str

        @field_validator("until")
        @classmethod
        def looked_up(cls, until: str) -> str:
            return {"hunter1": "1"}[until]

    with pytest.raises(InvalidPayload, match="does not fit renew: a validator raised KeyError") as refusal:
        Renew.from_payload(b'{"until": "hunter2"}')
    assert refusal.value.__cause__ is refusal.value.__context__ is None


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
@pytest.mark.parametrize("field", ["job_name", "job_queue", "job_aliases"])
def test_a_field_that_would_stand_for_what_the_class_says_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"Wrong has a field {field}, which is the job's own"):
        type("Wrong", (Job,), {"__annotations__": {field: str}, "__module__": __name__}, name="wrong")


class Open(Job, name="open"):
    model_config = ConfigDict(extra="allow")

    card: Card | None = None


class Renamed(Job, name="renamed"):
    to: int = Field(0, validation_alias=AliasChoices("to", "until"))


@pytest.mark.parametrize(
    ("job", "payload", "unread"),
    [
        (Renamed, b'{"until": 1}', 0),
        (Renamed, b'{"untl": 1, "from": 0}', 2),
        (Open, b'{"crad": null}', 0),
        (Open, b'{"card": {"number": "4", "name": "Ada"}}', 0),
    ],
)
def test_keys_that_a_job_ignores_are_counted(job: type[Job], payload: bytes, unread: int) -> None:
    job.from_payload(payload)
    assert unread_keys(job, payload) == unread
