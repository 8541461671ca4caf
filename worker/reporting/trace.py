"""The trace that an enqueuer hands to the worker, in the message's `_headers`."""

import sys
from typing import Any

CRON_HEADER = "ratchet-cron"
"""Names the cron entry that a job comes from."""

TRACE_HEADERS = ("sentry-trace", "baggage")


def loaded_sdk() -> Any:
    """Sentry's SDK, where this process has imported it. Else None: nobody traces, and to load it takes 0.1 s."""
    if sys.modules.get("sentry_sdk") is None:
        return None
    import sentry_sdk  # noqa: PLC0415 - as said; and it waits where another thread is half through loading it

    return sentry_sdk


def outgoing_headers() -> dict[str, str]:
    """Sentry's trace headers where tracing is on and a transaction is open; else nothing, so that messages stay small.

    Outside a transaction there is only the trace that the SDK gives a whole process (a lone query's span is in it),
    which would join jobs that have nothing to do with each other.
    """
    sdk = loaded_sdk()
    if sdk is None:
        return {}
    client = sdk.get_client()
    if not (client.options.get("traces_sample_rate") or client.options.get("traces_sampler")):
        return {}
    streams = sdk.traces.get_current_span() is not None  # the SDK's other way to trace, which knows no transactions
    if not streams and not sdk.get_current_scope().transaction:
        return {}
    found = (sdk.get_traceparent(), sdk.get_baggage())
    return {name: value for name, value in zip(TRACE_HEADERS, found, strict=True) if value}
