"""The trace that an enqueuer hands to the worker, in the message's `_headers`."""

import sentry_sdk
from sentry_sdk import traces

CRON_HEADER = "ratchet-cron"
"""Names the cron entry that a job comes from."""

TRACE_HEADERS = ("sentry-trace", "baggage")


def outgoing_headers() -> dict[str, str]:
    """Sentry's trace headers where tracing is on and a transaction is open; else nothing, so that messages stay small.

    Outside a transaction there is only the trace that the SDK gives a whole process (a lone query's span is in it),
    which would join jobs that have nothing to do with each other.
    """
    client = sentry_sdk.get_client()
    if not (client.options.get("traces_sample_rate") or client.options.get("traces_sampler")):
        return {}
    streams = traces.get_current_span() is not None  # the SDK's other way to trace, which knows no transactions
    if not streams and not sentry_sdk.get_current_scope().transaction:
        return {}
    found = (sentry_sdk.get_traceparent(), sentry_sdk.get_baggage())
    return {name: value for name, value in zip(TRACE_HEADERS, found, strict=True) if value}
