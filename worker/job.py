"""Job: what is asked. A frozen model with a stable name; it crosses services and languages as JSON."""

import re
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.errors import InvalidPayload

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")
MAX_PAYLOAD_BYTES = 1024 * 1024
DEFAULT_QUEUE = "arq:queue"


class Job(BaseModel):
    """A message that a handler carries out.

        class PayOrder(Job, name="orders.pay"):
            order_id: int

    The name is what producers and workers agree on: it outlives the class. To rename a job, give the new name and keep
    the old one in `aliases` until nothing enqueues it any more. Unknown payload keys are ignored, so that producers
    may be deployed before workers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    # A payload may well have a field called `name` or `queue`, hence the prefix.
    job_name: ClassVar[str] = ""
    job_queue: ClassVar[str] = DEFAULT_QUEUE
    job_aliases: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, name: str = "", queue: str | None = None, aliases: tuple[str, ...] = ()) -> None:
        """Take the class keywords. A class without a name is a base for others and can't be enqueued.

        Raises ValueError for a name that is no name.
        """
        super().__init_subclass__()
        for given in (name, *aliases) if name else aliases:
            if not NAME.fullmatch(given):
                raise ValueError(
                    f"{cls.__name__} has the job name {given!r}; "
                    "use at most 200 letters, digits, dots, dashes, colons or underscores."
                )
        cls.job_name = name
        cls.job_queue = queue or cls.job_queue
        cls.job_aliases = aliases

    def to_payload(self) -> bytes:
        """The payload as JSON in UTF-8.

        Raises ValueError if the job has no name, or the payload is over 1 MiB or can't be written as JSON.
        """
        if not self.job_name:
            raise ValueError(f"{type(self).__name__} has no job name; write class {type(self).__name__}(Job, name=…).")
        payload = self.__pydantic_serializer__.to_json(self, by_alias=True, round_trip=True)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(
                f"The payload of {self.job_name} has {len(payload):,} bytes; the limit is {MAX_PAYLOAD_BYTES:,}. "
                "Store the data elsewhere and send its key."
            )
        return payload

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Read what `to_payload` wrote, by whichever version or language.

        Raises InvalidPayload, whose text names the fields and never their values.
        """
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'payload'}: {fault['msg']}"
                for fault in error.errors(include_url=False, include_context=False, include_input=False)[:10]
            )
        # Outside the except block, so that pydantic's error, which quotes the input, isn't chained to ours.
        raise InvalidPayload(f"The payload does not fit {cls.job_name}: {faults}.")
