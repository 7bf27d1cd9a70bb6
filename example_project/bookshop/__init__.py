"""A bookshop: one spider, whose items go through stacks of processors into SQLite."""
