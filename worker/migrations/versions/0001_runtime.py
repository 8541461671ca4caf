"""The runtime's schema: outbox, runs and what belongs to them, and `worker.enqueue` for SQL producers."""

from alembic import op

revision = "worker_0001"
down_revision = None
branch_labels = ("worker",)
depends_on = None

TABLES = """
create table worker.outbox (
    seq bigint generated always as identity primary key,
    id text not null,
    enqueued_ms bigint not null,
    name text not null,
    queue text not null,
    message bytea not null,
    due_at timestamptz not null default now() check (isfinite(due_at)),
    coalesces boolean not null default false,
    sent_epoch bigint,
    sent_at timestamptz
);
create index outbox_identity on worker.outbox (id, enqueued_ms);
-- At most one row of an id is on its way: what coalesces rests on this.
create unique index outbox_one_sent on worker.outbox (id) where sent_epoch is not null;
create index outbox_unsent on worker.outbox (seq) where sent_epoch is null and not coalesces;
create index outbox_unsent_coalescing on worker.outbox (due_at) where sent_epoch is null and coalesces;
create index outbox_sent on worker.outbox (sent_epoch, seq) where sent_epoch is not null;

create table worker.run (
    id text not null,
    enqueued_ms bigint not null,
    name text not null,
    queue text not null,
    status text not null check (status in
        ('waiting', 'retrying', 'snoozed', 'yielded', 'completed', 'dead', 'cancelled', 'discarded')),
    from_outbox boolean not null,
    attempt bigint not null default 0 check (attempt >= 0),
    next_at timestamptz,
    cursor jsonb,
    done bigint not null default 0,
    total bigint,
    result jsonb,
    error text,
    message bytea,
    parent_id text,
    created_at timestamptz not null default now(),
    finished_at timestamptz,
    primary key (id, enqueued_ms)
);
create index run_unfinished on worker.run (status, created_at) where finished_at is null;
create index run_finished on worker.run (finished_at) where finished_at is not null;
create index run_dead on worker.run (finished_at) where status = 'dead';

create table worker.attempt (
    seq bigint generated always as identity primary key,
    id text not null,
    enqueued_ms bigint not null,
    attempt bigint not null,
    error text not null,
    traceback text not null,
    worker text not null,
    failed_at timestamptz not null default now(),
    foreign key (id, enqueued_ms) references worker.run on delete cascade
);
create index attempt_run on worker.attempt (id, enqueued_ms);

create table worker.reject (
    seq bigint generated always as identity primary key,
    id text not null,
    enqueued_ms bigint not null,
    line bigint not null,
    reason text not null,
    "row" bytea not null,
    foreign key (id, enqueued_ms) references worker.run on delete cascade
);
create index reject_run on worker.reject (id, enqueued_ms, line);

create table worker.cron_tick (
    name text not null,
    scheduled_at timestamptz not null,
    job_id text,
    primary key (name, scheduled_at)
);

create table worker.pause (
    kind text not null check (kind in ('queue', 'name')),
    name text not null,
    paused_at timestamptz not null default now(),
    primary key (kind, name)
);

create table worker.relay_state (
    installation text primary key,
    epoch bigint not null,
    marker text,
    redis_run_id text,
    raised_at timestamptz,
    swept_at timestamptz
);
create unique index relay_state_one_row on worker.relay_state ((true));
insert into worker.relay_state (installation, epoch) values (gen_random_uuid()::text, 1);
"""

# One notification a statement, with a constant payload, so that a commit of many rows sends one.
# `alter database … set worker.notify = 'off'` switches it off; the relay's poll is then all there is.
NOTIFY = """
create function worker.notify_outbox() returns trigger language plpgsql as $$
begin
    perform pg_notify('ratchet_outbox', '');
    return null;
end $$;
create trigger notify after insert on worker.outbox for each statement
    when (current_setting('worker.notify', true) is distinct from 'off')
    execute function worker.notify_outbox();
revoke all on function worker.notify_outbox() from public;
"""

