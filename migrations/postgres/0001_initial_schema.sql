-- The first schema: sessions and their files, jobs and their attempts, lanes, state, and the store's identity.
-- Times are milliseconds since the Unix epoch (UTC), by the clocks of the programs. No CHECK compares two of them:
-- a clock that steps back must never refuse an answer that was paid for.
-- Names and keys are in the order of their bytes (COLLATE "C"), as in SQLite, so that lists and prefixes are the
-- same whatever the database's own collation. JSON is not JSONB, which refuses NUL escapes and reorders keys.

CREATE TABLE store_identity (
    singleton BIGINT PRIMARY KEY CHECK (singleton = 1),
    store_id TEXT NOT NULL
);

INSERT INTO store_identity (singleton, store_id) VALUES (1, replace(gen_random_uuid()::text, '-', ''));

-- The last transaction of each writing connection, changed within that transaction: when the answer to a COMMIT was
-- lost, this tells whether it happened. The number of a transaction would not: after a crash the server may give
-- the number of one that was lost to another.
CREATE TABLE store_writers (
    writer_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    batch BIGINT NOT NULL,
    seen_at BIGINT NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE sessions (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    project_directory TEXT NOT NULL,
    project_hash TEXT COLLATE "C" NOT NULL,
    search_term TEXT NOT NULL DEFAULT '',
    title_regex TEXT NOT NULL DEFAULT '',
    content_regex TEXT NOT NULL DEFAULT '',
    negative_title_regex TEXT NOT NULL DEFAULT '',
    negative_content_regex TEXT NOT NULL DEFAULT '',
    is_regex_active BIGINT NOT NULL DEFAULT 0 CHECK (is_regex_active IN (0, 1)),
    search_selected_files_only BIGINT NOT NULL DEFAULT 0 CHECK (search_selected_files_only IN (0, 1)),
    model_used TEXT,
    model_settings JSON NOT NULL DEFAULT '{}',
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    task_description TEXT NOT NULL DEFAULT '',
    codebase_structure TEXT NOT NULL DEFAULT ''
);

CREATE INDEX sessions_by_project ON sessions (project_hash, created_at, id);

-- position keeps the order in which the paths were given.
CREATE TABLE included_files (
    session_id TEXT COLLATE "C" NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    path TEXT COLLATE "C" NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (session_id, path)
);

CREATE TABLE excluded_files (
    session_id TEXT COLLATE "C" NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    path TEXT COLLATE "C" NOT NULL,
    position BIGINT NOT NULL,
    PRIMARY KEY (session_id, path)
);

-- The pairs that jobs come in: a claim looks into each lane's own end of the index.
CREATE TABLE lanes (
    task_type TEXT COLLATE "C" NOT NULL,
    api_type TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (task_type, api_type)
);

-- Vacuumed early: what finished jobs leave behind in the index of idle ones is what a claim would wade through.
CREATE TABLE background_jobs (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    session_id TEXT COLLATE "C" REFERENCES sessions (id) ON DELETE CASCADE,
    task_type TEXT COLLATE "C" NOT NULL,
    api_type TEXT COLLATE "C" NOT NULL,
    model_used TEXT,
    status TEXT COLLATE "C" NOT NULL,
    status_message TEXT,
    priority BIGINT NOT NULL DEFAULT 0,
    run_at BIGINT NOT NULL,
    expires_at BIGINT,
    attempt BIGINT NOT NULL DEFAULT 0,
    attempts_used BIGINT NOT NULL DEFAULT 0,
    max_attempts BIGINT NOT NULL DEFAULT 3,
    timeout DOUBLE PRECISION,
    idempotency_key TEXT COLLATE "C",
    cancel_requested_at BIGINT,
    error_type TEXT,
    error_message TEXT,
    input_tokens BIGINT,
    output_tokens BIGINT,
    cache_read_tokens BIGINT,
    cache_write_tokens BIGINT,
    reasoning_tokens BIGINT,
    cost DOUBLE PRECISION,
    cleared BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    prompt_file_path TEXT COLLATE "C",
    prompt_bytes BIGINT,
    prompt_sha256 TEXT,
    output_file_path TEXT COLLATE "C",
    output_bytes BIGINT,
    output_sha256 TEXT,
    metadata JSON NOT NULL DEFAULT '{}',
    prompt TEXT NOT NULL,
    response TEXT
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);

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

-- What the CHECKs of SQLite's schema enforce, in a trigger, which PostgreSQL keeps ready: the text of a CHECK it reads
-- anew for each statement, which took a third of the server's time for all of this table's (measured).
CREATE FUNCTION background_jobs_check() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken TEXT := CASE
        WHEN NEW.status NOT IN ('idle', 'scheduled', 'running', 'completed', 'failed', 'canceled') THEN 'status'
        WHEN (NEW.finished_at IS NOT NULL) <> (NEW.status IN ('completed', 'failed', 'canceled')) THEN 'finished_at'
        WHEN NEW.status = 'running' AND (NEW.attempt < 1 OR NEW.started_at IS NULL) THEN 'started_at'
        WHEN NEW.task_type = '' THEN 'task_type'
        WHEN NEW.api_type = '' THEN 'api_type'
        WHEN NEW.priority NOT BETWEEN -2147483648 AND 2147483647 THEN 'priority'
        WHEN NEW.attempt < 0 THEN 'attempt'
        WHEN NEW.attempts_used NOT BETWEEN 0 AND NEW.attempt THEN 'attempts_used'
        WHEN NEW.max_attempts < 1 THEN 'max_attempts'
        WHEN NEW.timeout <= 0 THEN 'timeout'
        WHEN NEW.idempotency_key = '' THEN 'idempotency_key'
        WHEN NEW.input_tokens < 0 THEN 'input_tokens'
        WHEN NEW.output_tokens < 0 THEN 'output_tokens'
        WHEN NEW.cache_read_tokens < 0 THEN 'cache_read_tokens'
        WHEN NEW.cache_write_tokens < 0 THEN 'cache_write_tokens'
        WHEN NEW.reasoning_tokens < 0 THEN 'reasoning_tokens'
        WHEN NEW.cost < 0 THEN 'cost'
        WHEN NEW.cleared NOT IN (0, 1) THEN 'cleared'
    END;
BEGIN
    IF broken IS NOT NULL THEN
        RAISE check_violation USING MESSAGE = 'a job''s ' || broken || ' is not allowed', TABLE = TG_TABLE_NAME,
            COLUMN = broken, CONSTRAINT = 'background_jobs_' || broken || '_check';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER background_jobs_check BEFORE INSERT OR UPDATE ON background_jobs
FOR EACH ROW EXECUTE FUNCTION background_jobs_check();

-- In the database, so that rows inserted by a user's own SQL are claimed too; also by one whose search_path leads
-- elsewhere, as that of pg_dump does. EXECUTE alone would take 26 µs for each row rather than 3, a function's own
-- search_path 4 (measured), and its "$user" would be someone else.
CREATE FUNCTION background_jobs_note_lane() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_schema() IS DISTINCT FROM TG_TABLE_SCHEMA THEN
        EXECUTE format('INSERT INTO %I.lanes (task_type, api_type) VALUES ($1, $2) ON CONFLICT DO NOTHING',
            TG_TABLE_SCHEMA) USING NEW.task_type, NEW.api_type;
    ELSIF NOT EXISTS (SELECT 1 FROM lanes WHERE task_type = NEW.task_type AND api_type = NEW.api_type) THEN
        INSERT INTO lanes (task_type, api_type) VALUES (NEW.task_type, NEW.api_type) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER background_jobs_lane_of_new AFTER INSERT ON background_jobs
FOR EACH ROW EXECUTE FUNCTION background_jobs_note_lane();

CREATE TRIGGER background_jobs_lane_of_changed AFTER UPDATE OF task_type, api_type ON background_jobs
FOR EACH ROW EXECUTE FUNCTION background_jobs_note_lane();

-- Narrow, so that a heartbeat never rewrites a prompt.
CREATE TABLE job_attempts (
    job_id TEXT COLLATE "C" NOT NULL REFERENCES background_jobs (id) ON DELETE CASCADE,
    attempt BIGINT NOT NULL,
    worker_id TEXT NOT NULL,
    lease_expires_at BIGINT NOT NULL,
    cancel_acknowledged_at BIGINT,
    started_at BIGINT NOT NULL,
    finished_at BIGINT,
    outcome TEXT,
    error_type TEXT,
    error_message TEXT,
    error_traceback TEXT,
    output_file_path TEXT COLLATE "C",
    output_bytes BIGINT,
    PRIMARY KEY (job_id, attempt)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);

CREATE FUNCTION job_attempts_check() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken TEXT := CASE
        WHEN NEW.attempt < 1 THEN 'attempt'
        WHEN NEW.outcome NOT IN ('completed', 'failed', 'snoozed', 'released', 'canceled', 'lost') THEN 'outcome'
        WHEN (NEW.finished_at IS NULL) <> (NEW.outcome IS NULL) THEN 'finished_at'
        WHEN NEW.output_bytes < 0 THEN 'output_bytes'
    END;
BEGIN
    IF broken IS NOT NULL THEN
        RAISE check_violation USING MESSAGE = 'an attempt''s ' || broken || ' is not allowed', TABLE = TG_TABLE_NAME,
            COLUMN = broken, CONSTRAINT = 'job_attempts_' || broken || '_check';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER job_attempts_check BEFORE INSERT OR UPDATE ON job_attempts
FOR EACH ROW EXECUTE FUNCTION job_attempts_check();

CREATE INDEX job_attempts_lease ON job_attempts (lease_expires_at) WHERE finished_at IS NULL;
CREATE INDEX job_attempts_output_file ON job_attempts (output_file_path) WHERE output_file_path IS NOT NULL;

CREATE TABLE cached_state (
    project_hash TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    project_directory TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    expires_at BIGINT,
    value JSON NOT NULL,
    PRIMARY KEY (project_hash, key)
);

CREATE TABLE key_value_store (
    key TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    updated_at BIGINT NOT NULL,
    value JSON NOT NULL
);

-- From which store this one was filled. Until that is finished, no program may use it.
CREATE TABLE promotion (
    singleton BIGINT PRIMARY KEY CHECK (singleton = 1),
    source_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    finished_at BIGINT
);

-- Lanes that are not claimed from, until a time or until someone resumes them. '' stands for every type.
CREATE TABLE pauses (
    task_type TEXT COLLATE "C" NOT NULL,
    api_type TEXT COLLATE "C" NOT NULL,
    paused_at BIGINT NOT NULL,
    until BIGINT,
    reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (task_type, api_type)
);

-- The workers that live, as they last said. Those that say nothing any more by expires_at are gone.
CREATE TABLE workers (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    pid BIGINT NOT NULL,
    version TEXT NOT NULL,
    task_types JSON NOT NULL,
    concurrency BIGINT NOT NULL,
    running BIGINT NOT NULL DEFAULT 0,
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
