-- The complete schema of an SQLite database of jobstore, in one file, for reading.
--
-- Databases are made by `python -m jobstore.migrate`, which applies the steps in sqlite/ one after the other;
-- a test compares their sum with this file. Times are milliseconds since the Unix epoch (UTC). No CHECK compares
-- two of them: a clock that steps back must never refuse an answer that was paid for.

-- Which steps were applied, when, and the SHA-256 of each: a step that was changed afterwards stops a migration.
CREATE TABLE migrations (
    name TEXT NOT NULL PRIMARY KEY,
    checksum TEXT NOT NULL,
    applied_at INTEGER NOT NULL
) STRICT;

-- One row. The outputs folder carries the same id, or two stores would sweep away each other's files.
CREATE TABLE store_identity (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    store_id TEXT NOT NULL
) STRICT;

INSERT INTO store_identity (singleton, store_id) VALUES (1, lower(hex(randomblob(16))));

-- A user's sessions in projects. project_hash is the SHA-256 of project_directory.
CREATE TABLE sessions (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    project_directory TEXT NOT NULL,
    project_hash TEXT NOT NULL,
    search_term TEXT NOT NULL DEFAULT '',
    title_regex TEXT NOT NULL DEFAULT '',
    content_regex TEXT NOT NULL DEFAULT '',
    negative_title_regex TEXT NOT NULL DEFAULT '',
    negative_content_regex TEXT NOT NULL DEFAULT '',
    is_regex_active INTEGER NOT NULL DEFAULT 0 CHECK (is_regex_active IN (0, 1)),
    search_selected_files_only INTEGER NOT NULL DEFAULT 0 CHECK (search_selected_files_only IN (0, 1)),
    model_used TEXT,
    model_settings TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(model_settings)),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    task_description TEXT NOT NULL DEFAULT '',
    codebase_structure TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX sessions_by_project ON sessions (project_hash, created_at, id);

-- Paths selected for a session; position keeps the order in which they were given.
CREATE TABLE included_files (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    path TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (session_id, path)
) STRICT, WITHOUT ROWID;

-- Paths forced out of a session.
CREATE TABLE excluded_files (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    path TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (session_id, path)
) STRICT, WITHOUT ROWID;

-- The pairs that jobs come in: a claim looks into each lane's own end of the index.
CREATE TABLE lanes (
    task_type TEXT NOT NULL,
    api_type TEXT NOT NULL,
    PRIMARY KEY (task_type, api_type)
) STRICT, WITHOUT ROWID;

-- One row a job. run_at: not before. attempt only grows, it is the fence of leases; attempts_used counts against
-- max_attempts. timeout is in seconds, cost in US dollars. Texts above the inline limit lie in files below the outputs
-- folder. The large texts come last: SQLite reads a row from its beginning, and rewrites it whole.
CREATE TABLE background_jobs (
    id TEXT NOT NULL PRIMARY KEY,
    session_id TEXT REFERENCES sessions (id) ON DELETE CASCADE,
    task_type TEXT NOT NULL CHECK (task_type <> ''),
    api_type TEXT NOT NULL CHECK (api_type <> ''),
    model_used TEXT,
    status TEXT NOT NULL
        CHECK (status IN ('idle', 'scheduled', 'running', 'completed', 'failed', 'canceled')),
    status_message TEXT,
    priority INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN -2147483648 AND 2147483647),
    run_at INTEGER NOT NULL,
    expires_at INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    attempts_used INTEGER NOT NULL DEFAULT 0 CHECK (attempts_used BETWEEN 0 AND attempt),
    max_attempts INTEGER NOT NULL DEFAULT 3 CHECK (max_attempts >= 1),
    timeout REAL CHECK (timeout > 0),
    idempotency_key TEXT CHECK (idempotency_key <> ''),
    cancel_requested_at INTEGER,
    error_type TEXT,
    error_message TEXT,
    input_tokens INTEGER CHECK (input_tokens >= 0),
    output_tokens INTEGER CHECK (output_tokens >= 0),
    cache_read_tokens INTEGER CHECK (cache_read_tokens >= 0),
    cache_write_tokens INTEGER CHECK (cache_write_tokens >= 0),
    reasoning_tokens INTEGER CHECK (reasoning_tokens >= 0),
    cost REAL CHECK (cost >= 0),
    cleared INTEGER NOT NULL DEFAULT 0 CHECK (cleared IN (0, 1)),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    prompt_file_path TEXT,
    prompt_bytes INTEGER,
    prompt_sha256 TEXT,
    output_file_path TEXT,
    output_bytes INTEGER,
    output_sha256 TEXT,
    metadata TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(metadata)),
    prompt TEXT NOT NULL,
    response TEXT,
    texts_pruned_at INTEGER,
    CHECK ((finished_at IS NOT NULL) = (status IN ('completed', 'failed', 'canceled'))),
    CHECK (status <> 'running' OR (attempt >= 1 AND started_at IS NOT NULL))
) STRICT;

