-- What was spent, in one place: by each run, by each of its tasks, and by each agent that worked on it.
-- Kept as sums, so that a reservation costs the same in a long run.

CREATE TABLE spending (
    run TEXT NOT NULL REFERENCES runs (id),
    -- `run`, `task` or `agent`, and which one; the run's own has no name.
    level TEXT NOT NULL,
    name TEXT NOT NULL,
    -- Of settled reservations and steps.
    turns INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cache_read_tokens INTEGER NOT NULL DEFAULT 0,
    cache_write_tokens INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL NOT NULL DEFAULT 0,
    -- Reservations made, whatever became of them.
    calls INTEGER NOT NULL DEFAULT 0,
    -- Reservations that nobody can settle any more, and their sum.
    unknown_calls INTEGER NOT NULL DEFAULT 0,
    unknown_tokens INTEGER NOT NULL DEFAULT 0,
    unknown_usd REAL NOT NULL DEFAULT 0,
    -- Active time, counted up to `counted_at`; that is null while it is not active.
    milliseconds INTEGER NOT NULL DEFAULT 0,
    counted_at INTEGER,
    PRIMARY KEY (run, level, name)
) STRICT, WITHOUT ROWID;

INSERT INTO spending (run, level, name, turns, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
                      cost_usd, calls, unknown_calls, unknown_tokens, unknown_usd)
SELECT id, 'run', '', turns, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_usd,
       (SELECT count(*) FROM usage WHERE usage.run = runs.id),
       (SELECT count(*) FROM usage WHERE usage.run = runs.id AND usage.state = 'unknown'),
       (SELECT coalesce(sum(tokens), 0) FROM usage WHERE usage.run = runs.id AND usage.state = 'unknown'),
       (SELECT coalesce(sum(usd), 0.0) FROM usage WHERE usage.run = runs.id AND usage.state = 'unknown')
FROM runs;

ALTER TABLE runs DROP COLUMN turns;
ALTER TABLE runs DROP COLUMN input_tokens;
ALTER TABLE runs DROP COLUMN output_tokens;
ALTER TABLE runs DROP COLUMN cache_read_tokens;
ALTER TABLE runs DROP COLUMN cache_write_tokens;
ALTER TABLE runs DROP COLUMN cost_usd;

-- Whether its budget limits time anywhere: those runs are looked at several times a second.
ALTER TABLE runs ADD COLUMN timed INTEGER NOT NULL DEFAULT 0;
CREATE INDEX runs_timed ON runs (boot) WHERE timed = 1;

-- From whose accounts a reservation comes.
ALTER TABLE usage ADD COLUMN task TEXT;
ALTER TABLE usage ADD COLUMN agent TEXT;
DROP INDEX usage_held;
CREATE INDEX usage_open_of_run ON usage (run) WHERE state = 'open';
