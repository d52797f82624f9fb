-- The ledger, then the read models. Applied whole, in one transaction, by the owner of the database;
-- every statement may be run again. The service itself works as the role tickets_service, which can add to
-- the ledger and read it, and nothing else there.

do $$ begin
  create role tickets_service nologin;
exception when duplicate_object or unique_violation then
  null;  -- roles belong to the whole server: another database, or another process just now, made it
end $$;
grant tickets_service to current_user;

-- ---------------------------------------------------------------------------------------------- the ledger

create schema if not exists ledger;
comment on schema ledger is 'The only truth: immutable facts in one gapless order.';
grant usage on schema ledger to tickets_service;

create table if not exists ledger.schema_applied (
  only_row   boolean primary key default true check (only_row),
  sha256     bytea not null,
  applied_at timestamptz not null default now()
);
alter table ledger.schema_applied add column if not exists read_models bytea;
comment on column ledger.schema_applied.read_models is 'SHA-256 of the part about the read models: of another shape, they are made anew beside.';
comment on table ledger.schema_applied is 'Which schema.sql this database has, so that a start need not apply it again.';

create table if not exists ledger.events (
  position    bigint primary key check (position > 0),
  stream_id   uuid not null,
  version     integer not null check (version > 0),
  topic       text not null,
  occurred_at timestamptz not null,
  recorded_at timestamptz not null,
  command_id  uuid not null,
  metadata    bytea not null,
  state       bytea not null,
  leaf        bytea not null check (octet_length(leaf) = 32),
  unique (stream_id, version)
);
comment on table ledger.events is 'The facts. Never changed, never deleted; positions are gapless and become visible in order.';
comment on column ledger.events.position is 'Place in the one order of all facts, from 1, without gaps.';
comment on column ledger.events.stream_id is 'The ticket, or the person, that the fact is about.';
comment on column ledger.events.version is 'Place in the stream, from 1, without gaps.';
comment on column ledger.events.topic is 'What kind of fact, with the version of its shape: ticket.assigned.v1.';
comment on column ledger.events.occurred_at is 'When it happened, by the clock of whoever recorded it or of the system it came from.';
comment on column ledger.events.recorded_at is 'When this ledger took it in, by the clock of the database.';
comment on column ledger.events.command_id is 'The command whose outcome it is.';
comment on column ledger.events.metadata is 'Who, from where, in answer to what: JSON, the exact bytes that were hashed.';
comment on column ledger.events.state is 'The fact: JSON, the exact bytes that were hashed.';
comment on column ledger.events.leaf is 'SHA-256 over length-prefixed stream, version, topic, time, metadata and state.';

create table if not exists ledger.commands (
  command_id  uuid primary key,
  stream_id   uuid not null,
  version     integer not null,
  position    bigint not null,
  fingerprint bytea not null,
  recorded_at timestamptz not null
);
comment on table ledger.commands is 'Every command that was accepted, once: asked again, it is answered and not done again.';
comment on column ledger.commands.version is 'The version of its stream after it; a command that changed nothing has the one before.';
comment on column ledger.commands.position is 'The last position of its facts, or the head then if it had none.';
comment on column ledger.commands.fingerprint is 'SHA-256 of what was asked with an Idempotency-Key, so that a key used for something else is noticed; empty without one.';

create table if not exists ledger.seals (
  last_position  bigint primary key,
  first_position bigint not null unique,
  sealed_at      timestamptz not null,
  seal           bytea not null check (octet_length(seal) = 32),
  check (first_position <= last_position)
);
comment on table ledger.seals is 'One for each batch: SHA-256 over the seal before it, the batch''s first and last position, its time and its leaves.';

create table if not exists ledger.head (
  only_row boolean primary key default true check (only_row),
  position bigint not null,
  seal     bytea not null
);
comment on table ledger.head is 'The one row that every append locks: the newest position and the newest seal.';
insert into ledger.head (position, seal) values (0, decode(repeat('00', 32), 'hex')) on conflict do nothing;

create table if not exists ledger.checkpoints (
  size bigint primary key check (size > 0),
  root bytea not null check (octet_length(root) = 32),
  time timestamptz not null,
  note text not null
);
comment on table ledger.checkpoints is 'What was signed of the ledger: its first facts, as many as size says, have this Merkle root (RFC 9162). Each is kept outside as well.';
comment on column ledger.checkpoints.size is 'How many facts, from the first on.';
comment on column ledger.checkpoints.root is 'The root of the tree over their leaves.';
comment on column ledger.checkpoints.note is 'The signed note that says all of it, and which was before.';

