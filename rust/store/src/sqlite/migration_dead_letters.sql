-- What a person, or the time, decides about items of users.

-- Dead letters are listed, oldest first.
CREATE INDEX items_dead ON items (ended_at, arrival) WHERE state = 'dead';

-- At most one item of a name that has not ended.
ALTER TABLE items ADD COLUMN unique_key TEXT;
CREATE UNIQUE INDEX items_unique ON items (unique_key) WHERE unique_key IS NOT NULL AND state IN ('ready', 'running');

-- Milliseconds since 1970: not begun after.
ALTER TABLE items ADD COLUMN deadline INTEGER;
CREATE INDEX items_deadline ON items (deadline) WHERE deadline IS NOT NULL AND state = 'ready';
