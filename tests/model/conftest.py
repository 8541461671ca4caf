"""A database of its own, with the table in which handlers note what they have done."""

import pytest

from worker.dev import EmbeddedPostgres


@pytest.fixture
def hands_url(postgres: EmbeddedPostgres, database_url: str) -> str:
    name = database_url.partition("@/")[2].partition("?")[0]
    columns = "seq bigint generated always as identity, id text, ms bigint, noted text"
    postgres.psql(f"create table applied ({columns})", database=name)
    return database_url
