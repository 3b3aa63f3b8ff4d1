"""One file for each schema of the ledger, in order."""