create table if not exists ledger.tree (
  level smallint not null,
  index bigint not null,
  hash  bytea not null,
  primary key (level, index)
);
comment on table ledger.tree is 'Complete nodes of the Merkle tree over 256 facts and more, so that proofs take little. A cache, not part of the record: empty it at any time.';
comment on column ledger.tree.level is 'The node is over 2^level leaves, from the position index * 2^level + 1 on.';

create table if not exists ledger.snapshots (
  stream_id uuid primary key,
  version   integer not null,
  made_by   bytea not null,
  state     bytea not null
);
comment on table ledger.snapshots is 'Tickets with long lives as they were some facts ago. Not part of the record: empty it at any time.';
comment on column ledger.snapshots.made_by is 'SHA-256 of the code that folded it; other code does not look at it.';

create sequence if not exists ledger.ticket_numbers;
comment on sequence ledger.ticket_numbers is 'The running part of a ticket''s number. Unique; a refused creation leaves a gap.';

create or replace function ledger.refuse_change() returns trigger language plpgsql as $$
begin
  raise exception '% on %.% refused: the ledger is append-only', tg_op, tg_table_schema, tg_table_name
    using errcode = 'insufficient_privilege', hint = 'Record a new fact that says what is right now.';
end $$;
comment on function ledger.refuse_change() is 'Makes a table append-only, for its owner too.';

