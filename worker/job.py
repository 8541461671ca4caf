"""Job: what is asked. A frozen model with a stable name; it crosses services and languages as JSON."""

import re
from typing import Any, ClassVar, Self, cast

from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Secret, SecretBytes, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, from_json

from worker.errors import InvalidPayload

LONGEST_NAME = 200
NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.:-]{{0,{LONGEST_NAME - 1}}}")
NAME_ADVICE = f"use at most {LONGEST_NAME} letters, digits, dots, dashes, colons or underscores"
"""For whoever gave a job, a queue or a cron entry a name that is none."""
QUEUE = re.compile(rf"(?!ratchet:){NAME.pattern}")
"""Of a queue, which is a key in Redis. Ours begin with `ratchet:`, and a job's id must not get into one of those."""
QUEUE_ADVICE = f"{NAME_ADVICE}, and don't begin with ratchet:, as the runtime's own keys do"
MAX_PAYLOAD_BYTES = 1024 * 1024
DEFAULT_QUEUE = "arq:queue"
MASK = b'"**********"'
"""What pydantic writes for a secret."""


class Job(BaseModel):
    """A message that a handler carries out.

        class PayOrder(Job, name="orders.pay"):
            order_id: int

    The name is what producers and workers agree on: it outlives the class. To rename a job, give the new name and keep
    the old one in `aliases` until nothing enqueues it any more. Unknown payload keys are ignored, so that producers
    may be deployed before workers.
    """

    # As constants, so that they are found: pydantic's own way is to send null for infinity and NaN.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    # A payload may well have a field called `name` or `queue`, hence the prefix.
    job_name: ClassVar[str] = ""
    job_queue: ClassVar[str] = DEFAULT_QUEUE
    job_aliases: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, name: str = "", queue: str | None = None, aliases: tuple[str, ...] = ()) -> None:
        """Take the class keywords. A class without a name is a base for others and can't be enqueued.

        Raises ValueError for a name that is no name, and aliases that aren't a tuple.
        """
        super().__init_subclass__()
        given_aliases: Any = aliases  # whose comma is easily left out
        if isinstance(given_aliases, str):
            raise ValueError(f"{cls.__name__} has aliases={aliases!r}; give a tuple, as in ({aliases!r},).")  # noqa: TRY004 - as the others
        if queue is not None and not QUEUE.fullmatch(queue):
            raise ValueError(f"{cls.__name__} has the queue {queue[:50]!r}; {QUEUE_ADVICE}.")
        for given in (name, *aliases) if name else aliases:
            if not NAME.fullmatch(given):
                raise ValueError(f"{cls.__name__} has the job name {given!r}; {NAME_ADVICE}.")
        cls.job_name = name
        cls.job_queue = queue or cls.job_queue
        cls.job_aliases = aliases

    @classmethod
    def __pydantic_init_subclass__(cls, **_keywords: Any) -> None:
        """Raises ValueError for a field that would stand for what the class says, or that no worker would get."""
        cls.__pydantic_on_complete__()

    @classmethod
    def __pydantic_on_complete__(cls) -> None:
        """The same, once the types of all fields are known: what is annotated beside one that isn't isn't either."""
        taken = sorted({"job_name", "job_queue", "job_aliases"} & cls.model_fields.keys())
        if taken:
            raise ValueError(f"{cls.__name__} has a field {taken[0]}, which is the job's own; call it something else.")
        for name, field in cls.model_fields.items():
            if field.exclude or field.exclude_if:
                raise ValueError(f"{cls.__name__} excludes its field {name}, which no worker would get; leave it out.")
            written = field.serialization_alias or name
            if written not in _read_as(name, field, cls.model_config):
                raise ValueError(
                    f"{cls.__name__} writes its field {name} as {written!r} and doesn't read that; give it an alias, "
                    "which stands for both."
                )

    def to_payload(self) -> bytes:
        """The payload as JSON in UTF-8.

        Raises ValueError if the job has no name, or the payload is over 1 MiB or can't be written as JSON, which a
        secret can't either.
        """
        if not self.job_name:
            kind = type(self).__name__
            if "[" in kind:
                raise ValueError(
                    f"{kind} has no job name; write a class of its own, as in class MyJob({kind}, name=…)."
                )
            raise ValueError(f"{kind} has no job name; write class {kind}(Job, name=…).")
        try:
            payload = self.__pydantic_serializer__.to_json(self, by_alias=True, round_trip=True)
        except PydanticSerializationError as error:
            raise ValueError(
                f"The payload of {self.job_name} can't be written as JSON ({error}); for bytes, set "
                "model_config = ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')."
            ) from error
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(
                f"The payload of {self.job_name} has {len(payload):,} bytes; the limit is {MAX_PAYLOAD_BYTES:,}. "
                "Store the data elsewhere and send its key."
            )
        if b"NaN" in payload or b"Infinity" in payload:  # it may stand in a text
            try:
                from_json(payload, allow_inf_nan=False)
            except ValueError:
                raise ValueError(
                    f"The payload of {self.job_name} has NaN or infinity, which JSON can't carry; send None, or a text."
                ) from None
        if MASK in payload and _holds_secret(self) and not self._comes_back(payload):  # it may stand in a text
            raise ValueError(
                f"The payload of {self.job_name} has a secret, which pydantic writes as asterisks; "
                "send the key of the place where it is kept."
            )
        return payload

    def _comes_back(self, payload: bytes) -> bool:
        try:
            return self.from_payload(payload) == self
        except InvalidPayload:
            return False

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Read what `to_payload` wrote, by whichever version or language.

        Raises InvalidPayload, whose text names the fields and never their values.
        """
        try:
            job: Self = cls.__pydantic_validator__.validate_json(payload)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'payload'}: {fault['msg']}"
                for fault in error.errors(include_url=False, include_context=False, include_input=False)[:10]
            )
        except Exception as error:  # noqa: BLE001 - of a validator, whose text may quote the value
            faults = f"a validator raised {type(error).__name__}"
        else:
            return job
        # Outside the except block, so that pydantic's error, which quotes the input, isn't chained to ours.
        raise InvalidPayload(f"The payload does not fit {cls.job_name}: {faults}.")


def unread_keys(job: type[Job], payload: bytes) -> int:
    """How many keys of a payload that fits are ignored, and stand for a field that was misspelt, perhaps."""
    if job.model_config.get("extra") != "ignore":
        return 0
    try:
        job.__pydantic_validator__.validate_json(payload, extra="forbid")
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        return sum(fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1 for fault in faults)
    return 0


def _holds_secret(value: object) -> bool:
    if isinstance(value, BaseModel):
        value = vars(value)
    if isinstance(value, dict):
        value = list(cast("dict[object, object]", value).values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_holds_secret, cast("list[object]", value)))
    return isinstance(value, Secret | SecretStr | SecretBytes)


def _read_as(name: str, field: FieldInfo, config: ConfigDict) -> set[str]:
    """The keys of a payload that a field is read from."""
    alias = field.validation_alias
    by_name = alias is None or config.get("populate_by_name") or config.get("validate_by_name")
    names = {name} if by_name else set[str]()
    if alias is None or config.get("validate_by_alias") is False:
        return names
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    paths = [each.path if isinstance(each, AliasPath) else [each] for each in choices]
    return names | {str(path[0]) for path in paths if len(path) == 1}