# The ids are those of worker.outbox.enqueue: UUIDv7 (RFC 9562, section 5.7), or UUIDv8 from sha256 over name, NUL, key.
ENQUEUE = r"""
create function worker.enqueue(
    name text, payload jsonb, key text default null, job_id text default null, delay interval default null,
    at timestamptz default null, queue text default null, headers jsonb default null
) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
    chosen_id text;
    bits bytea;
    arguments text;
    ms bigint := floor(extract(epoch from clock_timestamp()) * 1000);
    name_pattern constant text := '^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}$';
    name_advice constant text := 'use at most 200 letters, digits, dots, dashes, colons or underscores';
begin
    if name is null or name !~ name_pattern then
        raise exception 'worker.enqueue got the job name %; %.', quote_nullable(left(name, 50)), name_advice
            using errcode = 'invalid_parameter_value';
    end if;
    if queue is not null and queue !~ name_pattern then
        raise exception 'worker.enqueue got the queue %; %.', quote_nullable(left(queue, 50)), name_advice
            using errcode = 'invalid_parameter_value';
    end if;
    if jsonb_typeof(payload) is distinct from 'object' then
        raise exception 'worker.enqueue got a payload that is %; give a JSON object.',
            coalesce(jsonb_typeof(payload), 'null') using errcode = 'invalid_parameter_value';
    end if;
    if key is not null and job_id is not null then
        raise exception 'worker.enqueue got both key and job_id; %.',
            'a key coalesces, a job_id is applied once: give one of them' using errcode = 'invalid_parameter_value';
    end if;
    if delay is not null and at is not null then
        raise exception 'worker.enqueue got both delay and at; give one of them.'
            using errcode = 'invalid_parameter_value';
    end if;
    if not isfinite(coalesce(at, now() + delay, now())) then
        raise exception 'worker.enqueue got a due time that is infinite; give a time or a delay.'
            using errcode = 'invalid_parameter_value';
    end if;
    if headers is not null and jsonb_typeof(headers) <> 'object' then
        raise exception 'worker.enqueue got headers that are %; give a JSON object of texts.', jsonb_typeof(headers)
            using errcode = 'invalid_parameter_value';
    end if;
    arguments := case when headers is null then payload else payload || jsonb_build_object('_headers', headers) end;
    if octet_length(arguments) > 1048576 then
        raise exception 'worker.enqueue got a payload of % bytes; the limit is 1048576: %.', octet_length(arguments),
            'store the data elsewhere and send its key' using errcode = 'invalid_parameter_value';
    end if;
    if job_id is not null then
        if job_id !~ '^[!-~]{1,200}$' then
            raise exception 'worker.enqueue got the job_id %; use 1 to 200 printable ASCII characters without spaces.',
                quote_literal(left(job_id, 50)) using errcode = 'invalid_parameter_value';
        end if;
        chosen_id := job_id;
        ms := 0;
    elsif key is not null then
        if octet_length(key) not between 1 and 1000 then
            raise exception 'worker.enqueue got a key of % bytes; use 1 to 1000 bytes.', octet_length(key)
                using errcode = 'invalid_parameter_value';
        end if;
        bits := substr(sha256(convert_to(name, 'UTF8') || decode('00', 'hex') || convert_to(key, 'UTF8')), 1, 16);
        bits := set_byte(set_byte(bits, 6, get_byte(bits, 6) & 15 | 128), 8, get_byte(bits, 8) & 63 | 128);
        chosen_id := encode(bits, 'hex')::uuid::text;
    else
        bits := substr(int8send(ms), 3, 6) || substr(uuid_send(gen_random_uuid()), 7, 10);
        bits := set_byte(bits, 6, get_byte(bits, 6) & 15 | 112);
        chosen_id := encode(bits, 'hex')::uuid::text;
    end if;
    insert into worker.outbox (id, enqueued_ms, name, queue, message, due_at, coalesces) values (
        chosen_id, ms, name, coalesce(queue, 'arq:queue'),
        convert_to(format('{"t":null,"f":%s,"a":[],"k":%s,"et":%s,"o":1}', to_json(name), arguments, ms), 'UTF8'),
        coalesce(at, now() + coalesce(delay, interval '0')), key is not null or job_id is not null
    );
    return chosen_id;
end $$;
revoke all on function worker.enqueue(text, jsonb, text, text, interval, timestamptz, text, jsonb) from public;
"""

# A role belongs to the whole cluster: another database may have made it, or be making it now.
PRODUCER = """
do $$
begin
    create role worker_producer nologin;
exception
    when duplicate_object or unique_violation then null;
    when insufficient_privilege then
        raise warning 'The role worker_producer could not be made; ask an administrator for %, then grant it %.',
            'CREATE ROLE worker_producer NOLOGIN', 'USAGE on the schema worker and EXECUTE on worker.enqueue';
end $$;
do $$
begin
    if exists (select from pg_roles where rolname = 'worker_producer') then
        grant usage on schema worker to worker_producer;
        grant execute on function worker.enqueue(text, jsonb, text, text, interval, timestamptz, text, jsonb)
            to worker_producer;
    end if;
end $$;
"""

DOWNGRADE = (
    "drop function worker.enqueue",
    "drop table worker.attempt, worker.reject, worker.run, worker.outbox, worker.cron_tick, worker.pause",
    "drop table worker.relay_state",
    "drop function worker.notify_outbox",
)


def upgrade() -> None:
    """Make everything. The schema itself stands already: it holds Alembic's version table."""
    for part in (TABLES, NOTIFY, ENQUEUE, PRODUCER):
        for statement in split(part):
            op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    """Take everything away but the role, which other databases may use."""
    for statement in DOWNGRADE:
        op.get_bind().exec_driver_sql(statement)


def split(script: str) -> list[str]:
    """The statements of `script`; a `$$` body is one piece."""
    statements: list[str] = []
    quoted, current = False, ""
    for line in script.splitlines(keepends=True):
        quoted ^= line.count("$$") % 2 == 1
        current += line
        if not quoted and line.rstrip().endswith(";"):
            statements.append(current)
            current = ""
    return statements