do $$ declare which text; begin
  foreach which in array array['events', 'commands', 'seals', 'checkpoints'] loop
    execute format('create or replace trigger rows_are_immutable before update or delete on ledger.%I
                    for each row execute function ledger.refuse_change()', which);
    execute format('create or replace trigger table_is_immutable before truncate on ledger.%I
                    for each statement execute function ledger.refuse_change()', which);
  end loop;
end $$;

-- A big-endian number of eight bytes, as hashing wants it.
create or replace function ledger.int8_bytes(number bigint) returns bytea
language sql immutable strict parallel safe as $$ select int8send(number) $$;
comment on function ledger.int8_bytes(bigint) is 'A number as eight big-endian bytes.';

-- Appends a batch: each of the first five arrays has one element a command, the others one a fact.
-- Outcomes come back in the order of the commands:
--   appended   its facts are in the ledger, at `version` and `position`
--   duplicate  it had been accepted before: the first outcome, for whoever asks again
--   conflict   the stream is at another version, or another command of this batch was first
-- The lock comes in a statement of its own, so that the statement after it sees all that came before.
-- Its plan is made once and kept, because planning it costs as much as the rest of it; the tables may still be
-- empty then, and without enable_seqscan the plan stays good as they grow.
create or replace function ledger.append(
  command_ids uuid[], stream_ids uuid[], expected_versions integer[], fact_counts integer[], fingerprints bytea[],
  owners integer[], versions integer[], topics text[], times timestamptz[],
  metadatas bytea[], states bytea[], leaves bytea[]
) returns table (outcome text, stream_id uuid, version integer, "position" bigint, fingerprint bytea)
language plpgsql set search_path = pg_catalog set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  head record;
  now_ timestamptz;
begin
  select h.position, h.seal into strict head from ledger.head h for update;
  now_ := clock_timestamp();
  return query
  with incoming as materialized (
    select i.*, c.command_id is not null as known, c.stream_id as first_stream, c.version as first_version,
           c.position as first_position, c.fingerprint as first_fingerprint, coalesce(s.version, 0) as current,
           row_number() over (partition by i.stream_id, i.expected order by i.ord)
             + row_number() over (partition by i.command_id order by i.ord) - 1 as turn
    from unnest(command_ids, stream_ids, expected_versions, fact_counts, fingerprints)
           with ordinality i(command_id, stream_id, expected, facts, fingerprint, ord)
    left join lateral (
      select c.* from ledger.commands c where c.command_id = i.command_id limit 1
    ) c on true
    left join lateral (
      select e.version from ledger.events e where e.stream_id = i.stream_id order by e.version desc limit 1
    ) s on true
  ), decided as materialized (
    select i.*, case when i.known then 'duplicate'
                     when i.expected = i.current and i.turn = 1 then 'appended'
                     else 'conflict' end as verdict
    from incoming i
  ), placed as materialized (
    select d.*, head.position + sum(case d.verdict when 'appended' then d.facts else 0 end) over (order by d.ord)
                as last_position
    from decided d
  ), facts as materialized (
    select head.position + row_number() over (order by f.ord) as pos, p.command_id, p.stream_id, f.*
    from unnest(owners, versions, topics, times, metadatas, states, leaves)
           with ordinality f(owner, version, topic, occurred_at, metadata, state, leaf, ord)
    join placed p on p.ord = f.owner and p.verdict = 'appended'
  ), events_added as (
    insert into ledger.events (position, stream_id, version, topic, occurred_at, recorded_at, command_id, metadata, state, leaf)
    select f.pos, f.stream_id, f.version, f.topic, f.occurred_at, now_, f.command_id, f.metadata, f.state, f.leaf
    from facts f order by f.pos
  ), commands_added as (
    insert into ledger.commands (command_id, stream_id, version, position, fingerprint, recorded_at)
    select p.command_id, p.stream_id, p.expected + p.facts, p.last_position, p.fingerprint, now_
    from placed p where p.verdict = 'appended'
  ), batch as materialized (
    select min(f.pos) as first_position, max(f.pos) as last_position,
           sha256(head.seal || ledger.int8_bytes(min(f.pos)) || ledger.int8_bytes(max(f.pos))
                  || timestamptz_send(now_) || string_agg(f.leaf, ''::bytea order by f.pos)) as seal
    from facts f having count(*) > 0
  ), seal_added as (
    insert into ledger.seals (last_position, first_position, sealed_at, seal)
    select b.last_position, b.first_position, now_, b.seal from batch b
  ), head_moved as (
    update ledger.head h set position = b.last_position, seal = b.seal from batch b
  ), told as materialized (
    select pg_notify('ledger', b.last_position::text) from batch b
  )
  select p.verdict,
         case when p.known then p.first_stream else p.stream_id end,
         case when p.known then p.first_version when p.verdict = 'appended' then p.expected + p.facts else p.current end,
         case when p.known then p.first_position else p.last_position end,
         coalesce(p.first_fingerprint, p.fingerprint)
  from placed p left join told on true
  order by p.ord;
end $$;
comment on function ledger.append is 'Group commit: decides, numbers, stores and seals a batch of commands in one transaction.';

grant select, insert on ledger.events, ledger.commands, ledger.seals, ledger.checkpoints, ledger.tree to tickets_service;
grant select on ledger.schema_applied to tickets_service;
grant select, update on ledger.head to tickets_service;
grant select, insert, update on ledger.snapshots to tickets_service;
grant usage on sequence ledger.ticket_numbers to tickets_service;

-- ----------------------------------------------------------------------------------------- the read models
-- Everything below can be thrown away and rebuilt from the ledger: tickets projections rebuild.

create schema if not exists read_model authorization tickets_service;
comment on schema read_model is 'Projections of the ledger, shaped like the answers that the API gives.';
create schema if not exists rebuild authorization tickets_service;
comment on schema rebuild is 'Where a rebuild makes its tables before they are swapped in; what is here at other times, a killed one left, and the next goes on with.';

set local role tickets_service;

create table if not exists read_model.checkpoints (
  projection text primary key,
  position   bigint not null,
  updated_at timestamptz not null,
  version    integer not null
);
comment on table read_model.checkpoints is 'How far each projection has come; written in the transaction that writes its rows.';
comment on column read_model.checkpoints.version is 'The version of the projection that made the rows; another one does not add to them.';

create table if not exists read_model.parked (
  projection text not null,
  stream_id  uuid not null,
  position   bigint not null,
  error      text not null,
  parked_at  timestamptz not null,
  primary key (projection, stream_id)
);
comment on table read_model.parked is 'Streams with a fact that a projection could not digest: left as they were before it until a retry or a rebuild.';

create table if not exists read_model.tickets (
  ticket_id            uuid primary key,
  number               text not null unique,
  version              integer not null,
  position             bigint not null,
  status               text not null,
  status_rank          smallint not null,
  priority             text not null,
  category             text not null,
  environment          text,
  affected_service     text,
  tags                 text[] not null,
  requester_id         uuid not null,
  assignee_id          uuid,
  team                 text,
  created_at           timestamptz not null,
  updated_at           timestamptz not null,
  response_breach_at   timestamptz,
  resolution_breach_at timestamptz,
  breach_at            timestamptz,
  deleted              boolean not null,
  internal_comments    integer not null,
  doc                  bytea not null
);
comment on table read_model.tickets is 'Each ticket as it is now. doc is the answer; the columns beside it only filter and sort.';
comment on column read_model.tickets.status_rank is 'The status as its place in the workflow, to sort by.';
comment on column read_model.tickets.response_breach_at is 'The response counts as late from then on, if nothing happens; null if it was in time.';
comment on column read_model.tickets.resolution_breach_at is 'The resolution counts as late from then on, if nothing happens; null if it was in time or the clock stands.';
comment on column read_model.tickets.breach_at is 'The earlier of the two.';
comment on column read_model.tickets.internal_comments is 'How many comments only staff may see; doc counts the others.';
comment on column read_model.tickets.doc is 'The ticket as the API shows it, JSON, with the two breach flags false; a query sets them by the clock, and counts for staff.';
create index if not exists tickets_by_creation on read_model.tickets (created_at, ticket_id) where not deleted;
create index if not exists tickets_by_update on read_model.tickets (updated_at, ticket_id) where not deleted;
-- With updated_at in them, so that a list of the past passes over what has changed since without looking at it.
create index if not exists tickets_by_priority on read_model.tickets (priority, ticket_id, updated_at) where not deleted;
create index if not exists tickets_by_status on read_model.tickets (status_rank, ticket_id, updated_at) where not deleted;
create index if not exists tickets_of_status on read_model.tickets (status, created_at, ticket_id) where not deleted;
-- The list that desks look at all day: what is open and urgent may be older than thousands that are new.
create index if not exists tickets_of_status_and_priority on read_model.tickets (status, priority, created_at, ticket_id) where not deleted;
create index if not exists tickets_of_requester on read_model.tickets (requester_id, created_at, ticket_id) where not deleted;
create index if not exists tickets_deleted_of_requester on read_model.tickets (requester_id) where deleted;
create index if not exists tickets_of_assignee on read_model.tickets (assignee_id, created_at, ticket_id) where not deleted;
create index if not exists tickets_of_team on read_model.tickets (team, created_at, ticket_id) where not deleted;
create index if not exists tickets_of_priority on read_model.tickets (priority, created_at, ticket_id) where not deleted;
create index if not exists tickets_of_category on read_model.tickets (category, created_at, ticket_id) where not deleted;
create index if not exists tickets_of_environment on read_model.tickets (environment, created_at, ticket_id) where not deleted;
create index if not exists tickets_of_affected_service on read_model.tickets (affected_service, created_at, ticket_id) where not deleted;
create index if not exists tickets_by_breach on read_model.tickets (breach_at) where not deleted and breach_at is not null;
create index if not exists tickets_by_tag on read_model.tickets using gin (tags) where not deleted;

create table if not exists read_model.history (
  ticket_id uuid not null,
  position  bigint not null,
  action    text not null,
  internal  boolean not null,
  entry     bytea not null,
  primary key (ticket_id, position)
);
comment on table read_model.history is 'The audit trail: an entry for each fact about a ticket, with the difference that it made.';
comment on column read_model.history.internal is 'Whether only staff may know of it.';
comment on column read_model.history.entry is 'The entry as the API shows it, JSON.';

create table if not exists read_model.comments (
  comment_id uuid primary key,
  ticket_id  uuid not null,
  position   bigint not null,
  version    integer not null,
  internal   boolean not null,
  deleted    boolean not null,
  doc        bytea not null
);
comment on table read_model.comments is 'What was said of tickets, and a line by the system for each change of status.';
comment on column read_model.comments.version is 'The ticket''s version that it came with, by which comments are in order.';
comment on column read_model.comments.internal is 'Whether only staff may know of it.';
comment on column read_model.comments.doc is 'The comment as the API shows it, JSON; empty once deleted.';
create index if not exists comments_of_ticket on read_model.comments (ticket_id, version) where not deleted;

create table if not exists read_model.attachments (
  attachment_id uuid primary key,
  ticket_id     uuid not null,
  position      bigint not null,
  version       integer not null,
  sha256        text not null,
  waiting       boolean not null,
  deleted_at    timestamptz,
  doc           bytea not null
);
comment on table read_model.attachments is 'Files that are or were attached to tickets. Their bytes are elsewhere, under their SHA-256.';
comment on column read_model.attachments.version is 'The ticket''s version that it came with, by which attachments are in order.';
comment on column read_model.attachments.waiting is 'Whether the virus scanner has yet to look at it.';
comment on column read_model.attachments.deleted_at is 'When it was deleted; the bytes go later.';
comment on column read_model.attachments.doc is 'The attachment as the API shows it, JSON.';
create index if not exists attachments_of_ticket on read_model.attachments (ticket_id, version) where deleted_at is null;
create index if not exists attachments_by_content on read_model.attachments (sha256);
create index if not exists attachments_waiting on read_model.attachments (position) where waiting and deleted_at is null;

do $$ begin
  create type read_model.texts_row as (
    text_id uuid, ticket_id uuid, "position" bigint, internal boolean, title text, said text
  );
exception when duplicate_object then
  null;
end $$;
comment on type read_model.texts_row is 'What a projection writes into texts; the words follow from it.';
create table if not exists read_model.texts (
  text_id      uuid primary key,
  ticket_id    uuid not null,
  position     bigint not null,
  internal     boolean not null,
  title        text not null,
  said         text not null,
  words        tsvector generated always as
                 (setweight(to_tsvector('english', title), 'A') || setweight(to_tsvector('english', said), 'C')) stored
);
comment on table read_model.texts is 'What can be searched: a ticket''s own text and each comment, a row each.';
comment on column read_model.texts.internal is 'Whether only staff may find it.';
comment on column read_model.texts.said is 'The text as it is now; empty once deleted.';
create index if not exists texts_by_words on read_model.texts using gin (words) with (gin_pending_list_limit = 256);
create index if not exists texts_of_ticket on read_model.texts (ticket_id);

create or replace function read_model.texts_expected(query tsquery) returns bigint language plpgsql as $$
declare
  plan json;
begin
  execute format('explain (format json) select from read_model.texts where words @@ %L::tsquery', query) into plan;
  return plan->0->'Plan'->>'Plan Rows';
end $$;
comment on function read_model.texts_expected is 'How many texts have these words, as the planner expects, without looking.';

create table if not exists read_model.counts (
  scope text not null,
  kind  text not null,
  value text not null,
  n     bigint not null,
  primary key (scope, kind, value)
);
comment on table read_model.counts is 'How many tickets there are of each kind, as sums; deleted tickets are in none.';
comment on column read_model.counts.scope is 'Whose tickets: ''everybody''s, or those that the person with this id requested.';
comment on column read_model.counts.kind is 'cell, whose values are status/priority/category/environment; team; assignee; or breach, whose values are days (UTC).';
create index if not exists counts_that_are_none on read_model.counts (n) where n = 0;

create table if not exists read_model.people (
  person_id uuid primary key,
  username  text,
  role      text,
  teams     text[] not null,
  position  bigint not null
);
comment on table read_model.people is 'Who was seen in tokens and imports, as last seen. A role that is not known is null.';

create table if not exists read_model.periods (
  ticket_id        uuid not null,
  updated_at       timestamptz not null,
  valid_to         timestamptz not null,
  version          integer not null,
  status           text not null,
  status_rank      smallint not null,
  priority         text not null,
  category         text not null,
  environment      text,
  affected_service text,
  tags             text[] not null,
  requester_id     uuid not null,
  assignee_id      uuid,
  team             text,
  created_at       timestamptz not null,
  breach_at        timestamptz,
  primary key (ticket_id, updated_at)
);
comment on table read_model.periods is 'How tickets were until they changed, for lists of the past. How they are now, and since their updated_at, tickets has.';
comment on column read_model.periods.updated_at is 'From when on it was so: the last change that everybody may know of.';
comment on column read_model.periods.valid_to is 'Until when, that moment not included: the next such change.';
comment on column read_model.periods.version is 'The ticket''s last version in it.';
comment on column read_model.periods.breach_at is 'From when on it counted as late while it was so; null if it did not.';
-- The one question is what was so at a moment. Only tickets that changed later are in the answer, those that were
-- being worked on, so their few rows are filtered and sorted as they are found; no other index would be used.
create index if not exists periods_by_time on read_model.periods using gist (tstzrange(updated_at, valid_to));

reset role;
