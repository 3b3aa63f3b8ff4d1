"""The ledger's migrations; :mod:`factory.ledger.database` runs them when a ledger is opened."""
