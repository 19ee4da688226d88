"""Jobs whose results are fetched later: accepted with 202, kept in memory or on disk, restored after a crash."""
