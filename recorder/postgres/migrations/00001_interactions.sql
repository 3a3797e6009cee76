-- Interactions, and who may read whose.

-- +goose Up
CREATE TABLE orchestrator.interactions (
  id text PRIMARY KEY,
  time timestamptz NOT NULL,
  kind text NOT NULL, namespace text NOT NULL, session text NOT NULL, epoch numeric(20) NOT NULL,
  client text NOT NULL, request_id text NOT NULL, principal text NOT NULL, tool text NOT NULL, provider text NOT NULL, model text NOT NULL,
  tokens_in bigint NOT NULL, tokens_out bigint NOT NULL, cost_micros bigint NOT NULL, latency_micros bigint NOT NULL,
  status text NOT NULL, code text NOT NULL, error text NOT NULL, request text NOT NULL, response text NOT NULL,
  request_bytes bigint NOT NULL, response_bytes bigint NOT NULL, request_truncated boolean NOT NULL, response_truncated boolean NOT NULL,
  redactions bigint NOT NULL
);
CREATE INDEX interactions_time ON orchestrator.interactions (time, id);
CREATE INDEX interactions_namespace ON orchestrator.interactions (namespace, time, id);
CREATE INDEX interactions_session ON orchestrator.interactions (session, time, id) WHERE session <> '';

-- A role of the database reads the namespaces that are listed for it here, and nothing else:
--   GRANT USAGE ON SCHEMA orchestrator TO acme; GRANT SELECT ON orchestrator.interactions TO acme;
--   INSERT INTO orchestrator.interaction_readers VALUES ('acme', 'acme-production');
CREATE TABLE orchestrator.interaction_readers (
  role name NOT NULL,
  namespace text NOT NULL,
  PRIMARY KEY (role, namespace)
);

-- The list itself is nobody's to read, so the function reads it with its owner's rights.
CREATE FUNCTION orchestrator.readable_namespaces(reader name) RETURNS text[]
  LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
  AS 'SELECT coalesce(array_agg(namespace), ARRAY[]::text[]) FROM orchestrator.interaction_readers WHERE role = reader';

ALTER TABLE orchestrator.interaction_readers ENABLE ROW LEVEL SECURITY;
ALTER TABLE orchestrator.interactions ENABLE ROW LEVEL SECURITY;

-- In a sub-select, it is evaluated once for a query, and not for each row.
CREATE POLICY readers_see_their_namespaces ON orchestrator.interactions FOR SELECT
  USING (namespace = ANY ((SELECT orchestrator.readable_namespaces(current_user))::text[]));

-- Supabase: users come as the role authenticated, which nobody can log in as, with a token whose claims the service has checked. The namespace
-- is in app_metadata, which users cannot change.
-- +goose StatementBegin
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'authenticated') THEN
    CREATE POLICY users_see_their_namespace ON orchestrator.interactions FOR SELECT TO authenticated
      USING (namespace = (SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb -> 'app_metadata' ->> 'namespace'));
    GRANT USAGE ON SCHEMA orchestrator TO authenticated;
    GRANT SELECT ON orchestrator.interactions TO authenticated;
  END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP TABLE orchestrator.interactions;
DROP FUNCTION orchestrator.readable_namespaces(name);
DROP TABLE orchestrator.interaction_readers;
