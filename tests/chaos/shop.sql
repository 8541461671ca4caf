-- Beside the shop: what was wanted, what came of it, and a switch that makes PostgreSQL refuse.
create schema chaos;

-- One row for each job that shall be applied, written in the transaction that enqueues it. No key: it must not refuse
-- what the judge is to see.
create table chaos.wanted (
    name text not null,
    subject text not null,
    how text not null,
    expect text not null default 'done' check (expect in ('done', 'refused', 'either'))
);
create index wanted_subject on chaos.wanted (name, subject);

-- One row for each time that a job was applied, written in its own transaction.
create table chaos.effect (
    seq bigint generated always as identity primary key,
    name text not null,
    subject text not null,
    job_id text not null
);
create index effect_subject on chaos.effect (name, subject);

create table chaos.shelf (sku text primary key, stock bigint not null);

-- What the long-lived worker had in memory, each time that it was at rest.
create table chaos.memory (seq bigint generated always as identity primary key, blocks bigint not null);

create table chaos.trouble (place text primary key);

create function chaos.refuse() returns trigger language plpgsql as $$
begin
    if exists (select from chaos.trouble where place = tg_argv[0]) then
        raise exception 'could not extend the file of %: no space left on device', tg_relid::regclass
            using errcode = 'disk_full';
    end if;
    return null;
end $$;
create trigger refuse after insert on chaos.effect for each statement execute function chaos.refuse('handler');
create constraint trigger refuse_commit after insert on chaos.effect deferrable initially deferred
    for each row execute function chaos.refuse('commit');
create trigger refuse after insert or update on worker.run for each statement execute function chaos.refuse('run');
create trigger refuse after insert or update on worker.outbox
    for each statement execute function chaos.refuse('outbox');
