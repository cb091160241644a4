-- A ledger of schema 2, as released. Never edit it.
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE slides (slide_id INTEGER PRIMARY KEY, profile_sha256 TEXT NOT NULL, patient TEXT NOT NULL, slide TEXT NOT NULL, UNIQUE (profile_sha256, patient, slide));
CREATE TABLE patches (slide_id INTEGER NOT NULL REFERENCES slides, strip INTEGER NOT NULL, x INTEGER NOT NULL, y INTEGER NOT NULL, outcome BLOB NOT NULL, PRIMARY KEY (slide_id, strip, x, y)) WITHOUT ROWID;
CREATE TABLE finals (profile_sha256 TEXT NOT NULL, scope TEXT NOT NULL, patient TEXT NOT NULL, slide TEXT NOT NULL, revision INTEGER NOT NULL, event_id TEXT NOT NULL, fingerprint TEXT NOT NULL, state TEXT NOT NULL, done INTEGER NOT NULL, expected INTEGER, unformed TEXT NOT NULL, tally TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (profile_sha256, scope, patient, slide)) WITHOUT ROWID;
CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL, event_id TEXT NOT NULL, kind TEXT NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL, coalesce INTEGER NOT NULL, expires_at REAL NOT NULL);
CREATE TABLE retained (seq INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL UNIQUE, payload BLOB NOT NULL, event_id TEXT NOT NULL, kind TEXT NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL, coalesce INTEGER NOT NULL, expires_at REAL NOT NULL);
CREATE INDEX outbox_topic ON outbox (topic);
PRAGMA user_version = 2;
