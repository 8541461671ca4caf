"""Sentry, set up to tell what the runtime means it to tell and nothing that a job carries."""

import sentry_sdk
from sentry_sdk.integrations.arq import ArqIntegration
from sentry_sdk.integrations.atexit import AtexitIntegration
from sentry_sdk.integrations.modules import ModulesIntegration
from sentry_sdk.integrations.sqlalchemy import SqlalchemyIntegration

from worker.reporting.scrubbing import scrub_event, scrub_transaction
from worker.settings import Settings


def configure_sentry(settings: Settings) -> None:
    """Start the SDK of this process; nothing where no DSN is set. What is pending is sent when the process ends."""
    if not settings.sentry_dsn:
        return
    payloads = settings.sentry_send_payloads
    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        environment=settings.sentry_environment,
        traces_sample_rate=settings.sentry_traces_sample_rate or None,
        # By itself the SDK would report each job a second time (arq), each logged error, each line of standard
        # output and the command's arguments, which may be a payload. What is wanted is named here.
        default_integrations=False,
        disabled_integrations=[ArqIntegration],
        integrations=[AtexitIntegration(callback=_say_nothing), ModulesIntegration(), SqlalchemyIntegration()],
        include_local_variables=payloads,
        max_request_body_size="never",
        before_breadcrumb=lambda _crumb, _hint: None,
        before_send=None if payloads else scrub_event,
        before_send_transaction=None if payloads else scrub_transaction,
    )


def _say_nothing(_pending: int, _timeout: float) -> None:
    """Wait for what is pending without writing between the log's lines."""
