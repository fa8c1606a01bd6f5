-- What is to be done lies beside its item: an item is rewritten when it is claimed and when it ends, its work never is.
CREATE TABLE works (
    item INTEGER PRIMARY KEY REFERENCES items (arrival),
    work TEXT NOT NULL
) STRICT;
INSERT INTO works SELECT arrival, work FROM items;
ALTER TABLE items DROP COLUMN work;
