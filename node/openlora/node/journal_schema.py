"""The journal's tables: scripts, each of which takes the schema one version further."""

from typing import Final

# Never edit one that was released; append another.
MIGRATIONS: Final = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

    -- Blocks whose logs have been applied; the highest is the cursor.
    CREATE TABLE blocks (number INTEGER PRIMARY KEY, hash BLOB NOT NULL) STRICT;

    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY, spec_hash BLOB NOT NULL, spec BLOB NOT NULL, input BLOB,
        submitted_number INTEGER, submitted_hash BLOB,
        state TEXT NOT NULL, skip TEXT, reason TEXT, claim_number INTEGER, claim_hash BLOB, changed_at REAL NOT NULL
    ) STRICT;
    CREATE INDEX jobs_by_state ON jobs (state, id);

    -- Every transition, with the block that caused it where one did.
    CREATE TABLE transitions (
        seq INTEGER PRIMARY KEY, job_id INTEGER NOT NULL, state TEXT NOT NULL, skip TEXT, reason TEXT,
        block_number INTEGER, block_hash BLOB, at REAL NOT NULL
    ) STRICT;
    CREATE INDEX transitions_by_job ON transitions (job_id, seq);
    CREATE INDEX transitions_by_block ON transitions (block_number) WHERE block_number IS NOT NULL;

    -- What this node has signed or is about to. Never deleted, not even with its job: it is what forbids a second one.
    CREATE TABLE receipts (
        job_id INTEGER PRIMARY KEY, digest BLOB NOT NULL, receipt BLOB NOT NULL, signature BLOB, at REAL NOT NULL
    ) STRICT;

    -- One row for each thing the hot key wants done on chain, and one for each signed version of it.
    CREATE TABLE intents (
        key TEXT PRIMARY KEY, to_address TEXT NOT NULL, data BLOB NOT NULL, gas_limit INTEGER NOT NULL,
        nonce INTEGER NOT NULL, state TEXT NOT NULL,
        receipt BLOB, block_number INTEGER, cost_wei INTEGER, at REAL NOT NULL
    ) STRICT;
    CREATE INDEX intents_by_state ON intents (state, nonce);
    CREATE INDEX intents_by_block ON intents (block_number) WHERE block_number IS NOT NULL;
    CREATE TABLE attempts (
        hash BLOB PRIMARY KEY, intent TEXT NOT NULL REFERENCES intents (key), nonce INTEGER NOT NULL,
        raw BLOB NOT NULL, max_fee_wei INTEGER NOT NULL, tip_wei INTEGER NOT NULL, at REAL NOT NULL
    ) STRICT;
    CREATE INDEX attempts_by_intent ON attempts (intent, at);
    CREATE INDEX attempts_by_nonce ON attempts (nonce);

    -- Nonces of the hot key that were used without us.
    CREATE TABLE foreign_transactions (
        nonce INTEGER PRIMARY KEY, hash BLOB NOT NULL, to_address TEXT, block_number INTEGER NOT NULL
    ) STRICT;
    """,
    """
    -- What the chain paid this operator, in two parts whose sums fit 64 bits: amount = high · 10^12 + low.
    CREATE TABLE payments (
        seq INTEGER PRIMARY KEY, role TEXT NOT NULL, high INTEGER NOT NULL, low INTEGER NOT NULL,
        block_number INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX payments_by_block ON payments (block_number);
    CREATE INDEX jobs_by_skip ON jobs (skip) WHERE skip IS NOT NULL;
    CREATE INDEX jobs_by_change ON jobs (changed_at);
    """,
    """
    -- The signed lane. An order is here before the engine has it, its receipt before it is signed; neither is deleted.
    CREATE TABLE orders (
        digest BLOB PRIMARY KEY, session BLOB NOT NULL, number INTEGER NOT NULL,
        spec BLOB NOT NULL, signature BLOB NOT NULL, input BLOB, state TEXT NOT NULL, reason TEXT,
        receipt_digest BLOB, receipt BLOB, receipt_signature BLOB, at REAL NOT NULL,
        UNIQUE (session, number)
    ) STRICT;
    CREATE INDEX orders_by_state ON orders (session, state);

    -- The last voucher of each session, and what it pays for.
    CREATE TABLE vouchers (
        session BLOB PRIMARY KEY, voucher BLOB NOT NULL, signature BLOB NOT NULL, account BLOB NOT NULL,
        settled INTEGER NOT NULL, unsettled_since REAL NOT NULL
    ) STRICT;
    CREATE INDEX vouchers_unsettled ON vouchers (settled) WHERE NOT settled;
    """,
    """
    -- The time of the payment's block, unix seconds; NULL until the chain has been asked.
    ALTER TABLE payments ADD COLUMN at_s INTEGER;
    CREATE INDEX payments_by_time ON payments (at_s);

    -- Every job's fee that the queue divided, in the chain's order, with the recipe's fees before it: what each leg
    -- got follows from the two. Amounts are decimal text.
    CREATE TABLE fees (
        seq INTEGER PRIMARY KEY, job_id INTEGER NOT NULL, recipe_id INTEGER NOT NULL, fee_wei TEXT NOT NULL,
        before_wei TEXT NOT NULL, block_number INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX fees_by_job ON fees (job_id);
    CREATE INDEX fees_by_recipe ON fees (recipe_id, seq);
    CREATE INDEX fees_by_block ON fees (block_number);

    -- What the registry's events tell of bases, adapters, datanets and recipes.
    CREATE TABLE registered (
        kind TEXT NOT NULL, id TEXT NOT NULL, document BLOB NOT NULL, block_number INTEGER NOT NULL,
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX registered_by_block ON registered (block_number);
    """,
    """
    -- How many logs of ours a block held that was read by itself; NULL where nobody need look at it again.
    ALTER TABLE blocks ADD COLUMN logs INTEGER;
    """,
)
