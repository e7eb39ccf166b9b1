-- What the application's role and the relay's may do with the outbox tables, and no more. Run it as the owner of the
-- tables, in their schema, after each 'outbox-relay migrate'; it is safe to repeat. The roles are called "application"
-- and "relay" here:
--   CREATE ROLE application LOGIN; CREATE ROLE relay LOGIN;   -- with passwords, or whatever else the server asks for

-- The application writes rows, and reads what became of them. Documents it only writes.
GRANT SELECT ON outbox_events, outbox_control, outbox_pauses TO application;
GRANT INSERT (action, index_name, document_id, tenant_id, entity, document_bytes, created_at) ON outbox_events TO application;
GRANT INSERT ON outbox_documents TO application;
GRANT USAGE, SELECT ON SEQUENCE outbox_events_id_seq TO application;

-- The relay, the admin server and the commands of operators. Not 'migrate' and 'triggers install': these are the owner's.
GRANT SELECT, INSERT, UPDATE, DELETE ON
    outbox_audit, outbox_control, outbox_depths, outbox_documents, outbox_events, outbox_failures, outbox_indexes,
    outbox_pauses, outbox_presence, outbox_reindex_jobs, outbox_relays, outbox_stats, outbox_verifications
    TO relay;
GRANT SELECT ON outbox_alembic_version TO relay;
GRANT USAGE, SELECT ON SEQUENCE
    outbox_audit_id_seq, outbox_events_id_seq, outbox_reindex_jobs_id_seq, outbox_relays_id_seq,
    outbox_verifications_id_seq
    TO relay;
GRANT USAGE, SELECT, UPDATE ON SEQUENCE outbox_tokens TO relay;