CREATE INDEX background_jobs_claim ON background_jobs (task_type, api_type, priority DESC, run_at, id)
    WHERE status = 'idle';
CREATE INDEX background_jobs_due ON background_jobs (run_at) WHERE status = 'scheduled';
CREATE INDEX background_jobs_expiring ON background_jobs (expires_at)
    WHERE expires_at IS NOT NULL AND status IN ('idle', 'scheduled');
CREATE INDEX background_jobs_list ON background_jobs (task_type, api_type, status, cleared, created_at, id);
CREATE INDEX background_jobs_by_session ON background_jobs (session_id, status, cleared, created_at, id)
    WHERE session_id IS NOT NULL;
CREATE INDEX background_jobs_changes ON background_jobs (session_id, updated_at) WHERE session_id IS NOT NULL;
CREATE INDEX background_jobs_finished ON background_jobs (finished_at, id) WHERE finished_at IS NOT NULL;
CREATE UNIQUE INDEX background_jobs_idempotency ON background_jobs (idempotency_key)
    WHERE idempotency_key IS NOT NULL;
-- A sweep asks for each file whether a row names it.
CREATE INDEX background_jobs_prompt_file ON background_jobs (prompt_file_path) WHERE prompt_file_path IS NOT NULL;
CREATE INDEX background_jobs_output_file ON background_jobs (output_file_path) WHERE output_file_path IS NOT NULL;

-- In the database, so that rows inserted by a user's own SQL are claimed too.
-- NOT EXISTS rather than OR IGNORE: the conflict clause of an outer statement would override the latter.
CREATE TRIGGER background_jobs_lane_of_new AFTER INSERT ON background_jobs
WHEN NOT EXISTS (SELECT 1 FROM lanes WHERE task_type = NEW.task_type AND api_type = NEW.api_type)
BEGIN
    INSERT INTO lanes (task_type, api_type) VALUES (NEW.task_type, NEW.api_type);
END;

CREATE TRIGGER background_jobs_lane_of_changed AFTER UPDATE OF task_type, api_type ON background_jobs
WHEN NOT EXISTS (SELECT 1 FROM lanes WHERE task_type = NEW.task_type AND api_type = NEW.api_type)
BEGIN
    INSERT INTO lanes (task_type, api_type) VALUES (NEW.task_type, NEW.api_type);
END;

