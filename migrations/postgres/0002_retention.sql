-- Policies by which old jobs, or their texts alone, are removed; and whose turn the store's maintenance is.

CREATE TABLE retention_policies (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    removes TEXT NOT NULL CHECK (removes IN ('jobs', 'texts')),
    statuses JSON NOT NULL,
    task_type TEXT NOT NULL DEFAULT '',
    api_type TEXT NOT NULL DEFAULT '',
    older_than BIGINT CHECK (older_than >= 0),
    keep BIGINT CHECK (keep >= 0),
    updated_at BIGINT NOT NULL,
    CHECK (older_than IS NOT NULL OR keep IS NOT NULL)
);

-- Each task of the maintenance, who did it last, and when it is due again.
CREATE TABLE maintenance (
    task TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    due_at BIGINT NOT NULL
);

ALTER TABLE background_jobs ADD COLUMN texts_pruned_at BIGINT;
