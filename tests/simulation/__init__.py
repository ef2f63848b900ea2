"""A city under a storm: the real controller, store and ledger; a simulated cluster; faults from a seed."""
