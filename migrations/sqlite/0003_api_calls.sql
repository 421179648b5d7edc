-- A ledger of the calls to models, because a call that was sent may have to be paid for, whatever became of its job.
-- One row for each HTTP request: written before it is sent, settled when its outcome is known. A retry is another row.

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

-- Workers may be there for APIs rather than for task types.
ALTER TABLE workers ADD COLUMN api_types TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(api_types));
