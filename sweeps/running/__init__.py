"""One sweep while it runs: from its beginning to its verdict."""