-- One row an attempt: a lease with an outcome. Narrow, so that a heartbeat never rewrites a prompt.
CREATE TABLE job_attempts (
    job_id TEXT NOT NULL REFERENCES background_jobs (id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL CHECK (attempt >= 1),
    worker_id TEXT NOT NULL,
    lease_expires_at INTEGER NOT NULL,
    cancel_acknowledged_at INTEGER,
    started_at INTEGER NOT NULL,
    finished_at INTEGER,
    outcome TEXT CHECK (outcome IN ('completed', 'failed', 'snoozed', 'released', 'canceled', 'lost')),
    error_type TEXT,
    error_message TEXT,
    error_traceback TEXT,
    output_file_path TEXT,
    output_bytes INTEGER CHECK (output_bytes >= 0),
    PRIMARY KEY (job_id, attempt),
    CHECK ((finished_at IS NULL) = (outcome IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX job_attempts_lease ON job_attempts (lease_expires_at) WHERE finished_at IS NULL;
CREATE INDEX job_attempts_output_file ON job_attempts (output_file_path) WHERE output_file_path IS NOT NULL;

-- One row for each HTTP request to a model: written before it is sent, settled when its outcome is known.
-- cost is in US dollars, and NULL where nobody knows a price. The times are milliseconds, the durations seconds.
CREATE TABLE api_calls (
    id TEXT NOT NULL PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES background_jobs (id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL CHECK (attempt >= 1),
    provider TEXT NOT NULL CHECK (provider <> ''),
    model_asked TEXT,
    model_answered TEXT,
    status TEXT NOT NULL CHECK (status IN ('sent', 'succeeded', 'failed', 'truncated', 'canceled', 'unknown')),
    on_unknown TEXT NOT NULL DEFAULT 'retry' CHECK (on_unknown IN ('retry', 'hold', 'idempotency_key')),
    idempotency_key TEXT,
    sent_at INTEGER NOT NULL,
    settled_at INTEGER,
    http_status INTEGER,
    request_id TEXT,
    remote_id TEXT,
    error_category TEXT,
    error_code TEXT,
    retry_after REAL CHECK (retry_after >= 0),
    finish_reason TEXT,
    time_to_first_token REAL CHECK (time_to_first_token >= 0),
    duration REAL CHECK (duration >= 0),
    input_tokens INTEGER CHECK (input_tokens >= 0),
    output_tokens INTEGER CHECK (output_tokens >= 0),
    cache_read_tokens INTEGER CHECK (cache_read_tokens >= 0),
    cache_write_tokens INTEGER CHECK (cache_write_tokens >= 0),
    reasoning_tokens INTEGER CHECK (reasoning_tokens >= 0),
    cost REAL CHECK (cost >= 0),
    cost_is_estimated INTEGER CHECK (cost_is_estimated IN (0, 1)),
    price_version TEXT,
    raw_usage TEXT CHECK (raw_usage IS NULL OR json_valid(raw_usage)),
    CHECK ((settled_at IS NULL) = (status = 'sent'))
) STRICT;

CREATE INDEX api_calls_by_job ON api_calls (job_id, attempt, id);

-- In the database, so that no way of ending an attempt can leave behind a call that nobody waits for any more.
CREATE TRIGGER job_attempts_end_calls AFTER UPDATE OF finished_at ON job_attempts
WHEN NEW.finished_at IS NOT NULL AND OLD.finished_at IS NULL
BEGIN
    UPDATE api_calls SET status = 'unknown', settled_at = NEW.finished_at
    WHERE job_id = NEW.job_id AND attempt = NEW.attempt AND status = 'sent';
END;

-- State of user interfaces by project, as JSON, until expires_at if there is one.
CREATE TABLE cached_state (
    project_hash TEXT NOT NULL,
    key TEXT NOT NULL,
    project_directory TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    expires_at INTEGER,
    value TEXT NOT NULL CHECK (json_valid(value)),
    PRIMARY KEY (project_hash, key)
) STRICT;

-- State of the whole application, as JSON.
CREATE TABLE key_value_store (
    key TEXT NOT NULL PRIMARY KEY,
    updated_at INTEGER NOT NULL,
    value TEXT NOT NULL CHECK (json_valid(value))
) STRICT;

-- From which store this one was filled. Until that is finished, no program may use it.
CREATE TABLE promotion (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    source_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    finished_at INTEGER
) STRICT;

-- Lanes that are not claimed from, until a time or until someone resumes them. '' stands for every type.
CREATE TABLE pauses (
    task_type TEXT NOT NULL,
    api_type TEXT NOT NULL,
    paused_at INTEGER NOT NULL,
    until INTEGER,
    reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (task_type, api_type)
) STRICT;

-- The workers that live, as they last said. Those that say nothing any more by expires_at are gone.
CREATE TABLE workers (
    id TEXT NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    version TEXT NOT NULL,
    task_types TEXT NOT NULL CHECK (json_valid(task_types)),
    concurrency INTEGER NOT NULL,
    running INTEGER NOT NULL DEFAULT 0,
    started_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    api_types TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(api_types))
) STRICT;

-- By which old jobs, or their texts alone, are removed. '' stands for every type, [] for every status.
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
