-- What goes first, and what may be forgotten.

-- The history of claims is in the events; nothing read this table.
DROP TABLE claims;

-- The place in the queue, see `mnemosyne_core::rank`. What was there before goes before what comes.
ALTER TABLE items ADD COLUMN rank INTEGER NOT NULL DEFAULT 0;
UPDATE items SET rank = -60000 * priority;
DROP INDEX items_ready;
-- A claim reads the beginning of this index, however many items wait.
CREATE INDEX items_ready ON items (role, rank, arrival) WHERE state = 'ready' AND open_dependencies = 0;

-- Milliseconds since 1970, once nothing more can happen to it. What ended before this migration ended at an unknown time.
ALTER TABLE items ADD COLUMN ended_at INTEGER;
CREATE INDEX items_ended ON items (ended_at) WHERE run IS NULL AND ended_at IS NOT NULL;

-- A boot that ended in order. One that is dead and has no end was killed, or the power was cut.
ALTER TABLE boots ADD COLUMN ended_at INTEGER;

-- What an item's end takes along when it is pruned is found by key, also where it is settled.
DROP INDEX usage_open;
CREATE INDEX usage_of_item ON usage (item);
CREATE INDEX idempotency_keys_of ON idempotency_keys (id);

-- Events up to this one may have gaps: those of what was pruned are gone. One row.
CREATE TABLE horizon (sequence INTEGER NOT NULL) STRICT;
INSERT INTO horizon VALUES (0);
