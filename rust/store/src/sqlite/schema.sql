-- Migration 1. Enumerations are stored by their wire names, nested records as JSON.
-- What is only ever read whole lies in a `record` or `work` column; what is searched for has a column of its own.

CREATE TABLE boots (
    id TEXT NOT NULL PRIMARY KEY,
    pid INTEGER NOT NULL,
    started_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    arrival INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    workspace TEXT NOT NULL,
    state TEXT NOT NULL,
    boot TEXT,
    record TEXT NOT NULL,
    -- What settled reservations and steps used: kept as a sum, so that a reservation costs the same in a long run.
    turns INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cache_read_tokens INTEGER NOT NULL DEFAULT 0,
    cache_write_tokens INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX runs_under_way ON runs (workspace) WHERE state IN ('running', 'paused', 'waiting');

CREATE TABLE run_boots (
    run TEXT NOT NULL REFERENCES runs (id),
    boot TEXT NOT NULL,
    PRIMARY KEY (run, boot)
) STRICT, WITHOUT ROWID;

CREATE TABLE phases (
    run TEXT NOT NULL REFERENCES runs (id),
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    artifact TEXT,
    PRIMARY KEY (run, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE tasks (
    run TEXT NOT NULL REFERENCES runs (id),
    id TEXT NOT NULL,
    position INTEGER NOT NULL,
    state TEXT NOT NULL,
    file_scope TEXT NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (run, id)
) STRICT;
-- Tasks that hold their file scope between items.
CREATE INDEX tasks_holding ON tasks (run) WHERE state IN ('running', 'reviewing');

CREATE TABLE attempts (
    run TEXT NOT NULL REFERENCES runs (id),
    task TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (run, task, attempt)
) STRICT;

CREATE TABLE items (
    -- The order of arrival.
    arrival INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    run TEXT REFERENCES runs (id),
    task TEXT,
    kind TEXT NOT NULL,
    role TEXT NOT NULL,
    priority INTEGER NOT NULL,
    -- `ready` means not claimed and not ended; whether it waits is said by the two columns below.
    state TEXT NOT NULL,
    open_dependencies INTEGER NOT NULL,
    not_before INTEGER,
    file_scope TEXT NOT NULL,
    -- Whether a running item can be in the way of another: it has a file scope or is an acceptance.
    holds INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    crash_generations INTEGER NOT NULL DEFAULT 0,
    last_crash TEXT,
    model_failures INTEGER NOT NULL DEFAULT 0,
    -- The claim under way: all null unless the state is `running`.
    boot TEXT,
    agent TEXT,
    generation INTEGER,
    lease_until INTEGER,
    progressed INTEGER NOT NULL DEFAULT 0,
    work TEXT NOT NULL,
    result TEXT,
    problem TEXT
) STRICT;
-- A claim reads the beginning of this index, however many items wait.
CREATE INDEX items_ready ON items (role, priority DESC, arrival) WHERE state = 'ready' AND open_dependencies = 0;
CREATE INDEX items_leased ON items (lease_until) WHERE state = 'running';
CREATE INDEX items_holding ON items (run) WHERE state = 'running' AND holds = 1;
CREATE INDEX items_of_run ON items (run, state) WHERE run IS NOT NULL;

CREATE TABLE item_dependencies (
    item TEXT NOT NULL REFERENCES items (id),
    dependency TEXT NOT NULL REFERENCES items (id),
    PRIMARY KEY (item, dependency)
) STRICT, WITHOUT ROWID;
-- An item that ends touches only those that wait for it.
CREATE INDEX item_dependents ON item_dependencies (dependency);

-- The history of claims.
CREATE TABLE claims (
    item TEXT NOT NULL REFERENCES items (id),
    epoch INTEGER NOT NULL,
    boot TEXT NOT NULL,
    agent TEXT NOT NULL,
    generation INTEGER NOT NULL,
    claimed_at INTEGER NOT NULL,
    ended_at INTEGER,
    outcome TEXT,
    PRIMARY KEY (item, epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE journal (
    item TEXT NOT NULL REFERENCES items (id),
    attempt INTEGER NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    input_sha256 TEXT NOT NULL,
    state TEXT NOT NULL,
    output TEXT,
    error TEXT,
    started_at INTEGER NOT NULL,
    ended_at INTEGER,
    UNIQUE (item, attempt, number)
) STRICT;
CREATE INDEX journal_open ON journal (item) WHERE state = 'started';

-- Reservations: open, settled, or unknown (left open by a claim that is over, charged whole).
CREATE TABLE usage (
    number INTEGER PRIMARY KEY,
    run TEXT REFERENCES runs (id),
    item TEXT NOT NULL REFERENCES items (id),
    attempt INTEGER,
    step INTEGER,
    tokens INTEGER NOT NULL,
    usd REAL,
    state TEXT NOT NULL,
    used TEXT
) STRICT;
CREATE INDEX usage_held ON usage (run) WHERE state IN ('open', 'unknown');
CREATE INDEX usage_open ON usage (item) WHERE state = 'open';

CREATE TABLE artifacts (
    arrival INTEGER PRIMARY KEY,
    run TEXT REFERENCES runs (id),
    item TEXT NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    content BLOB NOT NULL,
    UNIQUE (item, name)
) STRICT;
CREATE INDEX artifacts_of_run ON artifacts (run, name) WHERE run IS NOT NULL;

CREATE TABLE commands (
    number INTEGER PRIMARY KEY,
    run TEXT NOT NULL REFERENCES runs (id),
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    posted_at INTEGER NOT NULL,
    taken_by TEXT
) STRICT;
CREATE INDEX commands_open ON commands (run) WHERE taken_by IS NULL;

CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    boot TEXT NOT NULL,
    run TEXT,
    kind TEXT NOT NULL,
    agent TEXT,
    record TEXT NOT NULL
) STRICT;
-- Every event is in exactly one of the two.
CREATE INDEX events_of_run ON events (run, sequence) WHERE run IS NOT NULL;
CREATE INDEX events_of_boot ON events (boot, sequence) WHERE run IS NULL;

CREATE TABLE idempotency_keys (
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;
