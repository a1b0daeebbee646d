"""Linux guests: a stock kernel mapped from its file, and what it finds in memory and registers when it starts."""
