-- Why a ready item waits for its `not_before`, where its last claim parked it: JSON, class and reason.
ALTER TABLE items ADD COLUMN parked TEXT;
