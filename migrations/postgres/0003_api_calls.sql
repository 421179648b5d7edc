-- A ledger of the calls to models, because a call that was sent may have to be paid for, whatever became of its job.
-- One row for each HTTP request: written before it is sent, settled when its outcome is known. A retry is another row.

-- cost is in US dollars, and NULL where nobody knows a price. The times are milliseconds, the durations seconds.
CREATE TABLE api_calls (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    job_id TEXT COLLATE "C" NOT NULL REFERENCES background_jobs (id) ON DELETE CASCADE,
    attempt BIGINT NOT NULL,
    provider TEXT COLLATE "C" NOT NULL,
    model_asked TEXT,
    model_answered TEXT,
    status TEXT COLLATE "C" NOT NULL,
    on_unknown TEXT COLLATE "C" NOT NULL DEFAULT 'retry',
    idempotency_key TEXT COLLATE "C",
    sent_at BIGINT NOT NULL,
    settled_at BIGINT,
    http_status BIGINT,
    request_id TEXT,
    remote_id TEXT,
    error_category TEXT,
    error_code TEXT,
    retry_after DOUBLE PRECISION,
    finish_reason TEXT,
    time_to_first_token DOUBLE PRECISION,
    duration DOUBLE PRECISION,
    input_tokens BIGINT,
    output_tokens BIGINT,
    cache_read_tokens BIGINT,
    cache_write_tokens BIGINT,
    reasoning_tokens BIGINT,
    cost DOUBLE PRECISION,
    cost_is_estimated BIGINT,
    price_version TEXT,
    raw_usage JSON
);

CREATE INDEX api_calls_by_job ON api_calls (job_id, attempt, id);

-- What the CHECKs of SQLite's schema enforce.
CREATE FUNCTION api_calls_check() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken TEXT := CASE
        WHEN NEW.status NOT IN ('sent', 'succeeded', 'failed', 'truncated', 'canceled', 'unknown') THEN 'status'
        WHEN (NEW.settled_at IS NULL) <> (NEW.status = 'sent') THEN 'settled_at'
        WHEN NEW.on_unknown NOT IN ('retry', 'hold', 'idempotency_key') THEN 'on_unknown'
        WHEN NEW.attempt < 1 THEN 'attempt'
        WHEN NEW.provider = '' THEN 'provider'
        WHEN NEW.retry_after < 0 THEN 'retry_after'
        WHEN NEW.time_to_first_token < 0 THEN 'time_to_first_token'
        WHEN NEW.duration < 0 THEN 'duration'
        WHEN NEW.input_tokens < 0 THEN 'input_tokens'
        WHEN NEW.output_tokens < 0 THEN 'output_tokens'
        WHEN NEW.cache_read_tokens < 0 THEN 'cache_read_tokens'
        WHEN NEW.cache_write_tokens < 0 THEN 'cache_write_tokens'
        WHEN NEW.reasoning_tokens < 0 THEN 'reasoning_tokens'
        WHEN NEW.cost < 0 THEN 'cost'
        WHEN NEW.cost_is_estimated NOT IN (0, 1) THEN 'cost_is_estimated'
    END;
BEGIN
    IF broken IS NOT NULL THEN
        RAISE check_violation USING MESSAGE = 'a call''s ' || broken || ' is not allowed', TABLE = TG_TABLE_NAME,
            COLUMN = broken, CONSTRAINT = 'api_calls_' || broken || '_check';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER api_calls_check BEFORE INSERT OR UPDATE ON api_calls
FOR EACH ROW EXECUTE FUNCTION api_calls_check();

-- In the database, so that no way of ending an attempt can leave behind a call that nobody waits for any more; also
-- for one whose search_path leads elsewhere.
CREATE FUNCTION job_attempts_end_calls() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_schema() IS DISTINCT FROM TG_TABLE_SCHEMA THEN
        EXECUTE format('UPDATE %I.api_calls SET status = ''unknown'', settled_at = $1
            WHERE job_id = $2 AND attempt = $3 AND status = ''sent''', TG_TABLE_SCHEMA)
            USING NEW.finished_at, NEW.job_id, NEW.attempt;
    ELSE
        UPDATE api_calls SET status = 'unknown', settled_at = NEW.finished_at
        WHERE job_id = NEW.job_id AND attempt = NEW.attempt AND status = 'sent';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER job_attempts_end_calls AFTER UPDATE OF finished_at ON job_attempts
FOR EACH ROW WHEN (NEW.finished_at IS NOT NULL AND OLD.finished_at IS NULL)
EXECUTE FUNCTION job_attempts_end_calls();

-- Workers may be there for APIs rather than for task types.
ALTER TABLE workers ADD COLUMN api_types JSON NOT NULL DEFAULT '[]';
