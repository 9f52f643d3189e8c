-- Two roles, so that what the archive runs as cannot change custody: it may add to it, and neither
-- change nor delete a line, a seal or a read, nor take away the triggers that refuse it. The chain
-- tells of changes anyway (`archiver custody verify`); this prevents them.
--
-- Once, as PostgreSQL's administrator:
--     CREATE ROLE archiver_run LOGIN PASSWORD '...';
-- Then, and after every `archiver migrate`, as the role that owns the tables (it is `database.url`
-- of `archiver migrate` and `archiver database restore`, and of nothing else):
--     psql -1 -v ON_ERROR_STOP=1 -f roles.sql DATABASE
-- `archiver run` and all other commands have archiver_run in `database.url`.

GRANT USAGE ON SCHEMA public TO archiver_run;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO archiver_run;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO archiver_run;

REVOKE UPDATE, DELETE ON custody, custody_seal FROM archiver_run;
REVOKE UPDATE ON captured, reading, reading_anchor FROM archiver_run;
REVOKE INSERT, UPDATE, DELETE ON schema_migration FROM archiver_run;
-- Whoever deletes old reads locks them first, which takes the right to update something of them.
GRANT UPDATE (id) ON reading TO archiver_run;
