-- Policies by which old jobs, or their texts alone, are removed; and whose turn the store's maintenance is.

CREATE TABLE retention_policies (
    name TEXT NOT NULL PRIMARY KEY,
    removes TEXT NOT NULL CHECK (removes IN ('jobs', 'texts')),
    statuses TEXT NOT NULL CHECK (json_valid(statuses)),
    task_type TEXT NOT NULL DEFAULT '',
    api_type TEXT NOT NULL DEFAULT '',
    older_than INTEGER CHECK (older_than >= 0),
    keep INTEGER CHECK (keep >= 0),
    updated_at INTEGER NOT NULL,
    CHECK (older_than IS NOT NULL OR keep IS NOT NULL)
) STRICT;

-- Each task of the maintenance, who did it last, and when it is due again.
CREATE TABLE maintenance (
    task TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    due_at INTEGER NOT NULL
) STRICT;

-- Behind the large texts, which a list must not read: it is NULL unless they are gone, and NULL takes no room.
ALTER TABLE background_jobs ADD COLUMN texts_pruned_at INTEGER;
