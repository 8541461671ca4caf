"""The trace that an enqueuer hands to the worker, in the message's `_headers`."""

import sentry_sdk

CRON_HEADER = "ratchet-cron"
"""Names the cron entry that a job comes from."""

TRACE_HEADERS = ("sentry-trace", "baggage")


def outgoing_headers() -> dict[str, str]:
    """Sentry's trace headers where tracing is on and a span is open; else nothing, so that messages stay small.

    Without a span there is only the trace that the SDK gives a whole process, which would join jobs that have nothing
    to do with each other.
    """
    client = sentry_sdk.get_client()
    tracing = client.options.get("traces_sample_rate") or client.options.get("traces_sampler")
    if not tracing or sentry_sdk.get_current_span() is None:
        return {}
    found = (sentry_sdk.get_traceparent(), sentry_sdk.get_baggage())
    return {name: value for name, value in zip(TRACE_HEADERS, found, strict=True) if value}
